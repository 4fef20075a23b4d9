import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lasa.models.detokenization import GrowingText, cut_at_stop, safe_length


def added(growing, token):
    growing.add(token)
    return growing.new()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40), special=st.booleans())
def test_the_pieces_joined_are_the_text(tokenizer, text, special):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if special:
        ids = [*ids[:3], tokenizer.eos_token_id, *ids[3:]]
    growing = GrowingText(tokenizer)
    joined = "".join([added(growing, token) for token in ids] + [growing.rest()])
    assert joined == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_a_character_of_several_tokens_is_given_out_whole(tokenizer):
    ids = tokenizer("你", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3
    growing = GrowingText(tokenizer)
    assert [added(growing, token) for token in ids] == ["", "", "你"]


def test_an_unfinished_character_is_shown_as_such_at_the_end(tokenizer):
    growing = GrowingText(tokenizer)
    assert added(growing, tokenizer("你", add_special_tokens=False)["input_ids"][0]) == ""
    assert growing.rest() == "\N{REPLACEMENT CHARACTER}"
    assert growing.rest() == ""


@pytest.mark.parametrize(
    ("text", "stops", "cut"),
    [
        ("abcdef", ("d",), "abc"),
        ("abcdef", ("ef", "bc"), "a"),
        ("abc", ("x",), None),
        ("abc", ("a",), ""),
        ("a", (), None),
    ],
)
def test_text_ends_before_the_earliest_stop(text, stops, cut):
    assert cut_at_stop(text, stops) == cut


@pytest.mark.parametrize(
    ("text", "stops", "safe"),
    [("hello EN", ("END",), 6), ("hello", ("END",), 5), ("E", ("END",), 0), ("aab", ("abc", "x"), 1), ("abc", (), 3)],
)
def test_a_tail_that_may_become_a_stop_text_is_held_back(text, stops, safe):
    assert safe_length(text, stops) == safe
