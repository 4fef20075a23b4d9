"""Stage 5 of a run: `metrics.json`, from nothing but what the run wrote."""

from collections.abc import Mapping, Sequence
from typing import Any

from lasa.evaluation.compare import COMPARED
from lasa.evaluation.metrics import language_groups, system_metrics
from lasa.evaluation.outcomes import Sample
from lasa.evaluation.paired import compare_systems
from lasa.evaluation.panel import judged_twice
from lasa.evaluation.samples import read_samples
from lasa.files.artifacts import read_json, read_sealed
from lasa.run.folder import RunFolder
from lasa.run.listening import LISTENED, LISTENING
from lasa.run.sweep import choice_of, point_samples, sweep_metrics


def collect_metrics(run: RunFolder) -> dict[str, Any]:
    """The content of `metrics.json`."""
    recipe = run.recipe
    samples = {name: read_samples(run.path / "samples" / f"{name}.jsonl") for name in recipe.systems}
    bottleneck, interpreter = read_sealed(run.path / "bottleneck.json"), read_json(run.path / "interpreter.json")
    headline, *others = recipe.evaluation.benchmarks
    seen = recipe.seen_languages
    graded = interpreter.get("coverage", {}).get("languages", {})
    grades = {code: one["grade"] for code, one in graded.items()}

    def systems_on(split: str) -> dict[str, Any]:
        return {name: system_metrics(_of(split, rows), seen, grades) for name, rows in samples.items()}

    systems = systems_on(headline)
    for name, system in recipe.systems.items():
        if twice := judged_twice(samples[name], headline, seen, grades):
            systems[name].update(twice[1])
        if system.method:
            systems[name]["drift"] = read_json(run.path / "systems" / name / "drift.json")
            if recipe.alignment.development:
                systems[name]["perplexity"] = read_json(run.path / "systems" / name / "perplexity.json")
        if system.sweep:
            tried = [system_metrics(samples, seen) for samples in point_samples(run, name, system)]
            systems[name].update(sweep_metrics(system.sweep, tried, choice_of(run, name, system)))
    return {
        "schema": 1,
        "seen_languages": seen,
        "headline": headline,
        "bottleneck": bottleneck,
        "interpreter": {
            **interpreter["facts"],
            **interpreter["benchmarks"][headline],
            **interpreter["generalisation"],
            **({"coverage": interpreter["coverage"]} if "coverage" in interpreter else {}),
            **({"answers": read_json(run.path / LISTENED)} if run.finished(LISTENING) else {}),
            "audit": interpreter["audit"],
        },
        "systems": systems,
        "splits": {
            split: {"systems": systems_on(split), "interpreter": interpreter["benchmarks"][split]} for split in others
        },
        "comparisons": _comparisons({name: _of(headline, rows) for name, rows in samples.items()}, seen, grades),
        "seconds": {stage: cost["seconds"] for stage, cost in run.costs.items()},
        "costs": run.costs,
    }


def _comparisons(
    samples: dict[str, list[Sample]], seen: Sequence[str], grades: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The last system of the recipe against every other, on each group of languages."""
    *others, last = samples
    codes = {s.prompt.language for rows in samples.values() for s in rows}
    groups = language_groups(codes, seen, grades)
    return [
        compare_systems(samples[other], samples[last], other, last, languages, group, metric)
        for metric in COMPARED
        for other in others
        for group, languages in groups.items()
        if languages
    ]


def _of(split: str, samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.split == split]
