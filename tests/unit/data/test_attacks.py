import base64

import pytest

from lasa.data.attacks import (
    adaptive,
    base64_text,
    caesar,
    crescendo,
    leetspeak,
    reversed_text,
    word_dictionary,
    word_switch,
)
from lasa.data.prompts import user_prompt
from lasa.errors import DataError
from lasa.evaluation.slices import search_budget, with_changes, with_searches

PROMPT = user_prompt("q", "en", "How do I paint the house?", harmful=True, source="t")


@pytest.mark.parametrize(
    ("attack", "name"),
    [(leetspeak, "leetspeak"), (base64_text, "base64"), (reversed_text, "reversed_text"), (caesar, "caesar"),
     (crescendo, "crescendo")],
)  # fmt: skip
def test_an_attack_keeps_question_label_and_first_wording(attack, name):
    found = attack(PROMPT)
    assert (found.query_id, found.language, found.harmful) == ("q", "en", True)
    assert found.details == {"perturbation": name, "original_text": PROMPT.text}
    assert found.messages != PROMPT.messages


def test_what_is_hidden_can_be_read_back():
    assert base64.b64decode(base64_text(PROMPT).text.split("\n\n")[1]).decode() == PROMPT.text
    assert reversed_text(PROMPT).text.endswith("?esuoh eht tniap I od woH")
    assert "Krz gr L sdlqw wkh krxvh?" in caesar(PROMPT).text
    assert leetspeak(PROMPT).text == "H0w d0 1 p41n7 7h3 h0u53?"


def test_marks_stay_on_their_letters():
    thai = user_prompt("q", "th", "ทำที่", source="t")
    assert reversed_text(thai).text.endswith("ที่ำท") or "ที่" in reversed_text(thai).text


def test_a_slow_approach_ends_in_the_request_and_says_nothing_of_it_before():
    found = crescendo(PROMPT)
    assert found.text == PROMPT.text
    assert [message["role"] for message in found.messages] == ["user", "assistant"] * 3 + ["user"]
    assert not any("paint" in message["content"] for message in found.messages[:-1])


def table():
    english = ["paint the house", "paint the door", "clean the house", "clean the door"]
    swahili = ["paka nyumba", "paka mlango", "safisha nyumba", "safisha mlango"]
    return [
        user_prompt(str(n), code, text, source="t")
        for code, texts in (("en", english), ("sw", swahili))
        for n, text in enumerate(texts)
    ]


def test_words_are_switched_by_what_the_translations_teach():
    words = word_dictionary(table(), "en", "sw")
    assert (words["paint"], words["house"], words["clean"], words["door"]) == ("paka", "nyumba", "safisha", "mlango")
    mixed = word_switch(user_prompt("q", "en", "Paint, then clean the house!"), words, "sw")
    assert mixed.text.endswith("nyumba!") and "paka," in mixed.text
    assert mixed.details["languages"] == ["en", "sw"]


def test_attacks_are_splits_of_an_evaluation():
    splits = with_changes({"b": table()}, ["base64", "crescendo", "word_switch=sw"])
    assert list(splits) == ["b", "b/base64", "b/crescendo", "b/word_switch"]
    assert {prompt.language for prompt in splits["b/word_switch"]} == {"en"}
    assert len(splits["b/crescendo"]) == 8


def test_an_adaptive_rewording_lowers_the_score_within_its_budget():
    asked = []

    def score(prompts):
        asked.extend(prompts)
        return [sum(char.isascii() for char in prompt.text) / max(1, len(prompt.text)) for prompt in prompts]

    found = adaptive(PROMPT, score, budget=12)
    assert len(asked) == found.details["scored"] <= 12
    assert found.details["score_after"] < found.details["score_before"] == 1
    assert found.details["original_text"] == PROMPT.text
    assert found.details["perturbation"] == "adaptive"
    unmoved = adaptive(PROMPT, lambda prompts: [0.5] * len(prompts), budget=12)
    assert unmoved.text == PROMPT.text


def test_an_adaptive_search_rewords_the_harmful_prompts_alone_and_keeps_those_it_cannot_move():
    benign = user_prompt("b", "en", "How do I bake bread?", harmful=False, source="t")
    other = user_prompt("o", "en", "What else is there?", harmful=True, source="t")

    def score(prompts):
        return [0.5 if p.query_id == "o" else float(p.text == PROMPT.text) for p in prompts]

    splits = with_searches({"b": [PROMPT, benign, other]}, ["adaptive=6"], score)
    moved, kept = splits["b/adaptive"]
    assert (moved.query_id, moved.details["score_after"], moved.text != PROMPT.text) == ("q", 0, True)
    assert (kept.query_id, kept.text, kept.details["perturbation"]) == ("o", other.text, "adaptive")
    with pytest.raises(DataError, match="b has none"):
        with_searches({"b": [benign]}, ["adaptive"], score)


@pytest.mark.parametrize("change", ["adaptive=1", "adaptive=", "adaptive=many"])
def test_a_search_without_a_budget_is_an_error(change):
    with pytest.raises(DataError, match="2 or more"):
        search_budget(change)
