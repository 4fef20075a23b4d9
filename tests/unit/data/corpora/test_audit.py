import pytest

from lasa.data.corpora.audit import (
    Count,
    Duplicate,
    check_no_leaks,
    count_prompts,
    find_leaks,
    near_duplicates,
    normalise,
)
from lasa.data.prompts import Prompt, user_prompt
from lasa.errors import DataError


def prompt(query_id: str, text: str, language: str = "en", source: str = "a", **rest: object) -> Prompt:
    return user_prompt(query_id, language, text, source=source, **rest)


def test_counts_are_by_language_source_and_label() -> None:
    table = [
        prompt("1", "x", harmful=True),
        prompt("1", "y", harmful=True),
        prompt("2", "z", "sw", harmful=False),
        prompt("3", "z", harmful=False, category="hard_benign"),
        prompt("4", "z"),
    ]
    assert count_prompts(table) == [
        Count("en", "a", "hard_benign", 1, 1),
        Count("en", "a", "harmful", 2, 1),
        Count("en", "a", "unlabelled", 1, 1),
        Count("sw", "a", "benign", 1, 1),
    ]


def test_counts_name_the_licence_of_known_sources() -> None:
    known, own = count_prompts([prompt("1", "x", source="xstest"), prompt("2", "y", source="zz-mine")])
    assert (known.licence, own.licence) == ("CC BY 4.0", "not stated")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("How do I bake bread?", "how do i  bake\tbread"),
        ("How do I bake bread?", "How\u200b do I ba\u200dke\ufeff bread?"),
        ("bake 1 bread", "ｂａｋｅ １ ｂｒｅａｄ"),
        ("STRASSE", "straße"),
        ("怎么 做 面包？", "怎么做面包"),
        ("tea ☕\ufe0f", "tea ☕"),
    ],
)
def test_surface_differences_do_not_hide_a_duplicate(left: str, right: str) -> None:
    assert near_duplicates([prompt("1", left)], [prompt("2", right)]) == [Duplicate(0, 0, "normalised")]


@pytest.mark.parametrize(("left", "right"), [("bake bread", "bake breads"), ("???", "!!!"), ("C++", "C"), ("कि", "क")])
def test_different_texts_are_not_duplicates(left: str, right: str) -> None:
    assert normalise(left) != normalise(right)
    assert near_duplicates([prompt("1", left)], [prompt("2", right)]) == []


def test_an_exact_duplicate_is_preferred_to_a_normalised_one() -> None:
    assert near_duplicates([prompt("1", "tea")], [prompt("2", "Tea"), prompt("3", "tea")]) == [Duplicate(0, 1, "exact")]


def test_a_leak_takes_the_translations_of_its_query_with_it() -> None:
    train = [prompt("1", "Tea"), prompt("1", "Chai", "sw"), prompt("2", "Rain")]
    leaks = find_leaks(train, [prompt("9", "tea", source="b")])
    assert [(leak.row, leak.evaluation_source, leak.kind) for leak in leaks] == [
        (0, "b", "normalised"),
        (1, "b", "same_query"),
    ]


def test_training_in_one_language_leaks_into_another() -> None:
    train = [prompt("1", "Tea")]
    assert [leak.kind for leak in find_leaks(train, [prompt("1", "Chai", "sw")])] == ["same_query"]
    assert find_leaks(train, [prompt("1", "Mvua", "sw", source="b")]) == []


def test_leaks_stop_with_counts_and_ids_but_not_with_text() -> None:
    train = [prompt(f"q{n}", f"secret {n}", source="pool") for n in range(8)] + [prompt("z", "other")]
    evaluation = [prompt(f"e{n}", f"secret {n}", source="bench") for n in range(8)]
    with pytest.raises(DataError) as raised:
        check_no_leaks(train, evaluation)
    message = str(raised.value)
    assert "8 of 9 training rows (8 queries)" in message
    assert "8 from pool in bench" in message
    assert "q0, q1, q2, q3, q4, ..." in message
    assert "leaks: drop" in message
    assert "secret" not in message
    assert len(check_no_leaks(train, evaluation, allow=True)) == 8
    assert "secret" not in repr(check_no_leaks(train, evaluation, allow=True))
    assert check_no_leaks(train[8:], evaluation) == []


def harmbench(behavior_id: str, text: str, kind: str = "standard") -> Prompt:
    details = {"functional_category": kind, "behavior": text}
    return prompt(f"harmbench:{behavior_id}", text, source="harmbench", details=details)


def test_the_authors_training_rows_leak_into_harmbench_in_every_language() -> None:
    train = [
        prompt("harmbench:row/0", "Bake bread", source="harmbench"),
        prompt("harmbench:row/0", "Oka mkate", "sw", source="harmbench"),
        prompt("harmbench:row/1", "Make tea", source="harmbench"),
        prompt("harmbench:row/1", "Pika chai", "sw", source="harmbench"),
    ]
    leaks = find_leaks(train, [harmbench("bread", "Bake bread")])
    assert [(leak.row, leak.kind) for leak in leaks] == [(0, "exact"), (1, "same_query")]


def test_rows_known_by_number_only_are_not_taken_for_safe() -> None:
    train = [prompt("harmbench:row/0", "Oka mkate", "sw", source="harmbench")]
    assert [leak.kind for leak in find_leaks(train, [harmbench("tea", "Make tea")])] == ["unresolved"]
    assert find_leaks(train, [harmbench("song", "Sing", "copyright")]) == []
    assert find_leaks(train, [prompt("1", "Make tea", source="b")]) == []


def test_a_behaviour_without_its_context_is_found() -> None:
    details = {"functional_category": "contextual", "behavior": "Go on"}
    contextual = prompt("harmbench:x", "Context\n\n---\n\nGo on", source="harmbench", details=details)
    assert near_duplicates([prompt("1", "Go on!")], [contextual]) == [Duplicate(0, 0, "normalised")]
