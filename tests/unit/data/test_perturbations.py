import unicodedata

import pytest

from lasa.data import perturbations as perturb
from lasa.data.corpora.audit import normalise
from lasa.data.prompts import Prompt, user_prompt
from lasa.errors import DataError

ENGLISH = "First wash the rice well. Then boil two cups of water, and let everything rest!"
SWAHILI = "Kwanza osha mchele vizuri. Kisha chemsha vikombe viwili vya maji, na uache vyote vitulie!"


def asked(text: str = ENGLISH, language: str = "en", query_id: str = "q1") -> Prompt:
    return user_prompt(query_id, language, text, harmful=False, source="s", details={"answer": "rice"})


CHANGES = {
    "code_switch": lambda p: perturb.code_switch(p, asked(SWAHILI, "sw")),
    "romanise": perturb.romanise,
    "typos": perturb.typos,
    "casing": perturb.casing,
    "zero_width": perturb.zero_width,
    "homoglyphs": perturb.homoglyphs,
    "assistant_prefill": lambda p: perturb.assistant_prefill(p, "Sure"),
    "split_turns": perturb.split_turns,
    "answer_in": lambda p: perturb.answer_in(p, "sw"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_named_and_keeps_what_the_prompt_is(name: str) -> None:
    before = asked()
    after = CHANGES[name](before)
    assert after.details["perturbation"] == name
    assert after.details["answer"] == "rice"
    assert (after.query_id, after.language, after.harmful, after.source) == ("q1", "en", False, "s")
    assert after == CHANGES[name](before)
    assert before == asked()
    assert Prompt.from_json(after.to_json()) == after


@pytest.mark.parametrize("name", sorted(set(CHANGES) - {"assistant_prefill"}))
def test_only_the_last_user_message_changes(name: str) -> None:
    system = {"role": "system", "content": "Be kind."}
    earlier = {"role": "user", "content": ENGLISH}
    answer = {"role": "assistant", "content": ENGLISH}
    tool = {"role": "tool", "content": ENGLISH}
    text = "Émile paid " + ENGLISH
    before = Prompt("q1", "en", (system, earlier, answer, {"role": "user", "content": text}, tool))
    after = CHANGES[name](before)
    assert after.messages[:3] == before.messages[:3]
    assert after.messages[-1] == tool
    assert after.text != before.text
    assert after.details["original_text"] == text


def test_changes_that_are_stacked_are_all_named() -> None:
    after = perturb.casing(perturb.typos(asked()))
    assert after.details["perturbation"] == "typos+casing"
    assert after.details["original_text"] == ENGLISH


@pytest.mark.parametrize("change", [perturb.typos, perturb.casing, perturb.zero_width, perturb.homoglyphs])
def test_random_changes_follow_the_seed_and_the_prompt(change) -> None:  # type: ignore[no-untyped-def]
    assert change(asked(), seed=1).text != change(asked(), seed=2).text
    assert change(asked(query_id="q2")).text != change(asked(query_id="q1")).text


def test_code_switching_alternates_clauses() -> None:
    mixed = perturb.code_switch(asked(), asked(SWAHILI, "sw"))
    assert mixed.text == "First wash the rice well. Kisha chemsha vikombe viwili vya maji, and let everything rest!"
    assert mixed.details["languages"] == ["en", "sw"]


def test_code_switching_by_word_takes_about_half_of_each() -> None:
    mixed = perturb.code_switch(asked("a1 a2 a3 a4"), asked("b1 b2 b3 b4", "sw"), "word")
    assert mixed.text == "a1 b2 a3 b4"


def test_code_switching_one_clause_takes_half_of_each() -> None:
    mixed = perturb.code_switch(asked("wash the rice well"), asked("把米洗干净", "zh"))
    assert mixed.text == "wash the 洗干净"


def test_code_switching_needs_one_question_in_two_languages() -> None:
    with pytest.raises(DataError, match="q1"):
        perturb.code_switch(asked(), asked(SWAHILI, "sw", "q2"))
    with pytest.raises(DataError, match="two languages"):
        perturb.code_switch(asked(), asked())


@pytest.mark.parametrize(
    ("text", "language"), [("怎么做面包？", "zh"), ("ข้าวสวย", "th"), ("خبز", "ar"), ("রুটি", "bn"), ("밥", "ko")]
)
def test_romanised_text_is_ascii_letters(text: str, language: str) -> None:
    romanised = perturb.romanise(asked(text, language)).text
    assert romanised.isascii()
    assert any(char.isalpha() for char in romanised)


def test_typos_stay_inside_long_words() -> None:
    text = "Rice or tea in the afternoon"
    for seed in range(20):
        words = perturb.typos(asked(text), seed=seed, rate=1.0).text.split(" ")
        assert words[1:5] == ["or", "tea", "in", "the"]
        assert words[0] != "Rice"
        assert words[5] != "afternoon"
        assert (words[5][0], words[5][-1]) == ("a", "n")
    assert perturb.typos(asked("Tea or no")).text == "Tea or no"


def test_casing_changes_nothing_but_case() -> None:
    after = perturb.casing(asked()).text
    assert after != ENGLISH
    assert after.lower() == ENGLISH.lower()
    assert perturb.casing(asked("怎么做面包？", "zh")).text == "怎么做面包？"


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), ("हिन्दी में लिखिए", "hi"), ("ข้าวสวยอร่อย", "th")])
def test_zero_width_spaces_are_invisible_and_never_before_a_mark(text: str, language: str) -> None:
    after = perturb.zero_width(asked(text, language), rate=1.0).text
    assert after.replace("\u200b", "") == text
    assert "\u200b" in after
    assert normalise(after) == normalise(text)
    for place, char in enumerate(after[:-1]):
        if char == "\u200b":
            assert not unicodedata.category(after[place + 1]).startswith("M")
            assert not after[place - 1].isspace()


def test_homoglyphs_are_other_letters_of_the_same_number() -> None:
    after = perturb.homoglyphs(asked(), rate=1.0).text
    assert len(after) == len(ENGLISH)
    changed = [(a, b) for a, b in zip(ENGLISH, after, strict=True) if a != b]
    assert changed
    assert all(
        unicodedata.name(a).startswith("LATIN") and unicodedata.name(b).startswith("CYRILLIC") for a, b in changed
    )
    assert [unicodedata.name(a)[6:13] for a, _ in changed] == [
        "SMALL L" if a.islower() else "CAPITAL" for a, _ in changed
    ]
    assert not set("aceiopsxy") & set(after)


def test_a_prefill_leaves_the_messages_alone() -> None:
    after = perturb.assistant_prefill(asked(), "Sure, here")
    assert after.messages == asked().messages
    assert after.details["prefill"] == "Sure, here"


def test_split_turns_say_everything_in_order() -> None:
    after = perturb.split_turns(asked(), turns=3)
    assert [m["role"] for m in after.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert " ".join(m["content"] for m in after.messages if m["role"] == "user") == ENGLISH
    assert {m["content"] for m in after.messages if m["role"] == "assistant"} == {"OK."}


def test_split_turns_cut_words_where_clauses_are_few() -> None:
    said = [m["content"] for m in perturb.split_turns(asked("wash rice well"), turns=5).messages if m["role"] == "user"]
    assert said == ["wash", "rice", "well"]
    with pytest.raises(DataError, match="at least 2"):
        perturb.split_turns(asked(), turns=1)


def test_answering_in_another_language_is_asked_and_recorded() -> None:
    after = perturb.answer_in(asked("Is tea hot?"), "jw")
    assert after.text == "Is tea hot?\n\nAnswer in Javanese."
    assert after.details["answer_language"] == "jv"
    with pytest.raises(DataError, match="Unknown language"):
        perturb.answer_in(asked(), "xx")


def test_a_rate_beyond_its_bounds_is_an_error() -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        perturb.homoglyphs(asked(), rate=1.5)


class TestTables:
    TABLE = (asked(), asked(SWAHILI, "sw"), asked("怎么做面包？", "zh", "q2"), asked("plain", "en", "q3"))

    def test_only_the_copies_that_change_are_given(self) -> None:
        assert [p.query_id for p in perturb.perturbed(self.TABLE, "casing")] == ["q1", "q1", "q3"]
        assert [p.query_id for p in perturb.perturbed(self.TABLE, "romanise")] == ["q2"]
        assert [p.query_id for p in perturb.perturbed(self.TABLE, "split_turns")] == ["q1", "q1", "q2"]
        for copy in perturb.perturbed(self.TABLE, "homoglyphs"):
            assert copy.text != copy.details["original_text"]

    def test_code_switching_pairs_translations_of_one_source(self) -> None:
        copies = perturb.perturbed(self.TABLE, "code_switch")
        assert [p.details["languages"] for p in copies] == [["en", "sw"], ["sw", "en"]]
        assert [p.language for p in copies] == ["en", "sw"]
        assert perturb.perturbed(self.TABLE[:1], "code_switch") == []

    def test_the_seed_decides(self) -> None:
        assert perturb.perturbed(self.TABLE, "typos", 1) == perturb.perturbed(self.TABLE, "typos", 1)
        assert perturb.perturbed(self.TABLE, "typos", 1) != perturb.perturbed(self.TABLE, "typos", 2)
