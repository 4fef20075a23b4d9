"""What alignment must not cost: MGSM, Global-MMLU-Lite, NusaX sentiment and XCOPA, with their expected answers.

`Prompt.details` holds `answer` (what a right answer says), `choices` where the answer is one out of a few, and
`split` where the corpus has several. Multiple choice is written as lettered options below the question, without any
instruction in another language than the question's; XCOPA and NusaX sentiment have no question of their own, so theirs
is asked in English.
"""

import re
from pathlib import Path

from lasa.data.corpora.parallel import NUSAX_LANGUAGES, NUSAX_SPLITS
from lasa.data.corpora.tables import clean, corpus_files, filled, language_of, read_lines, read_table
from lasa.data.prompts import Prompt, user_prompt
from lasa.errors import DataError

LETTERS = ("A", "B", "C", "D")
SENTIMENTS = ("negative", "neutral", "positive")


def load_mgsm(path: Path) -> list[Prompt]:
    """MGSM (Shi et al., 2023): 250 grade-school mathematics problems per language, parallel by row.

    Args:
        path: The folder with `mgsm_<language>.tsv`, or one of these files.

    Returns:
        Benign prompts `mgsm:<row>`, rows from 0; `details["answer"]` is the number without thousands separators.
    """
    prompts = []
    for file in corpus_files(path, "mgsm_*.tsv"):
        language = language_of(file, file.stem.removeprefix("mgsm_"))
        for number, line in enumerate(read_lines(file), 1):
            cells = line.split("\t")
            if len(cells) != 2 or not clean(cells[0]):
                raise DataError(f"{file}: row {number}: expected a question and an answer, found {len(cells)} cells.")
            answer = clean(cells[1]).replace(",", "")
            if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", answer):
                raise DataError(f"{file}: row {number}: the answer {answer!r:.40} is not a number.")
            prompts.append(_benign(f"mgsm:{number - 1}", language, clean(cells[0]), "mgsm", answer=answer))
    return prompts


def load_global_mmlu_lite(path: Path) -> list[Prompt]:
    """Global-MMLU-Lite (Singh et al., 2024) as kept by SEA-HELM: multiple choice, the same samples per language.

    Args:
        path: The folder with `global_mmlu_lite_<language>_<dev|test>.jsonl`, or one of these files.

    Returns:
        Benign prompts `global_mmlu_lite:<sample id>` with the subject as their category; `details` has `answer` (a
        letter), `choices`, `split`, `subject_category` and `culturally_sensitive` (None where not annotated).
    """
    prompts = []
    for file in corpus_files(path, "global_mmlu_lite_*.jsonl"):
        for number, row in enumerate(read_table(file, ["label", "prompts", "metadata"]), 1):
            try:
                metadata, asked = row["metadata"], row["prompts"][0]
                sample, code, subject = metadata["sample_id"], metadata["language"], metadata["subject"]
                options = [clean(asked[f"option_{letter.lower()}"]) for letter in LETTERS]
                question, answer = clean(asked["question"]), LETTERS[LETTERS.index(row["label"])]
                split = sample.split("/")[1]
                sensitivity = {"CS": True, "CA": False}.get(metadata.get("cultural_sensitivity_label"))
            except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{file}: row {number}: not a Global-MMLU-Lite sample ({error!r:.80}). Expected a question, "
                    "option_a to option_d, a label out of A to D, and metadata."
                ) from error
            prompts.append(
                _benign(
                    f"global_mmlu_lite:{sample}",
                    language_of(file, code),
                    _multiple_choice(question, options),
                    "global_mmlu_lite",
                    category=clean(subject),
                    answer=answer,
                    choices=list(LETTERS),
                    split=split,
                    subject_category=metadata.get("subject_category", ""),
                    culturally_sensitive=sensitivity,
                )
            )
    return prompts


def load_nusax_sentiment(path: Path) -> list[Prompt]:
    """NusaX sentiment (Winata et al., 2023): reviews to be called negative, neutral or positive.

    Args:
        path: The folder with one folder per language (`javanese`, `english`, ...), each with train, valid and
            test CSV files.

    Returns:
        Benign prompts `nusax_sentiment:<id>`, the same id in all languages; `details["answer"]` is the sentiment.
    """
    prompts = []
    for file in corpus_files(path, "*/*.csv"):
        language = NUSAX_LANGUAGES.get(file.parent.name)
        if file.stem not in NUSAX_SPLITS:
            raise DataError(f"{file}: not a split of NusaX ({', '.join(NUSAX_SPLITS)}). Give the original files.")
        if language is None:
            continue
        for number, row in enumerate(read_table(file, ["id", "text", "label"]), 1):
            if row["label"] not in SENTIMENTS:
                raise DataError(f"{file}: row {number}, column 'label': expected one of {', '.join(SENTIMENTS)}.")
            prompts.append(
                _benign(
                    f"nusax_sentiment:{row['id']}",
                    language,
                    f"Is this review negative, neutral or positive?\n\n{filled(file, number, row, 'text')}",
                    "nusax_sentiment",
                    answer=row["label"],
                    choices=list(SENTIMENTS),
                    split=file.stem,
                )
            )
    return prompts


def load_xcopa(path: Path) -> list[Prompt]:
    """XCOPA (Ponti et al., 2020): which of two alternatives is the cause or the effect of a premise.

    Args:
        path: The corpus's `data` folder (`<language>/<val|test>.<language>.jsonl`), or one of these files.

    Returns:
        Benign prompts `xcopa:<split>/<idx>`; `details["answer"]` is A or B.
    """
    asked = {"cause": "What was the cause?", "effect": "What happened as a result?"}
    prompts = []
    for file in corpus_files(path, "*/*.*.jsonl"):
        split, _, code = file.stem.partition(".")
        language = language_of(file, code)
        for number, row in enumerate(
            read_table(file, ["premise", "choice1", "choice2", "question", "label", "idx"]), 1
        ):
            if row["question"] not in tuple(asked) or row["label"] not in (0, 1):
                raise DataError(f"{file}: row {number}: expected the question cause or effect and the label 0 or 1.")
            options = [filled(file, number, row, "choice1"), filled(file, number, row, "choice2")]
            question = f"{filled(file, number, row, 'premise')}\n{asked[row['question']]}"
            prompts.append(
                _benign(
                    f"xcopa:{split}/{row['idx']}",
                    language,
                    _multiple_choice(question, options),
                    "xcopa",
                    category=row["question"],
                    answer=LETTERS[int(row["label"])],
                    choices=list(LETTERS[:2]),
                    split=split,
                )
            )
    return prompts


def _multiple_choice(question: str, options: list[str]) -> str:
    lettered = (f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return "\n".join([question, *lettered])


def _benign(query_id: str, language: str, text: str, source: str, category: str = "", **details: object) -> Prompt:
    return user_prompt(query_id, language, text, harmful=False, source=source, category=category, details=dict(details))
