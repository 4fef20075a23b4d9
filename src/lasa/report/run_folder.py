"""What a report is written from: the files of a run folder, as far as the run has got."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lasa.errors import ArtifactError, DataError
from lasa.evaluation.outcomes import Sample
from lasa.evaluation.samples import read_samples
from lasa.files.artifacts import read_json
from lasa.files.record import RECORD, check_recorded
from lasa.languages import canonical_language, sort_languages
from lasa.run.folder import open_run

BASE = "base"
MAIN = "lasa"

Document = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The contents of a run folder; what a stage has not written yet is empty.

    Attributes:
        folder: The run folder.
        metrics: `metrics.json`.
        bottleneck: `bottleneck.json`, or the shorter account of it in the metrics.
        provenance: `provenance.json`.
        recipe: `recipe.yaml`, parsed.
        recipe_text: `recipe.yaml`, as it stands.
        samples: Samples of each system, by its name.
    """

    folder: Path
    metrics: Document
    bottleneck: Document
    provenance: Document
    recipe: Document
    recipe_text: str
    samples: dict[str, list[Sample]]

    @property
    def systems(self) -> Document:
        """Metrics of each system, in the order in which they are shown."""
        return in_order(self.metrics.get("systems") or {})

    @property
    def main_system(self) -> str | None:
        """The system that the report is about: `lasa`, else the last one measured, else None."""
        return MAIN if MAIN in self.systems else next(reversed(self.systems), None)

    @property
    def interpreter(self) -> Document:
        """Metrics of the interpreter, empty if there is none."""
        return self.metrics.get("interpreter") or {}

    @property
    def splits(self) -> Document:
        """Metrics of the harder held-out splits, by name."""
        splits = self.metrics.get("splits") or {}
        return {name: {**split, "systems": in_order(split.get("systems") or {})} for name, split in splits.items()}

    @property
    def comparisons(self) -> list[Document]:
        """Paired comparisons of two systems, the system that the report is about as the first of its pairs."""
        return [_turned(c) if c.get("b") == self.main_system else c for c in self.metrics.get("comparisons") or []]

    @property
    def benchmark(self) -> str:
        """Name of the benchmark that the headline numbers come from; empty if it is not recorded."""
        return str(self.metrics.get("headline") or "")

    @property
    def languages(self) -> list[str]:
        """Languages in which any system was measured."""
        return sort_languages({code for system in self.systems.values() for code in system.get("languages") or {}})

    @property
    def seen_languages(self) -> frozenset[str] | None:
        """Languages used in training, or None where neither the metrics nor the recipe tell."""
        codes = self.metrics.get("seen_languages") or _setting(self.recipe, "seen_languages", "train_languages")
        if not isinstance(codes, list) or not codes:
            return None
        try:
            return frozenset(canonical_language(str(code)) for code in codes)
        except DataError as error:
            raise ArtifactError(f"{self.folder}: the languages used in training cannot be read. {error}") from error

    @property
    def model_name(self) -> str:
        """The base model as the recipe or the provenance names it, without this machine's folders; empty if neither."""
        return without_folders(next(iter(_model_names(self.recipe) + _model_names(self.provenance)), ""))

    @property
    def began(self) -> str:
        """The day on which the run began, as 2026-01-31; empty if it is not recorded."""
        return str(self.provenance.get("began") or "")[:10]

    @property
    def uses_embedded_model(self) -> bool:
        """Whether the base model is the embedded one, whose bottleneck is planted."""
        return "embedded" in _model_names(self.recipe)

    @property
    def judges(self) -> list[str]:
        """Names of the judges that scored the samples."""
        return sorted({sample.judge for samples in self.samples.values() for sample in samples if sample.judge})

    @property
    def second_judges(self) -> list[str]:
        """Names of the judges that judged the same answers beside them."""
        asked = [(entry.get("agreement") or {}).get("judges") or [] for entry in self.systems.values()]
        return sorted({judge for judges in asked for judge in judges[1:]})


def read_run(folder: Path) -> Run:
    """Read what there is of a run folder.

    Raises:
        ArtifactError: The folder is not a run's, or one of its files is damaged or of an unknown kind.
    """
    metrics = _optional_object(folder / "metrics.json")
    bottleneck = _optional_object(folder / "bottleneck.json")
    samples = sorted((folder / "samples").glob("*.jsonl"))
    if not metrics and not bottleneck and not samples:
        raise ArtifactError(
            f"{folder} holds no metrics.json, bottleneck.json or samples: there is nothing to report. "
            "Give the output folder of a run whose first stage has finished."
        )
    if metrics.get("schema", 1) != 1:
        raise ArtifactError(
            f"{folder / 'metrics.json'} has schema {metrics['schema']!r}, and this version of lasa reads schema 1. "
            "Use the version that wrote it (see provenance.json)."
        )
    recipe_text, recipe = _recipe(folder / "recipe.yaml")
    measured = list(metrics.get("systems") or {})
    samples.sort(key=lambda path: measured.index(path.stem) if path.stem in measured else len(measured))
    return Run(
        folder=folder,
        metrics=metrics,
        bottleneck={**(metrics.get("bottleneck") or {}), **bottleneck},
        provenance=_optional_object(folder / "provenance.json"),
        recipe=recipe,
        recipe_text=recipe_text,
        samples=in_order({path.stem: read_samples(path) for path in samples}),
    )


def without_folders(name: str) -> str:
    """Of a path on this machine its last part, as in what is passed on; any other name as it is."""
    return Path(name).name if Path(name).is_absolute() else name


def in_order(systems: Document) -> Document:
    """Systems in the order in which they are shown: before and after beside each other, then the baselines."""
    rank = {BASE: -2, MAIN: -1}
    return {name: systems[name] for name in sorted(systems, key=lambda name: rank.get(name, 0))}


def _turned(comparison: Document) -> Document:
    difference, low, high = (
        None if comparison.get(name) is None else -comparison[name] for name in ("difference", "high", "low")
    )
    pair = {"a": comparison["b"], "b": comparison["a"]}
    return {**comparison, **pair, "difference": difference, "low": low, "high": high}


def _optional_object(path: Path) -> Document:
    if not path.exists():
        return {}
    check_recorded(path)
    document = read_json(path)
    if not isinstance(document, dict):
        raise ArtifactError(f"{path} is damaged (not a JSON object). Remove it and run the step that writes it again.")
    return document


def _recipe(path: Path) -> tuple[str, Document]:
    if not path.exists():
        return "", {}
    if (path.parent / RECORD).is_file():
        open_run(path.parent)  # an edited recipe is not what the run was made with
    try:
        text = path.read_text(encoding="utf-8")
        recipe = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Run again with the recipe it was made from.") from error
    return text, recipe if isinstance(recipe, dict) else {}


def _setting(value: object, *names: str) -> object:
    """The first setting of one of these names, however deep it lies."""
    if not isinstance(value, dict):
        return None
    own = next((value[name] for name in names if value.get(name)), None)
    return own or next((found for child in value.values() if (found := _setting(child, *names))), None)


def _model_names(document: Document) -> list[str]:
    model = document.get("model") or document.get("base_model")
    if isinstance(model, dict):
        model = next((model[key] for key in ("name", "id", "path", "base_model", "base") if model.get(key)), None)
    return [model] if isinstance(model, str) else []
