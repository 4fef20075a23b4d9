"""The counts and quirks that the original files are known to have; no text of theirs is asserted or shown."""

from collections import Counter
from pathlib import Path

import pytest

from lasa.data.corpora import load_corpus
from lasa.data.corpora.audit import check_no_leaks, find_leaks, near_duplicates
from lasa.data.prompts import Prompt, check_parallel
from lasa.data.sources import load_prompts

DATA = (Path(__file__).resolve().parents[4] / ".." / "shared" / "data").resolve()

FILES = {
    "multijail": "multijail/MultiJail.csv",
    "xsafety": "xsafety",
    "harmbench": "harmbench/harmbench_behaviors_text_all.csv",
    "advbench": "advbench/harmful_behaviors.csv",
    "strongreject": "strongreject/strongreject_dataset.csv",
    "xstest": "xstest/xstest_prompts.csv",
    "ntrex": "ntrex",
    "tatoeba": "tatoeba",
    "nusax_mt": "nusax/mt",
    "mgsm": "mgsm",
    "global_mmlu_lite": "global_mmlu_lite",
    "nusax_sentiment": "nusax/sentiment",
}

ROWS = {
    "multijail": (315, {"en", "zh", "it", "vi", "ar", "ko", "th", "bn", "sw", "jv"}),
    "xsafety": (14 * 200, {"ar", "bn", "de", "en", "fr", "hi", "ja", "ru", "es", "zh"}),
    "harmbench": (400, {"en"}),
    "advbench": (520, {"en"}),
    "strongreject": (313, {"en"}),
    "xstest": (450, {"en"}),
    "ntrex": (1997, {"en", "ar", "bn", "it", "ko", "sw", "th", "vi", "zh"}),
    "nusax_mt": (1000, {"en", "jv", "id", "su"}),
    "mgsm": (250, {"en", "bn", "de", "es", "fr", "ja", "ru", "sw", "te", "th", "zh"}),
    "global_mmlu_lite": (615, {"en", "vi", "zh"}),
    "nusax_sentiment": (1000, {"en", "jv"}),
}
"""Rows per language and the languages."""


def load(name: str, file: str | None = None) -> list[Prompt]:
    path = DATA / (file or FILES[name])
    if not path.exists():
        pytest.skip(f"the public files of {name} are not here ({path})")
    return load_corpus(name, path)


@pytest.mark.parametrize("name", list(ROWS))
def test_every_row_of_every_language_is_read_once(name: str) -> None:
    prompts = load(name)
    rows, languages = ROWS[name]
    expected = dict.fromkeys(languages, rows)
    if name == "xsafety":
        expected["ru"] -= 1
    assert Counter(p.language for p in prompts) == expected
    assert len({(p.query_id, p.language) for p in prompts}) == len(prompts)
    assert len({p.query_id for p in prompts}) == rows
    assert {p.source for p in prompts} == {name}
    assert all(p.text == p.text.strip() and p.text and "\r\n" not in p.text for p in prompts)


def test_the_strings_of_advbench_are_a_table_with_declared_columns() -> None:
    load("advbench")
    source = f"{DATA}/advbench/harmful_strings.csv?prompt=target&in_language=en&label=harmful"
    prompts = load_prompts(source)
    assert len(prompts) == len({p.query_id for p in prompts}) == 574
    assert {(p.language, p.harmful) for p in prompts} == {("en", True)}


@pytest.mark.parametrize("name", ["nusax_mt", "nusax_sentiment"])
def test_nusax_has_its_three_splits(name: str) -> None:
    splits = Counter(p.details["split"] for p in load(name) if p.language == "jv")
    assert splits == {"train": 500, "valid": 100, "test": 400}


def test_a_split_of_a_corpus_can_be_asked_alone() -> None:
    load("global_mmlu_lite")
    prompts = load_prompts(f"global_mmlu_lite:{DATA}/global_mmlu_lite?split=test")
    assert Counter(p.language for p in prompts) == {"en": 400, "vi": 400, "zh": 400}


def test_tatoeba_pairs_do_not_share_queries() -> None:
    prompts = load("tatoeba")
    expected = {**dict.fromkeys(["ar", "bn", "zh", "it", "ko", "vi"], 1000), "th": 548, "sw": 390, "jv": 205}
    assert Counter(p.language for p in prompts if p.language != "en") == expected
    assert set(Counter(p.query_id for p in prompts).values()) == {2}


@pytest.mark.parametrize("name", ["multijail", "xsafety", "ntrex", "tatoeba", "nusax_mt", "mgsm"])
def test_parallel_corpora_are_parallel(name: str) -> None:
    check_parallel(load(name))


def test_multijail_has_its_tags_origins_and_multiline_rows() -> None:
    prompts = load("multijail")
    english = [p for p in prompts if p.language == "en"]
    assert Counter(p.details["origin"] for p in english) == {"anthropics": 300, "openai": 15}
    assert {len(p.details["tags"]) for p in english} == {1, 2, 3, 4}
    assert len({tag for p in english for tag in p.details["tags"]}) == 18
    assert {p.query_id for p in prompts if "\n" in p.text} == {"multijail:306", "multijail:307"}
    texts = {(p.query_id, p.language): p.text for p in prompts}
    alike = {code for code in ROWS["multijail"][1] if texts["multijail:4", code] == texts["multijail:11", code]}
    assert alike == {"ar", "sw"}
    assert "\u200b" in texts["multijail:112", "vi"]


def test_xsafety_is_harmful_but_for_common_sense_and_counts_the_empty_row() -> None:
    prompts = load("xsafety")
    assert Counter(p.category for p in prompts if not p.harmful) == {"commonsense": 2000}
    assert len({p.category for p in prompts if p.harmful}) == 13
    russian = {p.query_id for p in prompts if p.language == "ru" and p.category == "Insult"}
    assert {f"xsafety:Insult/{row}" for row in range(200)} - russian == {"xsafety:Insult/164"}


def test_harmbench_splits_are_parts_of_all_over_their_line_ends() -> None:
    everything = {p.query_id: p for p in load("harmbench")}
    val = load("harmbench", "harmbench/harmbench_behaviors_text_val.csv")
    test = load("harmbench", "harmbench/harmbench_behaviors_text_test.csv")
    assert (len(val), len(test)) == (80, 320)
    together = {p.query_id: p for p in val + test}
    assert together.keys() == everything.keys()
    assert [p.query_id for p in everything.values() if together[p.query_id] != p] == []
    kinds = [p.details["functional_category"] for p in everything.values()]
    assert Counter(kinds) == {"standard": 200, "copyright": 100, "contextual": 100}
    assert set(kinds[:200]) == {"standard"}
    with_context = [p for p in everything.values() if p.text != p.details["behavior"]]
    assert len(with_context) == 100
    assert len({p.details["behavior"] for p in everything.values()}) == 393
    assert check_no_leaks(val, test) == []
    assert len(find_leaks(list(everything.values()), val)) >= 80


def test_known_overlaps_between_the_english_benchmarks() -> None:
    tables = {name: load(name) for name in ("harmbench", "advbench", "strongreject", "xstest")}
    assert Counter(d.match for d in near_duplicates(tables["advbench"], tables["strongreject"])) == {"exact": 25}
    for name in ("advbench", "strongreject", "xstest"):
        assert near_duplicates(tables["harmbench"], tables[name]) == []


def test_strongreject_and_xstest_have_their_categories() -> None:
    strongreject = load("strongreject")
    assert len({p.category for p in strongreject}) == 6
    assert Counter(p.details["origin"] for p in strongreject)["custom"] == 221
    assert Counter(p.details["origin"] for p in strongreject)["AdvBench"] == 25
    xstest = load("xstest")
    assert Counter(p.category == "hard_benign" for p in xstest if not p.harmful) == {True: 250}
    assert Counter(p.harmful for p in xstest) == {False: 250, True: 200}
    assert Counter(Counter(p.details["type"] for p in xstest).values()) == {25: 18}
    assert sum(not p.details["focus"] for p in xstest) == 75
    assert sum(not p.details["note"] for p in xstest) == 345


def test_answers_are_the_same_in_every_language() -> None:
    for name in ("mgsm", "global_mmlu_lite", "nusax_sentiment"):
        answers: dict[str, set[str]] = {}
        for prompt in load(name):
            answers.setdefault(prompt.query_id, set()).add(prompt.details["answer"])
        assert all(len(found) == 1 for found in answers.values()), name
    mgsm = {p.details["answer"] for p in load("mgsm")}
    assert {"2125", "114200", "276000", "5600"} <= mgsm
    splits = Counter((p.language, p.details["split"]) for p in load("global_mmlu_lite"))
    assert splits["vi", "dev"] == 215
    assert splits["vi", "test"] == 400
    sensitive = [p.details["culturally_sensitive"] for p in load("global_mmlu_lite") if p.language == "zh"]
    assert Counter(sensitive) == {True: 200, False: 200, None: 215}


def test_mgsm_keeps_zero_width_joiners() -> None:
    telugu = "".join(p.text for p in load("mgsm") if p.language == "te")
    assert telugu.count("\u200c") + telugu.count("\u200d") == 561
