"""The folder that `lasa evaluate` writes: samples of one or several systems on the same benchmarks, and their metrics.

    samples/<system>.jsonl   as in a run folder, so that `lasa compare` reads both
    systems/<system>.json    what the system is, and how it was asked
    benchmarks.json          what all of them were asked
    metrics.json             as in a run folder: `systems` on the first benchmark, `splits` on the others
    agreement/<system>.json  with two judges: how far they agree
    labels/<system>.csv      with two judges: what people should label, disagreements and a random draw

All systems of a folder are asked the same prompts, except what was searched against one of them.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lasa.data.prompts import Prompt
from lasa.errors import ArtifactError
from lasa.evaluation.judges.agreement import corrected_rate, quality_of, read_labels, row_id, write_labelling_sheet
from lasa.evaluation.metrics import metrics_by_split, rate_of
from lasa.evaluation.outcomes import Sample
from lasa.evaluation.panel import Panel, judged_twice
from lasa.evaluation.samples import read_samples
from lasa.files.artifacts import fingerprint, provenance, read_json, write_json

RANDOM_LABELS = 100
"""Answers drawn at random for people to label, beside the disagreements."""


class ResultsFolder:
    """Evaluations of one or several systems on the same benchmarks.

    Args:
        path: The folder; created if it does not exist.

    Raises:
        ArtifactError: It is a run folder.
    """

    def __init__(self, path: Path) -> None:
        if (path / "recipe.yaml").exists():
            raise ArtifactError(f"{path} is a run folder, whose samples belong to its recipe. Choose another --output.")
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def samples_file(self, system: str) -> Path:
        """Where a system's samples are."""
        return self.path / "samples" / f"{system}.jsonl"

    def locked(self) -> AbstractContextManager[Any]:
        """Hold the folder for this process alone.

        Raises:
            ArtifactError: Another process is using it.
        """
        lock = FileLock(self.path / ".lock")
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            raise ArtifactError(f"Another process is working on {self.path}. Wait for it, or stop it.") from None

    def register(
        self,
        system: str,
        facts: Mapping[str, Any],
        benchmarks: Mapping[str, Sequence[Prompt]],
        own: Mapping[str, Sequence[Prompt]] | None = None,
    ) -> None:
        """Remember what a system is and what it is asked, or make sure that it is what the folder knows.

        Args:
            system: Its name.
            facts: Whatever decides its answers.
            benchmarks: Prompts by split.
            own: Prompts by split that were searched against this system, which no other is asked.

        Raises:
            ArtifactError: The folder holds answers to other prompts, or of another system under this name.
        """
        asked = _identified(benchmarks)
        record = self.path / "benchmarks.json"
        if record.exists() and read_json(record) != asked:
            raise ArtifactError(
                f"{self.path} holds answers to other prompts ({', '.join(read_json(record))}). Ask the same "
                "benchmarks in the same way, or choose another --output."
            )
        write_json(record, asked)
        path = self.path / "systems" / f"{system}.json"
        given = json.loads(json.dumps({**facts, "searched": _identified(own)} if own else dict(facts)))
        known = read_json(path)["facts"] if path.exists() else given
        differing = sorted(name for name in {*known, *given} if known.get(name) != given.get(name))
        if differing:
            raise ArtifactError(
                f"{self.path} holds other answers of {system!r}: they differ in {', '.join(differing)}. "
                "Give this evaluation another --name or another --output."
            )
        write_json(path, {"facts": given, **provenance()})

    def write_metrics(
        self, splits: Sequence[str], seen_languages: Sequence[str], panel: Panel, labels: Mapping[str, Path]
    ) -> dict[str, Any]:
        """Compute and write `metrics.json` of all systems in the folder, and what two judges agree on.

        Args:
            splits: The benchmarks and their changed copies; the first is the headline. What was searched against
                single systems follows them.
            seen_languages: Languages that the systems were aligned on, if any.
            panel: The judges, for what they cost.
            labels: Labelled sheets by system, to correct the attack success for the judge's errors.

        Returns:
            The metrics.
        """
        files = sorted((self.path / "samples").glob("*.jsonl"))
        systems = {file.stem: read_samples(file) for file in files}
        splits = list(dict.fromkeys([*splits, *(sample.split for found in systems.values() for sample in found)]))
        metrics: dict[str, Any] = {
            "schema": 1,
            "seen_languages": list(seen_languages),
            "headline": splits[0],
            **metrics_by_split(systems, splits[0], splits[1:], seen_languages),
            "judges": {judge.name: _cost(judge) for judge in panel.judges},
        }
        caveats = panel.check([(s.split, s.prompt) for samples in systems.values() for s in samples])
        metrics["caveats"] = caveats
        for name, samples in systems.items():
            if twice := judged_twice(samples, splits[0], seen_languages):
                agreement, facts = twice
                metrics["systems"][name].update(facts)
                write_json(self.path / "agreement" / f"{name}.json", facts["agreement"])
                sheet = self.path / "labels" / f"{name}.csv"
                if not sheet.exists():  # people may have written into it
                    write_labelling_sheet(sheet, agreement, RANDOM_LABELS)
            if name in labels:
                headline = [sample for sample in samples if sample.split == splits[0]]
                metrics["systems"][name]["corrected"] = corrected_attack_success(headline, samples, labels[name])
        write_json(self.path / "metrics.json", metrics)
        return metrics


def corrected_attack_success(samples: Sequence[Sample], judged: Sequence[Sample], sheet: Path) -> dict[str, Any]:
    """Attack success corrected for the judge's errors, as measured on the random draw of a labelled sheet.

    Only labels of harmful prompts count: a judge's errors on harmless ones say nothing about attack success.

    Args:
        samples: Whose attack success.
        judged: All samples that the sheet was made from.
        sheet: The sheet.

    Returns:
        `asr`, `sensitivity` and `specificity`, each a `Rate.to_json()`.

    Raises:
        DataError: The sheet belongs to other answers, has too few labels, or the judge is no better than chance.
    """
    drawn, _ = read_labels(sheet, [sample.prompt for sample in judged], [sample.text for sample in judged])
    verdicts = {row_id(sample.prompt, sample.text): sample.verdict for sample in judged}
    quality = quality_of(
        [(each.outcome, verdicts[row_id(each.prompt, each.answer)].outcome) for each in drawn if each.prompt.harmful]
    )
    corrected = corrected_rate(rate_of(samples, "asr", clustered=True), quality)
    return {
        "asr": corrected.to_json(),
        "sensitivity": quality.sensitivity.to_json(),
        "specificity": quality.specificity.to_json(),
    }


def _identified(benchmarks: Mapping[str, Sequence[Prompt]]) -> dict[str, Any]:
    return {
        split: {"prompts": len(prompts), "fingerprint": fingerprint([prompt.to_json() for prompt in prompts])}
        for split, prompts in benchmarks.items()
    }


def _cost(judge: Any) -> dict[str, Any]:
    usage = getattr(judge, "usage", None)
    return {} if usage is None else {**asdict(usage), "cached": judge.cached, "unscored": judge.unscored}
