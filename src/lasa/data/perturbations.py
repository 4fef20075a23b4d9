"""Surface changes that leave the meaning of a request as it is: what a guard that reads meaning must not be fooled by.

Every function takes a prompt and gives a new one with the last user message changed. `details["perturbation"]` names
the change (several are joined by `+`), `details["original_text"]` keeps the first wording for judges. Query id and
language stay, so results pair with those of the unchanged prompt. Random changes depend on the seed and the prompt
alone, not on its place in a table.
"""

import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

from lasa.data.prompts import Message, Prompt
from lasa.errors import DataError
from lasa.extras import named_extras
from lasa.languages import NAMES, canonical_language

CLAUSE = re.compile(r".+?(?:[.!?;:,。！？；：，、।؟،؛\n]+\s*|$)", re.DOTALL)
WITHOUT_SPACES = ("zh", "ja", "th", "lo", "km", "my")
"""Languages written without spaces between words; their smallest unit here is the written character."""

LOOKALIKES = str.maketrans("aceiopsxyABCEHIKMOPTXY", "асеіорѕхуАВСЕНІКМОРТХУ")
"""Latin letters and the Cyrillic letters that look like them."""

ZERO_WIDTH_SPACE = "\u200b"

Perturbation = Literal["code_switch", "romanise", "typos", "casing", "zero_width", "homoglyphs", "split_turns"]
"""The changes that need nothing but a table of prompts."""


def perturbed(prompts: Sequence[Prompt], change: Perturbation, seed: int = 0) -> list[Prompt]:
    """Changed copies of a table, without the rows that the change leaves as they are.

    Casing does nothing to Thai, romanising nothing to plain English; code switching needs a translation of the same
    query in the table (the next language's, in the order of the codes).

    Raises:
        DataError: Romanising without anyascii installed.
    """
    match change:
        case "code_switch":
            copies = [code_switch(p, other) for p, other in zip(prompts, _translations(prompts), strict=True) if other]
        case "romanise":
            copies = [romanise(p) for p in prompts]
        case "split_turns":
            copies = [split_turns(p) for p in prompts]
        case _:
            noise = {"typos": typos, "casing": casing, "zero_width": zero_width, "homoglyphs": homoglyphs}
            copies = [noise[change](p, seed) for p in prompts]
    return [copy for copy in copies if copy.text != copy.details["original_text"]]


def code_switch(prompt: Prompt, other: Prompt, unit: Literal["clause", "word"] = "clause") -> Prompt:
    """Alternate between a question and its translation, clause by clause or word by word.

    Both texts are cut into as many parts as the one with fewer units has; odd parts come from `prompt`, even ones from
    `other`. Where one of them is a single clause, the first half comes from `prompt` and the second from `other`.

    Raises:
        DataError: The prompts are not one question in two languages.
    """
    if prompt.query_id != other.query_id or prompt.language == other.language:
        raise DataError(
            f"Code switching needs one question in two languages; these are {prompt.query_id} ({prompt.language}) and "
            f"{other.query_id} ({other.language})."
        )
    first, second = (_clauses(p.text) if unit == "clause" else words_of(p) for p in (prompt, other))
    parts = min(len(first), len(second))
    if parts < 2:
        first, second, parts = words_of(prompt), words_of(other), 2
    pairs = zip(_cut(first, parts), _cut(second, parts), strict=True)
    mixed = [mine if number % 2 == 0 else theirs for number, (mine, theirs) in enumerate(pairs)]
    text = " ".join(part.strip() for part in mixed if part.strip())
    return reworded(prompt, text, "code_switch", languages=[prompt.language, other.language])


def romanise(prompt: Prompt) -> Prompt:
    """Write the text in plain Latin letters (transliteration by anyascii)."""
    with named_extras():
        from anyascii import anyascii
    return reworded(prompt, anyascii(prompt.text), "romanise")


def typos(prompt: Prompt, seed: int = 0, rate: float = 0.2) -> Prompt:
    """Swap, drop or double a character inside words of four or more; at least one word, where there is one.

    Args:
        prompt: The prompt.
        seed: Seed of the choice.
        rate: Share of the words to misspell, 0 to 1.
    """
    draw = _draw(prompt, seed, "typos")
    words = re.split(r"(\s+)", prompt.text)
    eligible = [place for place, word in enumerate(words) if len(_characters(word)) >= 4]
    for place in draw.sample(eligible, _share(eligible, rate)):
        words[place] = _misspelt(words[place], draw)
    return reworded(prompt, "".join(words), "typos")


def casing(prompt: Prompt, seed: int = 0) -> Prompt:
    """Set every letter in upper or lower case at random; scripts without case stay as they are."""
    draw = _draw(prompt, seed, "casing")
    cased = (char.upper() if draw.random() < 0.5 else char.lower() for char in prompt.text)
    return reworded(prompt, "".join(cased), "casing")


def zero_width(prompt: Prompt, seed: int = 0, rate: float = 0.3) -> Prompt:
    """Put zero-width spaces between characters of a word, never between a letter and its marks.

    Args:
        prompt: The prompt.
        seed: Seed of the choice.
        rate: Share of the places to fill, 0 to 1; at least one, where there is one.
    """
    characters = _characters(prompt.text)
    places = [n for n, pair in enumerate(pairwise(characters), 1) if not any(character.isspace() for character in pair)]
    for place in _draw(prompt, seed, "zero_width").sample(places, _share(places, rate)):
        characters[place] = ZERO_WIDTH_SPACE + characters[place]
    return reworded(prompt, "".join(characters), "zero_width")


def homoglyphs(prompt: Prompt, seed: int = 0, rate: float = 0.3) -> Prompt:
    """Replace Latin letters by Cyrillic ones that look the same; other scripts stay as they are.

    Args:
        prompt: The prompt.
        seed: Seed of the choice.
        rate: Share of the replaceable letters to replace, 0 to 1; at least one, where there is one.
    """
    characters = list(prompt.text)
    places = [place for place, char in enumerate(characters) if ord(char) in LOOKALIKES]
    for place in _draw(prompt, seed, "homoglyphs").sample(places, _share(places, rate)):
        characters[place] = characters[place].translate(LOOKALIKES)
    return reworded(prompt, "".join(characters), "homoglyphs")


def assistant_prefill(prompt: Prompt, prefill: str) -> Prompt:
    """Have the caller write the beginning of the answer: `details["prefill"]`; no message changes."""
    return replace(prompt, details=with_details(prompt, "assistant_prefill", prefill=prefill))


def split_turns(prompt: Prompt, turns: int = 2, acknowledgement: str = "OK.") -> Prompt:
    """Say the text over several user turns, each but the last acknowledged by the assistant.

    Cut at clauses where there are enough of them, else at words. The last message alone is then what `Prompt.text`
    gives; `details["original_text"]` has the whole.

    Args:
        prompt: The prompt.
        turns: Number of user turns, at least 2; fewer where the text has fewer words.
        acknowledgement: What the assistant says between the turns.
    """
    if turns < 2:
        raise DataError(f"split_turns needs at least 2 turns, not {turns}.")
    units = _clauses(prompt.text)
    if len(units) < turns:
        units = words_of(prompt)
    said = [part.strip() for part in _cut(units, min(turns, len(units)))]
    messages: list[Message] = []
    for part in said[:-1]:
        messages += [{"role": "user", "content": part}, {"role": "assistant", "content": acknowledgement}]
    place = _last_user(prompt)
    last: Message = {"role": "user", "content": said[-1]}
    return replace(
        prompt,
        messages=(*prompt.messages[:place], *messages, last, *prompt.messages[place + 1 :]),
        details=with_details(prompt, "split_turns", original_text=prompt.text),
    )


def answer_in(prompt: Prompt, language: str) -> Prompt:
    """Ask in one language for an answer in another: "Answer in X." below the text, `details["answer_language"]`.

    Raises:
        DataError: The language is unknown.
    """
    code = canonical_language(language)
    text = f"{prompt.text}\n\nAnswer in {NAMES[code]}."
    return reworded(prompt, text, "answer_in", answer_language=code)


def _translations(prompts: Sequence[Prompt]) -> list[Prompt | None]:
    """For each prompt the same query in the next of its languages, None where it has one language only."""
    queries: dict[tuple[str, str], dict[str, Prompt]] = {}
    for prompt in prompts:
        queries.setdefault(prompt.question, {})[prompt.language] = prompt
    partners: list[Prompt | None] = []
    for prompt in prompts:
        known = queries[prompt.question]
        codes = sorted(known)
        following = codes[(codes.index(prompt.language) + 1) % len(codes)]
        partners.append(known[following] if following != prompt.language else None)
    return partners


def reworded(prompt: Prompt, text: str, name: str, **details: Any) -> Prompt:
    """A copy with another last user message, and the change's name and further details."""
    place = _last_user(prompt)
    messages = (*prompt.messages[:place], {"role": "user", "content": text}, *prompt.messages[place + 1 :])
    return replace(prompt, messages=messages, details=with_details(prompt, name, original_text=prompt.text, **details))


def with_details(prompt: Prompt, name: str, **added: Any) -> dict[str, Any]:
    """A prompt's details with a change's name; the first wording stays the first."""
    before = prompt.details
    if "original_text" in before:
        added.pop("original_text", None)
    names = f"{before['perturbation']}+{name}" if "perturbation" in before else name
    return {**before, "perturbation": names, **added}


def _last_user(prompt: Prompt) -> int:
    return max(place for place, message in enumerate(prompt.messages) if message["role"] == "user")


def _draw(prompt: Prompt, seed: int, name: str) -> random.Random:
    return random.Random(f"{seed}/{name}/{prompt.query_id}/{prompt.language}/{prompt.text}")


def _share(places: list[int], rate: float) -> int:
    if not 0 <= rate <= 1:
        raise DataError(f"The rate of a perturbation is a share between 0 and 1, not {rate}.")
    return min(len(places), max(1, round(rate * len(places))))


def _clauses(text: str) -> list[str]:
    return CLAUSE.findall(text)


def words_of(prompt: Prompt) -> list[str]:
    """The words of a text with the spaces behind them; written characters where there are no spaces."""
    return _characters(prompt.text) if prompt.language in WITHOUT_SPACES else re.findall(r"\S+\s*", prompt.text)


def _characters(text: str) -> list[str]:
    """Characters as written: a letter together with the marks and joiners that follow it."""
    written: list[str] = []
    for char in text:
        if written and (unicodedata.category(char).startswith("M") or "\u200d" in (char, written[-1][-1])):
            written[-1] += char
        else:
            written.append(char)
    return written


def _cut(units: list[str], parts: int) -> list[str]:
    return ["".join(units[len(units) * n // parts : len(units) * (n + 1) // parts]) for n in range(parts)]


def _misspelt(word: str, draw: random.Random) -> str:
    characters = _characters(word)
    place = draw.randrange(1, len(characters) - 2)
    first, second = characters[place : place + 2]
    edits = (
        [[second], [first, first, second]] if first == second else [[second, first], [second], [first, first, second]]
    )
    characters[place : place + 2] = draw.choice(edits)
    return "".join(characters)
