"""Kinds of harm: a small taxonomy over MLCommons' hazards, and what each corpus calls them (`harm.toml`)."""

import tomllib
from importlib.resources import files

from lasa.data.prompts import Prompt

_TABLE = tomllib.loads(files("lasa.data").joinpath("harm.toml").read_text("utf-8"))

HAZARDS: dict[str, tuple[str, ...]] = {name: tuple(codes) for name, codes in _TABLE["hazards"].items()}
"""The categories, and the codes of MLCommons' AILuminate taxonomy that each covers."""

CORPORA: dict[str, dict[str, str]] = _TABLE["corpora"]
"""By corpus, the category of each of its own categories that stands for one kind of harm."""

_BY_CODE = {code: name for name, codes in HAZARDS.items() for code in codes}


def harm_categories(prompt: Prompt) -> tuple[str, ...]:
    """The categories that a harmful prompt is labelled with, the corpus's first one first; empty where none is known.

    Besides the corpora of the table, any source may label its prompts with the taxonomy's own names or with codes.
    """
    if not prompt.harmful:
        return ()
    tags = prompt.details.get("tags", ())
    labels = [prompt.category, *(tag for tag in tags if isinstance(tag, str))]
    known = CORPORA.get(prompt.source, {})
    found = (known.get(label) or _BY_CODE.get(label) or (label if label in HAZARDS else None) for label in labels)
    return tuple(dict.fromkeys(name for name in found if name))
