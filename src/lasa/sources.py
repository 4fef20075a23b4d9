"""Where tables come from: a file, a known public corpus in its original format, or the embedded world.

A source is written `path`, `corpus:path` (see `lasa.corpora`) or `embedded:name`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from lasa.alignment.rows import Preference, read_preferences
from lasa.corpora import LOADERS, load_corpus
from lasa.errors import DataError
from lasa.prompts import Columns, Prompt, read_prompts

T = TypeVar("T")


def load_prompts(source: str, columns: Columns | None = None) -> list[Prompt]:
    """The prompts of a source.

    Raises:
        DataError: The source does not exist or is not what it claims to be.
    """
    kind, _, rest = source.partition(":")
    if kind == "embedded":
        from lasa.embedded.world.tables import PROMPT_TABLES

        return _named(PROMPT_TABLES, rest)()
    if rest and kind in LOADERS:
        return load_corpus(kind, Path(rest))
    return read_prompts(Path(source), columns)


def short_names(sources: Sequence[str]) -> dict[str, str]:
    """Sources by a short name each: the embedded table's, the corpus's or the file's; in full where two agree."""
    names = [
        Path(rest).stem if kind == "embedded" else (kind if rest and kind in LOADERS else Path(source).stem)
        for source in sources
        for kind, _, rest in [source.partition(":")]
    ]
    return {source if names.count(name) > 1 else name: source for name, source in zip(names, sources, strict=True)}


def load_preferences(source: str) -> list[Preference]:
    """The preferences of a source (a file, or `embedded:name`).

    Raises:
        DataError: The source does not exist or is not what it claims to be.
    """
    kind, _, rest = source.partition(":")
    if kind == "embedded":
        from lasa.embedded.world.tables import PREFERENCE_TABLES

        return _named(PREFERENCE_TABLES, rest)()
    return read_preferences(Path(source))


def _named(tables: dict[str, T], name: str) -> T:
    if name not in tables:
        raise DataError(f"The embedded world has no table {name!r}; it has: {', '.join(tables)}.")
    return tables[name]
