"""Text as it is read: what looks the same is the same, and what cannot be seen is not there.

For finding phrases and letters, not for showing: the text comes out in lower case, without vowel marks or Markdown.
"""

import re
import unicodedata


def as_read(text: str) -> str:
    """A text in lower case with plain letters, apostrophes and single spaces.

    Full-width and other forms of compatibility become plain (NFKC). Invisible characters (zero-width spaces and
    joiners, soft hyphens, marks of direction, variation selectors), Arabic vowel marks and Markdown signs are dropped;
    letters of another script that look like Latin ones, inside a word with Latin letters, become Latin.
    """
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    text = _WORD.sub(_plain_letters, text.lower().translate(_APOSTROPHES))
    text = unicodedata.normalize("NFC", _ARABIC_MARKS.sub("", _MARKDOWN.sub("", text)))
    return re.sub(r"\s+", " ", text).strip()


def is_empty(text: str) -> bool:
    """Whether a text has no visible character."""
    return not _INVISIBLE.sub("", text).strip()


def _plain_letters(match: re.Match[str]) -> str:
    word = match[0]
    return word.translate(_LOOKALIKES) if _LATIN.search(word) and not _LATIN.fullmatch(word) else word


_INVISIBLE = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    r"\ufeff\uffa0\U000e0000-\U000e0fff]"
)
_ARABIC_MARKS = re.compile(
    r"[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed]"
)
_MARKDOWN = re.compile(r"[*_#>\"“”]+")
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘`´ʼ＇", "'"))
_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile(r"[a-z]+")
_LOOKALIKES = str.maketrans("асеіорѕхуһӏԁνοι", "aceiopsxyhldvoi")
