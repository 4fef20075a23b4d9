"""The data files of the paper's authors (thu-coai/lasa-multilingual-safety), read in their own format.

Their identifiers are not always those of the corpora they sampled from; `with_multijail_ids` and `with_harmbench_ids`
join them, so that clusters, splits and leak checks see one question as one question.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lasa.data.corpora.harmful import parse_tags
from lasa.data.corpora.tables import clean, corpus_files, filled, language_of, read_table
from lasa.data.prompts import Prompt, user_prompt
from lasa.errors import DataError

HARMBENCH_ROW = "harmbench:row/"
"""Query ids of the interpreter's training rows until they are joined: the row of HarmBench's `all` file, from 0."""


def load_multijail_1k(path: Path) -> list[Prompt]:
    """The authors' evaluation sample of MultiJail: 100 prompts in each of ten languages, *not* parallel.

    Args:
        path: `multijail_1k.json`.

    Returns:
        Harmful prompts `multijail:1k/<id>`, every one a query of its own: the same question in two languages has two
        ids until `with_multijail_ids` joins them by text.
    """
    prompts = []
    for number, row in enumerate(read_table(path, ["id", "prompt", "lingual", "tag"]), 1):
        tags = parse_tags(path, number, row["tag"])
        prompts.append(
            user_prompt(
                f"multijail:1k/{row['id']}",
                language_of(path, str(row["lingual"])),
                filled(path, number, row, "prompt"),
                harmful=True,
                source="multijail",
                category=tags[0] if tags else "",
                details={"tags": tags},
            )
        )
    return prompts


def load_ssi_harmful(path: Path) -> list[Prompt]:
    """The interpreter's harmful training rows: 100 standard HarmBench behaviours in ten languages.

    These behaviours lie in HarmBench's validation and test splits alike: see `lasa.data.corpora.audit.check_no_leaks`.

    Args:
        path: `harmbench_training.json`.

    Returns:
        Harmful prompts `harmbench:row/<original_idx>`, the row of HarmBench's `all` file; source `harmbench`.
    """
    return [
        user_prompt(
            f"{HARMBENCH_ROW}{row['original_idx']}",
            language_of(path, str(row["lingual"])),
            filled(path, number, row, "prompt"),
            harmful=True,
            source="harmbench",
        )
        for number, row in enumerate(read_table(path, ["prompt", "lingual", "original_idx"]), 1)
    ]


def load_ultrafeedback(path: Path) -> list[Prompt]:
    """The translated UltraFeedback pool: benign prompts with a preferred and a rejected answer.

    The rows name no language; the file name does (`jw` is Javanese). Some answers stay in English.

    Args:
        path: `monolingual_first1000_<language>.json`, or the folder with one such file per language.

    Returns:
        Benign prompts `ultrafeedback:<idx>`; `details` has the texts `chosen` and `rejected`.
    """
    prompts = []
    for file in corpus_files(path, "monolingual_first1000_*.json"):
        language = language_of(file, file.stem.rpartition("_")[2])
        for number, row in enumerate(read_table(file, ["idx", "prompt", "chosen", "rejected"]), 1):
            prompts.append(
                user_prompt(
                    f"ultrafeedback:{row['idx']}",
                    language,
                    filled(file, number, row, "prompt"),
                    harmful=False,
                    source="ultrafeedback",
                    details={name: _answer(file, number, name, row[name]) for name in ("chosen", "rejected")},
                )
            )
    return prompts


def with_multijail_ids(prompts: Sequence[Prompt], multijail: Sequence[Prompt]) -> list[Prompt]:
    """Give sampled MultiJail prompts the ids of the questions they translate, found by exact text and language.

    Two questions of MultiJail read the same in Arabic and in Swahili; the first of them is taken.

    Args:
        prompts: Prompts of `load_multijail_1k`.
        multijail: MultiJail itself.

    Raises:
        DataError: A prompt is not in MultiJail.
    """
    ids: dict[tuple[str, str], str] = {}
    for question in multijail:
        ids.setdefault((question.language, question.text), question.query_id)
    if strangers := [p.query_id for p in prompts if (p.language, p.text) not in ids]:
        raise DataError(f"{len(strangers)} prompts are not in MultiJail, the first is {strangers[0]}. Wrong file?")
    return [replace(prompt, query_id=ids[prompt.language, prompt.text]) for prompt in prompts]


def with_harmbench_ids(prompts: Sequence[Prompt], harmbench_all: Sequence[Prompt]) -> list[Prompt]:
    """Give the interpreter's training rows the ids of their HarmBench behaviours.

    Args:
        prompts: Prompts of `load_ssi_harmful`; others are returned unchanged.
        harmbench_all: HarmBench's `all` file in its original order.

    Raises:
        DataError: A row number does not exist, or an English prompt is not that row's behaviour: another file.
    """
    rows = {str(number): behavior for number, behavior in enumerate(harmbench_all)}
    joined = []
    for prompt in prompts:
        if not prompt.query_id.startswith(HARMBENCH_ROW):
            joined.append(prompt)
            continue
        number = prompt.query_id.removeprefix(HARMBENCH_ROW)
        behavior = rows.get(number)
        if behavior is None or (prompt.language == "en" and _letters(prompt.text) != _letters(behavior.text)):
            raise DataError(
                f"{prompt.query_id} ({prompt.language}) is not row {number} of the given HarmBench file. "
                "Give harmbench_behaviors_text_all.csv, unsorted and complete."
            )
        joined.append(replace(prompt, query_id=behavior.query_id))
    return joined


def _answer(file: Path, number: int, column: str, cell: Any) -> str:
    try:
        _, answer = cell
        role, text = answer["role"], answer["content"]
    except (TypeError, ValueError, KeyError):
        role, text = "", None
    if role != "assistant" or not isinstance(text, str):
        raise DataError(f"{file}: row {number}, column {column!r}: expected a user and an assistant message.")
    return clean(text)


def _letters(text: str) -> str:
    return re.sub(r"\W", "", text).casefold()
