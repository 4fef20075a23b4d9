"""Refusals in the user's language, several wordings each: shipped for ten languages, or from a file of one's own."""

import random
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from lasa.errors import DataError
from lasa.languages import canonical_language

Refusals = Mapping[str, Sequence[str]]
"""Wordings by BCP-47 code."""


def read_refusals(path: Path | None = None) -> Refusals:
    """The refusals of a file, or those that ship with the package.

    Args:
        path: A TOML file with a list of texts for each language code; None for the shipped ones.

    Raises:
        DataError: The file is missing, no TOML, or holds something else; file and language are named.
    """
    if path is None:
        return parse_refusals(files("lasa.data").joinpath("refusals.toml").read_text("utf-8"), "refusals.toml")
    try:
        return parse_refusals(path.read_bytes().decode("utf-8-sig"), str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Give a TOML file of refusals.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}. Save the file as UTF-8.") from error


def parse_refusals(document: str, where: str) -> Refusals:
    """The refusals in a TOML text.

    Raises:
        DataError: It is no TOML, or a language has no texts.
    """
    try:
        found = tomllib.loads(document)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{where} is not a readable TOML file: {error}.") from error
    if not found:
        raise DataError(f"{where}: there are no refusals. Write a list of texts for each language: en = [...].")
    refusals = {}
    for code, wordings in found.items():
        texts = wordings if isinstance(wordings, list) else []
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{where}: {code!r:.60} must be a list of texts, none of them empty.")
        try:
            refusals[canonical_language(code)] = [text.strip() for text in texts]
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    return refusals


def refusals_in(languages: Sequence[str], refusals: Refusals, seed: int) -> list[str]:
    """A refusal for each of these languages, as they come; the wordings of a language take turns.

    Args:
        languages: BCP-47 codes, such as the prompts' own.
        refusals: The wordings.
        seed: Of the wordings' order.

    Raises:
        DataError: There is no refusal in one of the languages.
    """
    missing = sorted(set(languages) - refusals.keys())
    if missing:
        raise DataError(
            f"There is no refusal in {', '.join(missing)}; there are some in {', '.join(refusals)}. Leave the language "
            "out, or set alignment.refusals to a file of your own that has it."
        )
    draw = random.Random(f"{seed}/refusals")
    orders = {code: draw.sample(list(wordings), len(wordings)) for code, wordings in refusals.items()}
    turns = dict.fromkeys(refusals, 0)
    found = []
    for code in languages:
        found.append(orders[code][turns[code] % len(orders[code])])
        turns[code] += 1
    return found
