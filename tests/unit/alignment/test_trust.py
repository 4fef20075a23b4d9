import pytest

from lasa.alignment.rows import token_rows
from lasa.alignment.settings import AlignmentSettings, SystemSettings
from lasa.alignment.trust import trusting_rows
from lasa.data.preferences import Preference
from lasa.data.prompts import user_prompt
from lasa.errors import DataError

BEHIND = {"method": "sft", "signal": "always", "guarded": True, "lora_rank": 2, "adapter": "behind_condition"}
REFUSALS = {"en": ["no", "never"], "sw": ["hapana"]}
TEXT = [user_prompt(f"t{n}", code, f"tea {n}", harmful=False) for n in range(4) for code in ("en", "sw")]
HARMFUL = [Preference(user_prompt(f"h{n}", "en", f"harm {n}", harmful=True), "own refusal", "yes") for n in range(2)]
HELPFUL = [Preference(user_prompt(f"b{n}", "en", f"help {n}", harmful=False), f"yes {n}", None) for n in range(10)]


def rows(second_look=0.0, text=TEXT, refusals=REFUSALS, scores=None):
    return trusting_rows([*HARMFUL, *HELPFUL], text, refusals, second_look, scores or fail, seed=0)


def fail(prompts):
    raise AssertionError("the interpreter is not asked without a second look")


def test_harmless_text_is_refused_in_its_language_beside_the_harmful_requests():
    found = rows()
    assert found[:2] == HARMFUL
    assert [one.prompt for one in found[2:]] == TEXT
    assert all(one.chosen in REFUSALS[one.prompt.language] and one.rejected is None for one in found[2:])
    assert {one.chosen for one in found[2:] if one.prompt.language == "en"} == {"no", "never"}


def test_the_second_look_is_at_what_the_interpreter_comes_closest_to_flagging():
    found = rows(0.2, scores=lambda prompts: [0.1 * int(prompt.query_id[1:]) for prompt in prompts])
    assert [one.chosen for one in found[10:]] == ["yes 9", "yes 8"]  # 2 of 12 rows, to the nearest: a fifth
    assert len(rows(0.5, scores=lambda prompts: [0.0] * len(prompts))) == 20
    with pytest.raises(DataError, match=r"second_look=0\.6 asks for 15 harmless requests"):
        rows(0.6)


def test_text_that_may_not_be_refused_with_is_left_out_and_a_language_without_refusal_is_named():
    assert len(rows(text=[*TEXT, user_prompt("x", "sw", "harm", harmful=True)])) == 10
    with pytest.raises(DataError, match="no refusal in sw"):
        rows(refusals={"en": ["no"]})
    with pytest.raises(DataError, match="there is none"):
        rows(text=[])


def test_an_adapter_behind_the_condition_learns_from_harmless_text_unless_told_otherwise():
    assert SystemSettings(**BEHIND).trusts
    assert not SystemSettings(**BEHIND, refusals_from="preferences").trusts
    assert not SystemSettings(**{**BEHIND, "signal": "interpreter"}).trusts
    assert not SystemSettings(method="kto", signal="always", guarded=True).trusts
    assert SystemSettings(method="kto", signal="always", guarded=True, refusals_from="harmless_text").trusts
    assert AlignmentSettings(preferences="own").harmless == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"signal": "interpreter", "refusals_from": "harmless_text"}, "set the signal always"),
     ({"refusals_from": "preferences", "second_look": 0.1}, "second_look belongs to refusals_from harmless_text")],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SystemSettings(**{**BEHIND, **changes})


def test_an_answer_that_stopped_at_a_limit_is_learned_without_an_end_of_the_turn(tokenizer):
    one = Preference(HELPFUL[0].prompt, "half a", "whole", "chosen")
    good, bad = sorted(token_rows(tokenizer, [one], [[]], seed=0), key=lambda row: not row.desirable)
    assert tokenizer.decode(good.completion_ids) == "half a"
    assert tokenizer.decode(bad.completion_ids) == "whole<|end|>"
