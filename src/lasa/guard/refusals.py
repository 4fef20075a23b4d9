"""Fixed messages in the place of an answer: the refusals of `refuse` (the first wording of each language), and help."""

import tomllib
from collections.abc import Mapping
from importlib.resources import files

from lasa.conditioning.decision import Action
from lasa.data.refusals import read_refusals

REFUSALS = {code: wordings[0] for code, wordings in read_refusals().items()}
HELP: dict[str, str] = tomllib.loads(files("lasa.data").joinpath("help.toml").read_text("utf-8"))
"""For someone who may be in distress."""


def refusal_message(language: str | None) -> str:
    """The refusal in a language; in all of them, a line each, where the user's is unknown or not among them.

    Args:
        language: BCP-47 code, or None.
    """
    return _in(REFUSALS, language)


def fixed_message(action: Action, language: str | None) -> str:
    """The message of an action that replaces the answer, in a language or in all of them."""
    return _in(HELP, language) if action == "help" else refusal_message(language)


def _in(messages: Mapping[str, str], language: str | None) -> str:
    return messages.get(language or "", "\n".join(messages.values()))
