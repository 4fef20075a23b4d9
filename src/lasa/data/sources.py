"""Where tables come from: a file, a dataset, a known public corpus in its original format, or the embedded world.

A source is written `path`, `hf:owner/name` (a Hugging Face dataset), `corpus:path` (see `lasa.data.corpora`) or
`embedded:name`. A corpus with splits is read whole, or as `corpus:path?split=test`. Several are one table where they
are written `one + other`: a corpus of harmful questions and a file of harmless requests, say.

The columns of a file or dataset are declared behind a question mark where they have other names:
`questions.csv?prompt=text&language=lang`, `hf:owner/name?split=test&prompt=text&in_language=en`. What can be declared:
the names in `lasa.data.prompts.Columns`, `label` (of every row without one), `in_language` (of every row without one),
and a dataset's `split`, `config` and `revision`.
"""

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from lasa.data.corpora import LOADERS, load_corpus
from lasa.data.corpora.hub import load_from_hub
from lasa.data.preferences import Preference, read_preferences
from lasa.data.prompts import LABELS, Columns, Prompt, read_prompts
from lasa.errors import DataError
from lasa.files.artifacts import file_hash, fingerprint

T = TypeVar("T")

COLUMN_NAMES = tuple(field.name for field in fields(Columns))
HUB_NAMES = ("split", "config", "revision")

_NAMED = re.compile(r"([A-Za-z0-9._-]+)=(.+)")


JOINED = " + "


def load_prompts(source: str) -> list[Prompt]:
    """The prompts of a source.

    Raises:
        DataError: The source does not exist, is not what it claims to be, or declares what it cannot; or two that are
            joined hold the same question.
    """
    tables = {part: _load_one(part) for part in source.split(JOINED)}
    asked = [prompt for prompts in tables.values() for prompt in prompts]
    if len(tables) > 1:
        owners: dict[tuple[str, str], str] = {}
        for part, prompts in tables.items():
            for prompt in prompts:
                owner = owners.setdefault((prompt.query_id, prompt.language), part)
                if owner != part:
                    raise DataError(
                        f"Query {prompt.query_id!r} is in {owner} and in {part}, both in {prompt.language}. Equal "
                        "query ids mean translations of one question: rename them in one of the files."
                    )
    return asked


def _load_one(source: str) -> list[Prompt]:
    kind, _, rest = source.partition(":")
    if kind == "embedded":
        from lasa.data.world.tables import PROMPT_TABLES

        return _named(PROMPT_TABLES, rest)()
    if rest and kind in LOADERS:
        return _of_corpus(kind, rest)
    if rest and kind == "hf":
        dataset, declared = _declarations(rest, HUB_NAMES)
        return load_from_hub(dataset, **declared)
    path, declared = _declarations(source)
    return read_prompts(Path(path), **declared)


def named_sources(sources: Sequence[str]) -> dict[str, str]:
    """Sources by name: as in `name=source`, else that of the table, corpus or file; in full where two agree.

    Raises:
        DataError: Two have the same name.
    """
    given = [match.groups() if (match := _NAMED.fullmatch(source)) else ("", source) for source in sources]
    short = ["" if name else "+".join(map(_short_name, source.split(JOINED))) for name, source in given]
    found: dict[str, str] = {}
    for (name, source), own in zip(given, short, strict=True):
        called = name or (source if short.count(own) > 1 else own)
        if called in found:
            raise DataError(f"Two sources have the name {called!r}. Write another one: name={source}.")
        found[called] = source
    return found


def _short_name(source: str) -> str:
    kind, _, rest = source.partition(":")
    return Path(rest).stem if kind == "embedded" else kind if kind in LOADERS else Path(source.partition("?")[0]).stem


def load_preferences(source: str) -> list[Preference]:
    """The preferences of a source (a file, or `embedded:name`).

    Raises:
        DataError: The source does not exist or is not what it claims to be.
    """
    kind, _, rest = source.partition(":")
    if kind == "embedded":
        from lasa.data.world.tables import PREFERENCE_TABLES

        return _named(PREFERENCE_TABLES, rest)()
    return read_preferences(Path(source))


def source_hash(source: str) -> str | None:
    """Hash of the files or folders that a source names; None where it is no file: missing, embedded, or on a hub."""
    hashes = [found for part in source.split(JOINED) if (found := _hash_of_one(part))]
    return hashes[0] if len(hashes) == 1 else fingerprint(hashes) if hashes else None


def _hash_of_one(source: str) -> str | None:
    kind, _, rest = source.partition(":")
    path = Path((rest if rest and kind in LOADERS else source).partition("?")[0])
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        return fingerprint({file.relative_to(path).as_posix(): file_hash(file) for file in files})
    return file_hash(path) if path.is_file() else None


def _declarations(source: str, also: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """A source without what is declared behind its question mark, and that as arguments of a reader."""
    place, _, text = source.partition("?")
    given = dict(parse_qsl(text, keep_blank_values=True))
    known = (*COLUMN_NAMES, "label", "in_language", *also)
    unknown = [name for name in given if name not in known]
    if unknown or (text and not given):
        raise DataError(f"{source}: cannot declare {(unknown or [text])[0]!r}; choose of {', '.join(known)}.")
    columns: dict[str, Any] = {name: given[name] for name in COLUMN_NAMES if name in given}
    if "languages" in columns:
        columns["languages"] = tuple(columns["languages"].split(","))
    declared: dict[str, Any] = {"columns": Columns(**columns), **{name: given[name] for name in also if name in given}}
    if "in_language" in given:
        declared["language"] = given["in_language"]
    if "label" in given:
        declared["harmful"] = LABELS.get(given["label"].lower())
        if declared["harmful"] is None:
            raise DataError(f"{source}: the label of every row is harmful or benign, not {given['label']!r}.")
    return place, declared


def _of_corpus(name: str, rest: str) -> list[Prompt]:
    place, _, split = rest.partition("?split=")
    prompts = load_corpus(name, Path(place))
    kept = [prompt for prompt in prompts if not split or prompt.details.get("split") == split]
    if not kept:
        known = ", ".join(sorted({str(prompt.details["split"]) for prompt in prompts if "split" in prompt.details}))
        raise DataError(f"{name}:{rest}: there is no split {split!r}; there is {known or 'none'}.")
    return kept


def _named(tables: dict[str, T], name: str) -> T:
    if name not in tables:
        raise DataError(f"The embedded world has no table {name!r}; it has: {', '.join(tables)}.")
    return tables[name]
