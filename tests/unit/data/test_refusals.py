from collections import Counter

import pytest

from lasa.data.language_id import identify_language
from lasa.data.refusals import read_refusals, refusals_in
from lasa.errors import DataError
from lasa.evaluation.judges.refusal_patterns import refusal_language
from lasa.guard.refusals import REFUSALS

SHIPPED = [(code, text) for code, wordings in read_refusals().items() for text in wordings]


def test_ten_languages_have_several_wordings_each():
    refusals = read_refusals()
    assert set(refusals) == {"en", "zh", "ko", "it", "vi", "ar", "th", "bn", "sw", "jv"}
    assert all(6 <= len(set(wordings)) == len(wordings) for wordings in refusals.values())
    assert all(REFUSALS[code] == wordings[0] for code, wordings in refusals.items())


@pytest.mark.parametrize(("code", "text"), SHIPPED)
def test_a_shipped_refusal_is_known_for_one_in_its_language(code, text):
    assert (refusal_language(text), identify_language(text)) == (code, code)


def test_the_wordings_of_a_language_take_turns():
    refusals = {"en": ["a", "b", "c"], "sw": ["d"]}
    drawn = refusals_in(["en", "sw"] * 6, refusals, seed=1)
    assert Counter(drawn[::2]) == {"a": 2, "b": 2, "c": 2} and drawn[1::2] == ["d"] * 6
    assert drawn == refusals_in(["en", "sw"] * 6, refusals, seed=1)
    assert len({tuple(refusals_in(["en"] * 3, refusals, seed)) for seed in range(20)}) > 1


def test_refusals_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('de = [" Das geht leider nicht. "]\njw = ["Ora bisa."]\n', encoding="utf-8")
    assert read_refusals(path) == {"de": ["Das geht leider nicht."], "jv": ["Ora bisa."]}
    with pytest.raises(DataError, match="no refusal in bn, sw; there are some in de, jv"):
        refusals_in(["de", "sw", "bn"], read_refusals(path), seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [("en = [", "not a readable TOML"), ("", "there are no refusals"), ("en = 'no'", "'en' must be a list of texts"),
     ("en = []", "must be a list"), ("en = [' ']", "none of them empty"), ("klingon = ['no']", "Unknown language")],
)  # fmt: skip
def test_what_holds_no_refusals_is_refused(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_refusals(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_of_refusals_is_named(tmp_path):
    with pytest.raises(DataError, match=r"mine\.toml: cannot be read"):
        read_refusals(tmp_path / "mine.toml")
