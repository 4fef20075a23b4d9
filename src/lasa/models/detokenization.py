"""Text from tokens as they come: whole characters only, and stop texts that may span tokens."""

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "�"
"""What stands for part of a character in decoded text."""


class GrowingText:
    """Decodes a growing row of tokens; the pieces joined are the text of the whole row.

    A token may hold part of a character only, and how a token is written can depend on the one before it. So a window
    of tokens is decoded with and without the newest, and text is given out once it ends in a whole character.

    Args:
        tokenizer: The tokenizer of the tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._given = 0  # tokens of the window whose text was given out

    def add(self, token: int) -> None:
        """Take the next token."""
        self._window.append(token)

    def new(self) -> str:
        """The text that became certain with the tokens since it was last asked for; often "" inside a character."""
        text = self._new_text() if self._given < len(self._window) else ""
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._window = self._window[self._given :]
        self._given = len(self._window)
        return text

    def rest(self) -> str:
        """What is left when no more tokens come: an unfinished character as its replacement sign."""
        text = self._new_text()
        self._given = len(self._window)
        return text

    def _new_text(self) -> str:
        return self._decode(self._window)[len(self._decode(self._window[: self._given])) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def cut_at_stop(text: str, stops: Sequence[str]) -> str | None:
    """The text before the earliest stop text in it, or None where there is none."""
    found = [text.index(stop) for stop in stops if stop in text]
    return text[: min(found)] if found else None


def safe_length(text: str, stops: Sequence[str]) -> int:
    """How much of a text cannot become part of a stop text: everything but a tail that begins one."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for start in range(max(0, len(text) - longest), len(text)):
        if any(stop.startswith(text[start:]) for stop in stops):
            return start
    return len(text)
