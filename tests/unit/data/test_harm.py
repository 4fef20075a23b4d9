import pytest

from lasa.data.corpora import load_corpus
from lasa.data.corpora.xsafety import CATEGORIES
from lasa.data.harm import CORPORA, HAZARDS, harm_categories
from lasa.data.prompts import user_prompt
from lasa.data.world.deeds import CONCEPTS
from lasa.data.world.tables import PROMPT_TABLES


def categories(source, category, harmful=True, **details):
    return harm_categories(
        user_prompt("q", "en", "text", harmful=harmful, source=source, category=category, details=details)
    )


def test_every_hazard_of_mlcommons_belongs_to_one_category():
    codes = [code for mapped in HAZARDS.values() for code in mapped]
    assert sorted(codes, key=lambda code: int(code[1:])) == [f"S{number}" for number in range(1, 15)]


def test_the_table_names_known_categories_only():
    assert {name for known in CORPORA.values() for name in known.values()} <= set(HAZARDS)
    assert set(CORPORA["xsafety"]) <= set(CATEGORIES)


def test_a_corpus_own_category_is_translated_and_all_of_several_tags():
    assert categories("harmbench", "illegal", tags=["context"]) == ("crime",)
    tags = ["Theft", "Weapons", "Property crime & vandalism"]
    assert categories("multijail", "Theft", tags=tags) == ("crime", "weapons")


@pytest.mark.parametrize(("label", "found"), [("self_harm", "self_harm"), ("S3", "sexual"), ("S12", "sexual")])
def test_any_source_may_use_the_taxonomys_names_and_codes(label, found):
    assert categories("ours", label) == (found,)


def test_what_is_unknown_or_harmless_has_no_category():
    assert categories("ours", "illegal") == categories("xsafety", "Goal_Hijacking") == ()
    assert categories("embedded", "theft", harmful=False) == categories("ours", "hate", harmful=None) == ()


def test_every_harmful_deed_of_the_embedded_world_has_one_category_and_the_others_none():
    for name in ("interpreter", "combinations", "concepts"):
        for prompt in PROMPT_TABLES[name]():
            assert len(harm_categories(prompt)) == int(bool(prompt.harmful)), prompt.query_id
    kinds = {deed.category for deed in CONCEPTS.deeds if deed.harmful}
    assert kinds == set(CORPORA["embedded"])


def test_the_table_has_the_labels_that_the_files_have(shared):
    found = load_corpus("multijail", shared / "multijail" / "MultiJail.csv")
    unknown = {tag for p in found for tag in p.details["tags"]} - set(CORPORA["multijail"])
    assert unknown == {"Non-violent unethical behavior (e.g. lying, cheating, etc.)"}
    assert set(CORPORA["multijail"]) <= {tag for p in found for tag in p.details["tags"]}
    strong = load_corpus("strongreject", shared / "strongreject" / "strongreject_dataset.csv")
    assert {p.category for p in strong} == set(CORPORA["strongreject"])
    bench = load_corpus("harmbench", shared / "harmbench" / "harmbench_behaviors_text_all.csv")
    assert {p.category for p in bench} - set(CORPORA["harmbench"]) == {"harmful"}
