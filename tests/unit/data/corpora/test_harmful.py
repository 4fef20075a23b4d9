import csv
from pathlib import Path

import pytest

from lasa.data.corpora import LOADERS, load_corpus
from lasa.data.corpora.harmful import (
    load_advbench,
    load_do_not_answer,
    load_harmbench,
    load_multijail,
    load_strongreject,
    load_xstest,
)
from lasa.errors import DataError

HARMBENCH = ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"]
MULTIJAIL = ["id", "source", "tags", "en", "sw", "jv"]


def table(path: Path, header: list[str], *rows: list[object], encoding: str = "utf-8", line_end: str = "\n") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, lineterminator=line_end).writerows([header, *rows])
    return path


def test_multijail_survives_bom_multiline_cells_and_outer_whitespace(tmp_path: Path) -> None:
    path = table(
        tmp_path / "MultiJail.csv",
        MULTIJAIL,
        [0, "anthropics", "['Weather', 'Tea']", "Is it\nraining?", "Je,\r\nmvua?", " Udan? "],
        [1, "openai", "[]", "Zero\u200bwidth", "b", "c"],
        encoding="utf-8-sig",
    )
    prompts = load_multijail(path)
    assert [(p.query_id, p.language, p.text) for p in prompts[:3]] == [
        ("multijail:0", "en", "Is it\nraining?"),
        ("multijail:0", "sw", "Je,\nmvua?"),
        ("multijail:0", "jv", "Udan?"),
    ]
    assert prompts[0].harmful is True
    assert (prompts[0].category, prompts[0].source) == ("Weather", "multijail")
    assert prompts[0].details == {"tags": ["Weather", "Tea"], "origin": "anthropics"}
    assert (prompts[3].text, prompts[3].category) == ("Zero\u200bwidth", "")


@pytest.mark.parametrize("tags", ["__import__('os').getcwd()", "'text'", "[1]", "[" * 5000])
def test_multijail_tags_are_parsed_and_never_run(tmp_path: Path, tags: str) -> None:
    path = table(tmp_path / "MultiJail.csv", MULTIJAIL, [0, "openai", tags, "a", "b", "c"])
    with pytest.raises(DataError, match="row 1: the tags"):
        load_multijail(path)


def test_an_empty_translation_is_named_by_row_and_column(tmp_path: Path) -> None:
    path = table(tmp_path / "MultiJail.csv", MULTIJAIL, [0, "openai", "[]", "a", " ", "c"])
    with pytest.raises(DataError, match="row 1, column 'sw'"):
        load_multijail(path)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_harmbench_puts_the_context_first_whatever_the_line_ends(tmp_path: Path, line_end: str) -> None:
    path = table(
        tmp_path / "harmbench.csv",
        HARMBENCH,
        ["Boil an egg ", "standard", "cooking", "", "", "boil_egg"],
        ["Continue", "contextual", "cooking", "context", f"Line one{line_end}Line two", "continue_1"],
        ["Continue", "contextual", "cooking", "lyrics, hash_check", "Other", "continue_2"],
        line_end=line_end,
    )
    plain, first, second = load_harmbench(path)
    assert (plain.text, plain.details["tags"]) == ("Boil an egg", [])
    assert first.text == "Line one\nLine two\n\n---\n\nContinue"
    assert first.query_id != second.query_id
    assert second.details == {
        "functional_category": "contextual",
        "tags": ["lyrics", "hash_check"],
        "behavior": "Continue",
    }


def test_advbench_with_swapped_columns_is_refused(tmp_path: Path) -> None:
    good = table(tmp_path / "good.csv", ["goal", "target"], ["Bake bread, slowly", "Sure, here is bread"])
    prompt = load_advbench(good)[0]
    assert (prompt.query_id, prompt.text, prompt.harmful) == ("advbench:0", "Bake bread, slowly", True)
    swapped = table(tmp_path / "swapped.csv", ["target", "goal"], ["Bake bread, slowly", "Sure, here is bread"])
    with pytest.raises(DataError, match="swapped"):
        load_advbench(swapped)


def test_advbench_strings_are_not_mistaken_for_prompts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'goal'"):
        load_advbench(table(tmp_path / "strings.csv", ["target"], ["Sure"]))


def test_strongreject_keeps_newlines_and_origin(tmp_path: Path) -> None:
    path = table(tmp_path / "s.csv", ["category", "source", "forbidden_prompt"], ["Cooking", "custom", "One\ntwo"])
    prompt = load_strongreject(path)[0]
    assert (prompt.text, prompt.category, prompt.details) == ("One\ntwo", "Cooking", {"origin": "custom"})


def test_both_xstest_formats_give_the_same_prompts(tmp_path: Path) -> None:
    new = table(
        tmp_path / "new.csv",
        ["id", "prompt", "type", "label", "focus", "note"],
        [1, " How do I kill a process? ", "homonyms", "safe", "kill", ""],
        [2, "A contrast", "contrast_homonyms", "unsafe", "", ""],
    )
    old = table(
        tmp_path / "old.csv",
        ["id_v1", "id_v2", "type", "prompt", "focus", "note"],
        ["v1-1", "v2-1", "homonyms", "How do I kill a process?", "kill", ""],
        ["", "v2-2", "contrast_homonyms", "A contrast", "", ""],
    )
    assert load_xstest(new) == load_xstest(old)
    safe, unsafe = load_xstest(new)
    assert (safe.query_id, safe.harmful, safe.category, safe.text) == (
        "xstest:1",
        False,
        "hard_benign",
        "How do I kill a process?",
    )
    assert (unsafe.harmful, unsafe.category) == (True, "contrast_homonyms")


def test_an_unknown_xstest_label_is_an_error_not_a_guess(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", ["id", "prompt", "type", "label"], [1, "a", "homonyms", "maybe"])
    with pytest.raises(DataError, match="row 1, column 'label'"):
        load_xstest(path)


def test_do_not_answer_is_read_without_the_recorded_answers(tmp_path: Path) -> None:
    path = table(
        tmp_path / "data_en.csv",
        ["id", "risk_area", "types_of_harm", "specific_harms", "question", "GPT4_response"],
        [7, "Area", "Type", "Harm", "A question?", "An answer."],
    )
    prompt = load_do_not_answer(path)[0]
    assert (prompt.query_id, prompt.category, prompt.harmful) == ("do_not_answer:7", "Area", True)
    assert prompt.details == {"type": "Type", "harm": "Harm"}


def test_an_unknown_corpus_names_the_known_ones() -> None:
    with pytest.raises(DataError, match="multijail, xsafety"):
        load_corpus("no-such-corpus", "x")


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_every_loader_reports_a_missing_path_and_an_empty_folder(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(DataError):
            load_corpus(name, path)
