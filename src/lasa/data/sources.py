"""Where tables come from: a file, a dataset, a known public corpus in its original format, or the embedded world.

A source is written `path`, `hf:owner/name` (a Hugging Face dataset), `corpus:path` (see `lasa.data.corpora`) or
`embedded:name`. A corpus with splits is read whole, or as `corpus:path?split=test`. Several are one table where they
are written `one + other`: a corpus of harmful questions and a file of harmless requests, say.

The columns of a file or dataset are declared behind a question mark where they have other names:
`questions.csv?prompt=text&language=lang`, `hf:owner/name?split=test&prompt=text&in_language=en`. What can be declared:
the names in `lasa.data.prompts.Columns`, `label` (of every row without one), `in_language` (of every row without one),
and a dataset's `split`, `config` and `revision`. `questions=60` takes that many questions of each language, chosen by
hash, so that it is the same ones in every language and every run.

Sources of preferences are written likewise, with the names in `lasa.data.preferences.PreferenceColumns`; their corpora
are `pku_saferlhf` and `ultrafeedback`, as files or as `pku_saferlhf:hf:owner/name`.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from lasa.data.corpora import LOADERS, PREFERENCE_LOADERS, load_corpus
from lasa.data.corpora.hub import hub_file, load_from_hub
from lasa.data.preferences import Preference, PreferenceColumns, read_preferences
from lasa.data.prompt_tables import LABELS, Columns, read_prompts
from lasa.data.prompts import Prompt
from lasa.errors import DataError
from lasa.files.artifacts import file_hash, fingerprint
from lasa.progress import say_once

T = TypeVar("T")

COLUMN_NAMES = tuple(field.name for field in fields(Columns))
PREFERENCE_NAMES = tuple(field.name for field in fields(PreferenceColumns))
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
        sources: dict[str, str] = {}
        for part, prompts in tables.items():
            for prompt in prompts:
                sources.setdefault(prompt.query_id, prompt.source)
                owner = owners.setdefault((prompt.query_id, prompt.language), part)
                if owner != part:
                    raise DataError(
                        f"Query {prompt.query_id!r} is in {owner} and in {part}, both in {prompt.language}. Equal "
                        "query ids mean translations of one question: rename them in one of the files."
                    )
        asked = [replace(one, source=sources[one.query_id]) for one in asked]  # translations have one source
    return asked


def load_joined(sources: Sequence[str]) -> list[Prompt]:
    """The prompts of sources as one table, in which translations of a question may come from several.

    Raises:
        DataError: As `load_prompts`.
    """
    return load_prompts(JOINED.join(sources)) if sources else []


def load_each(sources: Sequence[str]) -> list[Prompt]:
    """The prompts of sources that are tables of their own: equal ids in two of them are different questions.

    It says where two look like one table, a language in each.

    Raises:
        DataError: As `load_prompts`.
    """
    tables = [(source, load_prompts(source)) for source in sources]
    for (one, left), (other, right) in combinations(tables, 2):
        shared = {prompt.query_id for prompt in left} & {prompt.query_id for prompt in right}
        if shared and not {prompt.language for prompt in left} & {prompt.language for prompt in right}:
            say_once(
                f"{one} and {other} share {len(shared):,} query ids and no language. If they are translations of each "
                f"other, write them as one source, '{one}{JOINED}{other}': they count as different questions now."
            )
    return [prompt for _, prompts in tables for prompt in prompts]


def _load_one(source: str) -> list[Prompt]:
    place, declared = _declarations(source)
    number = declared.pop("questions", None)
    prompts = _read_one(source, place, declared)
    return prompts if number is None else first_by_hash(prompts, _count(source, number), lambda prompt: prompt)


def _read_one(source: str, place: str, declared: dict[str, str]) -> list[Prompt]:
    kind, _, rest = place.partition(":")
    if kind == "embedded":
        from lasa.data.world.tables import PROMPT_TABLES

        return _named(PROMPT_TABLES, rest)()
    if rest and kind in LOADERS:
        return _of_corpus(source, kind, Path(rest), declared)
    if rest and kind == "hf":
        return load_from_hub(rest, **_arguments(source, declared, COLUMN_NAMES, Columns, HUB_NAMES))
    return read_prompts(Path(place), **_arguments(source, declared, COLUMN_NAMES, Columns))


def first_by_hash(rows: Sequence[T], number: int, prompt_of: Callable[[T], Prompt]) -> list[T]:
    """The rows of at most `number` questions of each language: those whose query id has the smallest hash.

    Translations share their query id, so they are taken or left together.

    Args:
        rows: Prompts, or what has one.
        number: How many questions.
        prompt_of: Gives the prompt of a row.
    """
    queries: dict[str, set[str]] = {}
    for prompt in map(prompt_of, rows):
        queries.setdefault(prompt.language, set()).add(prompt.query_id)
    kept = {language: set(sorted(ids, key=_id_hash)[:number]) for language, ids in queries.items()}
    return [row for row in rows if prompt_of(row).query_id in kept[prompt_of(row).language]]


def _id_hash(query_id: str) -> str:
    return hashlib.sha256(query_id.encode()).hexdigest()


def _count(source: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise DataError(f"{source}: questions is a number from 1, not {text!r:.60}.")
    return int(text)


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
    """The preferences of a source, or of several that are joined.

    Raises:
        DataError: The source does not exist, is not what it claims to be, or declares what it cannot.
    """
    found = []
    for part in source.split(JOINED):
        place, declared = _declarations(part)
        number = declared.pop("questions", None)
        rows = _read_preferences(part, place, declared)
        found += rows if number is None else first_by_hash(rows, _count(part, number), lambda row: row.prompt)
    return found


def _read_preferences(source: str, place: str, declared: dict[str, str]) -> list[Preference]:
    kind, _, rest = place.partition(":")
    if kind == "embedded":
        from lasa.data.world.tables import PREFERENCE_TABLES

        return _named(PREFERENCE_TABLES, rest)()
    loader = PREFERENCE_LOADERS.get(kind) if rest else None
    inner, _, dataset = (rest if loader else place).partition(":")
    if inner == "hf" and dataset:
        given = _arguments(source, declared, () if loader else PREFERENCE_NAMES, PreferenceColumns, HUB_NAMES)
        with hub_file(dataset, **{name: given.pop(name) for name in HUB_NAMES if name in given}) as path:
            return loader(path) if loader else read_preferences(path, source=dataset, **given)
    if loader:
        _only(source, declared, ())
        return loader(Path(rest))
    return read_preferences(Path(place), **_arguments(source, declared, PREFERENCE_NAMES, PreferenceColumns))


def source_hash(source: str) -> str | None:
    """Hash of the files or folders that a source names; None where it is no file: missing, embedded, or on a hub."""
    hashes = [found for part in source.split(JOINED) if (found := _hash_of_one(part))]
    return hashes[0] if len(hashes) == 1 else fingerprint(hashes) if hashes else None


def _hash_of_one(source: str) -> str | None:
    kind, _, rest = source.partition(":")
    corpus = rest and kind in (*LOADERS, *PREFERENCE_LOADERS)
    path = Path((rest if corpus else source).partition("?")[0])
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        return fingerprint({file.relative_to(path).as_posix(): file_hash(file) for file in files})
    return file_hash(path) if path.is_file() else None


def _declarations(source: str) -> tuple[str, dict[str, str]]:
    """A source without what is declared behind its question mark, and that by name."""
    place, _, text = source.partition("?")
    declared = dict(parse_qsl(text, keep_blank_values=True))
    if text and not declared:
        raise DataError(f"{source}: cannot declare {text!r}; write name=value.")
    return place, declared


def _only(source: str, declared: Mapping[str, str], known: Sequence[str]) -> None:
    unknown = [name for name in declared if name not in known]
    if unknown:
        raise DataError(f"{source}: cannot declare {unknown[0]!r}; choose of {', '.join((*known, 'questions'))}.")


def _arguments(
    source: str, declared: Mapping[str, str], names: Sequence[str], columns: type, also: Sequence[str] = ()
) -> dict[str, Any]:
    """What is declared as arguments of a reader."""
    _only(source, declared, (*names, *(("label", "in_language") if names else ()), *also))
    chosen: dict[str, Any] = {name: declared[name] for name in names if name in declared}
    if "languages" in chosen:
        chosen["languages"] = tuple(chosen["languages"].split(","))
    found: dict[str, Any] = {name: declared[name] for name in also if name in declared}
    if names:
        found["columns"] = columns(**chosen)
    if "in_language" in declared:
        found["language"] = declared["in_language"]
    if "label" in declared:
        found["harmful"] = LABELS.get(declared["label"].lower())
        if found["harmful"] is None:
            raise DataError(f"{source}: the label of every row is harmful or benign, not {declared['label']!r}.")
    return found


def _of_corpus(source: str, name: str, place: Path, declared: Mapping[str, str]) -> list[Prompt]:
    _only(source, declared, ("split",))
    split = declared.get("split")
    prompts = load_corpus(name, place)
    kept = [prompt for prompt in prompts if not split or prompt.details.get("split") == split]
    if not kept:
        known = ", ".join(sorted({str(prompt.details["split"]) for prompt in prompts if "split" in prompt.details}))
        raise DataError(f"{source}: there is no split {split!r}; there is {known or 'none'}.")
    return kept


def _named(tables: dict[str, T], name: str) -> T:
    if name not in tables:
        raise DataError(f"The embedded world has no table {name!r}; it has: {', '.join(tables)}.")
    return tables[name]
