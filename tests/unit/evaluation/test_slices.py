from dataclasses import replace

import pytest

from lasa.data.prompt_tables import write_prompts
from lasa.data.prompts import user_prompt
from lasa.errors import DataError
from lasa.evaluation.slices import changed, choose, load_benchmarks, with_changes

PROMPTS = [
    user_prompt(f"q{n}", language, text.format(n), harmful=n < 20, source="t")
    for n in range(40)
    for language, text in (("en", "water plant {}, right now"), ("it", "bagna la pianta {}, proprio ora"))
]


@pytest.fixture
def file(tmp_path):
    write_prompts(tmp_path / "asked.jsonl", PROMPTS)
    return tmp_path / "asked.jsonl"


def test_benchmarks_have_their_own_names_or_given_ones(file):
    tables = load_benchmarks([str(file), f"again={file}", "embedded:layer-search"])
    assert list(tables) == ["asked", "again", "layer-search"]
    assert tables["asked"] == tables["again"] == PROMPTS
    with pytest.raises(DataError, match="Two sources have the name 'asked'"):
        load_benchmarks([str(file), f"asked={file}"])


def test_a_benchmark_may_be_one_split_of_a_corpus(tmp_path):
    (tmp_path / "it").mkdir()
    row = '{"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 0, "idx": 0}\n'
    for split in ("val", "test"):
        (tmp_path / "it" / f"{split}.it.jsonl").write_text(row)
    assert len(load_benchmarks([f"xcopa:{tmp_path}"])["xcopa"]) == 2
    (only,) = load_benchmarks([f"xcopa:{tmp_path}?split=test"])["xcopa"]
    assert only.query_id == "xcopa:test/0"
    with pytest.raises(DataError, match="there is no split 'dev'; there is test, val"):
        load_benchmarks([f"xcopa:{tmp_path}?split=dev"])


def test_a_limit_draws_questions_in_all_their_languages_and_labels_in_proportion():
    chosen = choose({"a": PROMPTS}, limit=10)["a"]
    assert len({p.query_id for p in chosen}) == 10
    assert len(chosen) == 20
    assert sum(p.harmful for p in chosen) == 10
    assert choose({"a": PROMPTS}, limit=10)["a"] == chosen
    assert choose({"a": PROMPTS}, limit=10, seed=1)["a"] != chosen
    assert choose({"a": PROMPTS}, limit=100)["a"] == PROMPTS


def test_questions_of_two_sources_that_are_numbered_alike_are_drawn_apart():
    other = [replace(prompt, source="u", harmful=None) for prompt in PROMPTS]
    chosen = choose({"a": PROMPTS + other}, limit=12)["a"]
    assert len({(p.source, p.query_id) for p in chosen}) == 12
    assert len(chosen) == 24
    assert sum(p.harmful is True for p in chosen) == 6


def test_languages_can_be_chosen():
    assert {p.language for p in choose({"a": PROMPTS}, ["it"])["a"]} == {"it"}
    with pytest.raises(DataError, match="no prompt in sw"):
        choose({"a": PROMPTS}, ["sw"])


@pytest.mark.parametrize(
    "change",
    ["typos", "casing", "zero_width", "homoglyphs", "code_switch", "code_switch=it", "split_turns", "split_turns=3",
     "prefill=Sure: ", "answer_in=it"],
)  # fmt: skip
def test_every_change_is_a_split_of_its_own_whose_questions_pair(change):
    splits = with_changes({"a": PROMPTS}, [change])
    name = change.partition("=")[0]
    assert list(splits) == ["a", f"a/{name}"]
    assert splits["a"] == PROMPTS
    copies = splits[f"a/{name}"]
    assert {(p.query_id, p.language) for p in copies} <= {(p.query_id, p.language) for p in PROMPTS}
    assert all("perturbation" in p.details for p in copies)


def test_values_of_changes_are_used():
    assert {p.details["prefill"] for p in changed(PROMPTS, "prefill=Sure: ")} == {"Sure: "}
    assert {(p.language, p.details["answer_language"]) for p in changed(PROMPTS, "answer_in=it")} == {("en", "it")}
    assert {tuple(p.details["languages"]) for p in changed(PROMPTS, "code_switch=it")} == {("en", "it")}
    assert {len(p.messages) for p in changed(PROMPTS, "split_turns=3")} == {5}


def test_romanised_copies_are_asked_where_they_differ():
    pytest.importorskip("anyascii", reason="anyascii is not installed: pip install lasa[evaluate]")
    thai = [user_prompt("q", "th", "รดน้ำต้นไม้", harmful=False)]
    assert changed(thai, "romanise")[0].text.isascii()
    with pytest.raises(DataError, match="romanise changes no prompt of a"):
        with_changes({"a": PROMPTS}, ["romanise"])


@pytest.mark.parametrize("change", ["shouting", "prefill", "prefill=", "split_turns=many", "answer_in=", "typos=3"])
def test_an_unknown_change_names_the_known_ones(change):
    with pytest.raises(DataError, match="use one of code_switch, romanise, typos"):
        changed(PROMPTS, change)
