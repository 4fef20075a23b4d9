"""What is fuzzed: every reader of a file that comes from someone else. Each refuses with a LasaError, or reads.

A target is a reader and the place of its file in a corpus folder. `read_or_refuse` fails on any other exception, and
on prompts that the rest of lasa could not work with.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lasa.data.corpora import LOADERS
from lasa.data.prompt_tables import read_prompts
from lasa.data.prompts import Prompt
from lasa.errors import LasaError
from lasa.languages import NAMES
from lasa.run.recipe import read_recipe


@dataclass(frozen=True)
class Target:
    """A reader, and where the file lies that it is fuzzed with.

    Attributes:
        read: Takes the file, or the folder of the corpus.
        file: Path of the file in the folder; its suffix names the format.
        columns: Names that its rows know.
        folder: Whether the reader takes the folder.
    """

    read: Callable[[Path], object]
    file: str
    columns: tuple[str, ...] = ()
    folder: bool = False


def _preferences(path: Path) -> object:
    from lasa.data.preferences import read_preferences  # which loads torch

    return read_preferences(path)


def _samples(path: Path) -> object:
    from lasa.evaluation.samples import read_samples

    return read_samples(path)


PROMPTS = ("prompt", "messages", "language", "id", "query_id", "harmful", "source", "category", "details", "en", "sw")
PREFERENCES = ("prompt", "chosen", "rejected", "completion", "label", "language", "harmful", "id")
SAMPLES = ("split", "query_id", "language", "messages", "text", "judge", "outcome", "answer_language", "reason",
           "judge_score", "score", "flagged", "details")  # fmt: skip

TARGETS = {
    **{f"prompts.{suffix}": Target(read_prompts, f"prompts.{suffix}", PROMPTS)
       for suffix in ("csv", "tsv", "jsonl", "json", "parquet")},
    "preferences": Target(_preferences, "preferences.jsonl", PREFERENCES),
    "samples": Target(_samples, "samples.jsonl", SAMPLES),
    "recipe": Target(read_recipe, "recipe.yaml"),
    "multijail": Target(LOADERS["multijail"], "MultiJail.csv", ("id", "source", "tags", "en", "sw")),
    "multijail.parquet": Target(LOADERS["multijail"], "MultiJail.parquet", ("id", "source", "tags", "en", "sw")),
    "harmbench": Target(LOADERS["harmbench"], "h.jsonl", ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags",
                                                        "ContextString", "BehaviorID")),
    "advbench": Target(LOADERS["advbench"], "a.csv", ("goal", "target")),
    "strongreject": Target(LOADERS["strongreject"], "s.csv", ("category", "source", "forbidden_prompt")),
    "xstest": Target(LOADERS["xstest"], "x.jsonl", ("prompt", "type", "id", "id_v2", "label", "focus", "note")),
    "do_not_answer": Target(LOADERS["do_not_answer"], "d.parquet", ("id", "risk_area", "types_of_harm",
                                                                     "specific_harms", "question")),
    "mgsm": Target(LOADERS["mgsm"], "mgsm_sw.tsv"),
    "global_mmlu_lite": Target(LOADERS["global_mmlu_lite"], "global_mmlu_lite_sw_test.jsonl",
                               ("label", "prompts", "metadata")),
    "nusax_sentiment": Target(LOADERS["nusax_sentiment"], "javanese/test.csv", ("id", "text", "label"), folder=True),
    "nusax_mt": Target(LOADERS["nusax_mt"], "test.csv", ("", "english", "javanese", "indonesian", "sundanese")),
    "xcopa": Target(LOADERS["xcopa"], "sw/test.sw.jsonl", ("premise", "choice1", "choice2", "question", "label", "idx"),
                    folder=True),
    "ntrex": Target(LOADERS["ntrex"], "newstest2019-src.eng.txt", folder=True),
    "tatoeba": Target(LOADERS["tatoeba"], "tatoeba.swh-eng.eng", folder=True),
    "lasa_multijail_1k": Target(LOADERS["lasa_multijail_1k"], "m.json", ("id", "prompt", "lingual", "tag")),
    "lasa_ssi_harmful": Target(LOADERS["lasa_ssi_harmful"], "h.json", ("prompt", "lingual", "original_idx")),
    "lasa_ultrafeedback": Target(LOADERS["lasa_ultrafeedback"], "monolingual_first1000_sw.json",
                                 ("idx", "prompt", "chosen", "rejected")),
}  # fmt: skip
"""By name. XSafety's folder of 14 files a language is left out: its files are CSV with one column, or Excel."""


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="lasa-fuzz-"))


def read_or_refuse(name: str, content: bytes) -> None:
    """Give a target this file; anything but a LasaError or usable rows is an error."""
    target = TARGETS[name]
    path = _folder() / name / target.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if name == "tatoeba":
        path.with_suffix(".swh").write_bytes(content)
    try:
        found = target.read(_folder() / name if target.folder else path)
    except LasaError as error:
        assert str(error).strip()
        str(error).encode()
        return
    for row in found if isinstance(found, list) else []:
        prompt = row if isinstance(row, Prompt) else row.prompt
        assert prompt.language in NAMES or name == "samples"
        assert prompt.text.strip() or name == "samples"
        restored = Prompt.from_json(json.loads(json.dumps(prompt.to_json(), ensure_ascii=False).encode()))
        assert name == "samples" or restored.to_json() == json.loads(json.dumps(prompt.to_json()))
        assert name != "preferences" or row.chosen or row.rejected
