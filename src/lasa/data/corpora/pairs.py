"""Public preference data in its published formats: PKU-SafeRLHF and UltraFeedback."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lasa.data.corpora.tables import corpus_files, filled, read_table
from lasa.data.preferences import Preference, PreferenceColumns, parse_preference
from lasa.data.prompts import user_prompt
from lasa.errors import DataError
from lasa.files.tables import read_rows


def load_pku_saferlhf(path: Path) -> list[Preference]:
    """PKU-SafeRLHF (Ji et al., 2024): English prompts with two answers, each labelled safe or not.

    An unsafe answer is undesirable, whichever is the safer of two. A safe one is desirable; of two, the better.

    Args:
        path: `train.jsonl` of one of the answering models, or a folder with such files beneath.

    Returns:
        Preferences to `pku_saferlhf:<hash of the prompt>`. A prompt that got an unsafe answer is harmful; of the
        others the corpus does not say.
    """
    columns = [
        "prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe", "better_response_id",
    ]  # fmt: skip
    found = []
    for file in corpus_files(path, "**/train*.jsonl"):
        for number, row in enumerate(read_table(file, columns), 1):
            answers = [filled(file, number, row, f"response_{one}") for one in (0, 1)]
            safe = [row[f"is_response_{one}_safe"] for one in (0, 1)]
            better = row["better_response_id"]
            if not all(isinstance(one, bool) for one in safe) or not isinstance(better, int) or better not in (0, 1):
                raise DataError(f"{file}: row {number}: the labels of the answers are no labels of PKU-SafeRLHF.")
            text = filled(file, number, row, "prompt")
            harmful = None if all(safe) else True
            prompt = user_prompt(_query("pku_saferlhf", text), "en", text, harmful=harmful, source="pku_saferlhf")
            if all(safe):
                found.append(Preference(prompt, answers[better], None))
            elif any(safe):
                found.append(Preference(prompt, answers[safe.index(True)], answers[safe.index(False)]))
            else:
                found += [Preference(prompt, None, answer) for answer in answers]
    return found


def load_ultrafeedback_pairs(path: Path) -> list[Preference]:
    """UltraFeedback (Cui et al., 2023): English harmless prompts with scored answers.

    Understood are the original rows, `instruction` with `completions` (the best and the worst by their mean score over
    aspects; a row without two answers that score differently has no preference), and the binarised ones, `prompt`,
    `chosen` and `rejected` as lists of messages. Both have some empty answers, which are left out.

    Args:
        path: A file, or a folder with JSONL files or `train_prefs` Parquet files.

    Returns:
        Preferences to `ultrafeedback:<hash of the prompt>`.
    """
    original = path.is_dir() and any(path.glob("*.jsonl"))
    found = []
    for file in corpus_files(path, "*.jsonl" if original else "**/train_prefs*.parquet"):
        for number, row in enumerate(read_rows(file), 1):
            where = f"{file}: row {number}"
            if "completions" in row:
                row = _best_and_worst(where, row)
            row = {**row, **{side: None for side in ("chosen", "rejected") if _is_empty(row.get(side))}}
            if row["chosen"] is row["rejected"] is None:
                continue
            row, query = {**row, "source": "ultrafeedback"}, _query("ultrafeedback", str(row.get("prompt")))
            found.append(parse_preference(where, query, row, PreferenceColumns(), "ultrafeedback", False, "en"))
    return found


def _best_and_worst(where: str, row: dict[str, Any]) -> dict[str, Any]:
    try:
        given = [(float(one["fine-grained_score"]), one["response"]) for one in row["completions"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: no completions with 'response' and 'fine-grained_score' ({type(error).__name__}: {error}). "
            "Is this UltraFeedback, in its original format?"
        ) from None
    scored = sorted((one for one in given if not _is_empty(one[1])), key=_score)
    differ = bool(scored) and scored[0][0] < scored[-1][0]
    return {
        "prompt": row.get("instruction"),
        "chosen": scored[-1][1] if differ else None,
        "rejected": scored[0][1] if differ else None,
    }


def _is_empty(answer: Any) -> bool:
    if isinstance(answer, list) and answer and isinstance(answer[-1], dict):
        answer = answer[-1].get("content")
    return answer is None or (isinstance(answer, str) and not answer.strip())


def _score(scored: tuple[float, Any]) -> float:
    return scored[0]


def _query(corpus: str, text: str) -> str:
    return f"{corpus}:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


PREFERENCE_LOADERS: dict[str, Callable[[Path], list[Preference]]] = {
    "pku_saferlhf": load_pku_saferlhf,
    "ultrafeedback": load_ultrafeedback_pairs,
}
"""Names of corpora of preferences and their loaders."""
