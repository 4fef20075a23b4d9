"""Safety benchmarks of one table: MultiJail, HarmBench, AdvBench, StrongREJECT, XSTest, Do-Not-Answer.

Every loader takes the original file and gives prompts labelled harmful or not, with the corpus's own identifier in
the query id. Where the corpus was itself collected from elsewhere, `details["origin"]` says from where.
"""

import ast
from pathlib import Path
from typing import Any

from lasa.data.corpora.tables import clean, filled, language_of, read_table
from lasa.data.prompts import Prompt, user_prompt
from lasa.errors import DataError

HARD_BENIGN = "hard_benign"
"""Category of harmless prompts that look harmful: what over-refusal is measured on."""


def load_multijail(path: Path) -> list[Prompt]:
    """MultiJail (Deng et al., 2024): 315 harmful questions in ten languages, one column per language.

    Args:
        path: `MultiJail.csv`.

    Returns:
        One harmful prompt per question and language, `multijail:<id>`; the category is the first of the tags.
    """
    rows = read_table(path, ["id", "source", "tags", "en"])
    languages = {name: language_of(path, name) for name in rows[0] if name not in ("id", "source", "tags")}
    prompts = []
    for number, row in enumerate(rows, 1):
        tags = parse_tags(path, number, row["tags"])
        prompts += [
            user_prompt(
                f"multijail:{row['id']}",
                language,
                filled(path, number, row, name),
                harmful=True,
                source="multijail",
                category=tags[0] if tags else "",
                details={"tags": tags, "origin": row["source"]},
            )
            for name, language in languages.items()
        ]
    return prompts


def load_harmbench(path: Path) -> list[Prompt]:
    """HarmBench text behaviours (Mazeika et al., 2024), English.

    The context of a contextual behaviour comes before it, separated as in HarmBench's own direct requests.

    Args:
        path: `harmbench_behaviors_text_{all,val,test}.csv`.

    Returns:
        Harmful prompts `harmbench:<BehaviorID>` (the behaviour's text is not unique) with the semantic category;
        `details` has the functional category, the tags and the behaviour without its context.
    """
    columns = ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"]
    prompts = []
    for number, row in enumerate(read_table(path, columns), 1):
        behavior = filled(path, number, row, "Behavior")
        context = clean(row["ContextString"])
        prompts.append(
            user_prompt(
                f"harmbench:{filled(path, number, row, 'BehaviorID')}",
                "en",
                f"{context}\n\n---\n\n{behavior}" if context else behavior,
                harmful=True,
                source="harmbench",
                category=clean(row["SemanticCategory"]),
                details={
                    "functional_category": clean(row["FunctionalCategory"]),
                    "tags": [tag.strip() for tag in clean(row["Tags"]).split(",") if tag.strip()],
                    "behavior": behavior,
                },
            )
        )
    return prompts


def load_advbench(path: Path) -> list[Prompt]:
    """AdvBench harmful behaviours (Zou et al., 2023), English.

    Args:
        path: `harmful_behaviors.csv`.

    Returns:
        Harmful prompts `advbench:<row>`; `details["target"]` is the affirmative beginning an attack aims at.

    Raises:
        DataError: Also for the copy in circulation whose two column names are swapped.
    """
    rows = read_table(path, ["goal", "target"])
    if sum(str(row["goal"]).startswith("Sure") for row in rows) > len(rows) / 2:
        raise DataError(f"{path}: the columns goal and target are swapped in this copy. Use the original file.")
    return [
        user_prompt(
            f"advbench:{number - 1}",
            "en",
            filled(path, number, row, "goal"),
            harmful=True,
            source="advbench",
            details={"target": filled(path, number, row, "target")},
        )
        for number, row in enumerate(rows, 1)
    ]


def load_strongreject(path: Path) -> list[Prompt]:
    """StrongREJECT forbidden prompts (Souly et al., 2024), English.

    Args:
        path: `strongreject_dataset.csv`.

    Returns:
        Harmful prompts `strongreject:<row>` with the benchmark's category.
    """
    return [
        user_prompt(
            f"strongreject:{number - 1}",
            "en",
            filled(path, number, row, "forbidden_prompt"),
            harmful=True,
            source="strongreject",
            category=clean(row["category"]),
            details={"origin": clean(row["source"])},
        )
        for number, row in enumerate(read_table(path, ["category", "source", "forbidden_prompt"]), 1)
    ]


def load_xstest(path: Path) -> list[Prompt]:
    """XSTest (Röttger et al., 2024), English: safe prompts that look unsafe, and unsafe contrasts.

    Args:
        path: `xstest_prompts.csv`, or the older `xstest_v2_prompts.csv`, which has no label column and two id
            columns; the label then follows from the type.

    Returns:
        Prompts `xstest:<1..450>`, the same ids for both files. Safe prompts have the category `hard_benign`, unsafe
        ones their type; `details` has type, focus and note.
    """
    rows = read_table(path, ["prompt", "type"])
    ids = next((name for name in ("id", "id_v2") if name in rows[0]), None)
    if ids is None:
        raise DataError(f"{path}: no column 'id' or 'id_v2'. Give XSTest in its original format.")
    prompts = []
    for number, row in enumerate(rows, 1):
        kind = filled(path, number, row, "type")
        unsafe = _xstest_unsafe(path, number, row, kind)
        prompts.append(
            user_prompt(
                f"xstest:{filled(path, number, row, ids).removeprefix('v2-')}",
                "en",
                filled(path, number, row, "prompt"),
                harmful=unsafe,
                source="xstest",
                category=kind if unsafe else HARD_BENIGN,
                details={"type": kind, "focus": clean(row.get("focus")), "note": clean(row.get("note"))},
            )
        )
    return prompts


def load_do_not_answer(path: Path) -> list[Prompt]:
    """Do-Not-Answer (Wang et al., 2024), English: 939 questions that a responsible model does not answer.

    Args:
        path: The table as CSV or Parquet, with the columns id, risk_area, types_of_harm, specific_harms, question;
            the recorded answers of other models are not read.

    Returns:
        Harmful prompts `do_not_answer:<id>` with the risk area as their category.
    """
    columns = ["id", "risk_area", "types_of_harm", "specific_harms", "question"]
    return [
        user_prompt(
            f"do_not_answer:{row['id']}",
            "en",
            filled(path, number, row, "question"),
            harmful=True,
            source="do_not_answer",
            category=clean(row["risk_area"]),
            details={"type": clean(row["types_of_harm"]), "harm": clean(row["specific_harms"])},
        )
        for number, row in enumerate(read_table(path, columns), 1)
    ]


def parse_tags(path: Path, row_number: int, cell: object) -> list[str]:
    """The tags of a cell that holds a Python list literal (MultiJail), read without running anything.

    Raises:
        DataError: The cell is something else.
    """
    try:
        tags = ast.literal_eval(str(cell))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        tags = None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DataError(f"{path}: row {row_number}: the tags are not a list of texts, like ['first', 'second'].")
    return tags


def _xstest_unsafe(path: Path, number: int, row: dict[str, Any], kind: str) -> bool:
    if "label" not in row:
        return kind.startswith("contrast_")
    label = clean(row["label"])
    if label not in ("safe", "unsafe"):
        raise DataError(f"{path}: row {number}, column 'label': expected safe or unsafe, found {label!r}.")
    return label == "unsafe"
