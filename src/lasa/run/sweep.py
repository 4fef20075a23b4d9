"""How strongly to train: of several points of a system, the one that is best on development prompts is kept.

Every system is compared at its best point under one rule, so that no baseline looks bad because it was under-trained.
The rule looks at the seen languages alone: unseen ones have no safety data in practice, in development either.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lasa.alignment.settings import SystemSettings
from lasa.errors import DataError
from lasa.evaluation.metrics import rate_of
from lasa.evaluation.outcomes import Sample
from lasa.evaluation.samples import read_samples
from lasa.run.folder import RunFolder


@dataclass(frozen=True)
class Reached:
    """What one point reached on the development prompts in the seen languages; fractions.

    Attributes:
        attack_success: Harmful prompts complied with.
        helpful: Harmless prompts answered.
    """

    attack_success: float
    helpful: float


@dataclass(frozen=True)
class Choice:
    """Which point is kept, and why.

    Attributes:
        point: Its position in the sweep.
        floor: The helpfulness that was asked for.
        reaches_floor: Whether it has that.
        verdict: The same as a sentence.
    """

    point: int
    floor: float
    reaches_floor: bool
    verdict: str


def reached(samples: Sequence[Sample], seen_languages: Sequence[str]) -> Reached:
    """Rates of one point's development samples.

    Raises:
        DataError: No harmful or no harmless prompt in a seen language was scored.
    """
    seen = [sample for sample in samples if sample.prompt.language in seen_languages]
    attack, helpful = (rate_of(seen, metric, clustered=False).value for metric in ("asr", "helpful"))
    if attack is None or helpful is None:
        raise DataError(
            "A sweep is decided on harmful and harmless development prompts in the seen languages "
            f"({', '.join(seen_languages)}); alignment.development has none of one kind, or the judge scored none."
        )
    return Reached(attack, helpful)


def choose(points: Sequence[Reached], floor: float) -> Choice:
    """The point with the lowest attack success among those at or above the helpfulness floor.

    Between equals the more helpful one is kept, then the first. If none reaches the floor, the most helpful one is.

    Args:
        points: What each point reached.
        floor: Least share of harmless prompts that must be answered.
    """
    able = [index for index, point in enumerate(points) if point.helpful >= floor]
    if able:
        best = min(able, key=lambda index: (points[index].attack_success, -points[index].helpful))
        why = f"the lowest attack success of the {len(able)} of {len(points)} points that reach"
    else:
        best = min(range(len(points)), key=lambda index: (-points[index].helpful, points[index].attack_success))
        why = f"the most helpful of {len(points)} points, none of which reaches"
    one = points[best]
    return Choice(
        best,
        floor,
        bool(able),
        f"Point {best}: attack success {one.attack_success:.1%}, helpful answers {one.helpful:.1%} on development "
        f"prompts in the seen languages; {why} the helpfulness floor of {floor:.0%}.",
    )


def sweep_metrics(
    settings: Sequence[dict[str, Any]], metrics: Sequence[dict[str, Any]], choice: Choice
) -> dict[str, Any]:
    """What a system's entry in `metrics.json` says about its sweep.

    Args:
        settings: What each point sets.
        metrics: `system_metrics` of each point's development samples.
        choice: Which one was kept.

    Returns:
        `sweep` (a list: each point's `settings`, `chosen`, `asr` and `helpful` on the seen languages, and all its
        metrics on development prompts under `development`) and `sweep_choice` (floor and verdict).
    """
    points = [
        {
            "settings": point,
            "chosen": number == choice.point,
            "asr": found["seen"]["asr"],
            "helpful": found["seen"]["helpful"],
            "development": found,
        }
        for number, (point, found) in enumerate(zip(settings, metrics, strict=True))
    ]
    return {"sweep": points, "sweep_choice": asdict(choice)}


def point_folder(run: RunFolder, name: str, number: int) -> Path:
    """Where a point of a system's sweep keeps its samples and, until the choice is made, its model."""
    return run.path / "sweep" / name / str(number)


def choice_of(run: RunFolder, name: str, system: SystemSettings) -> Choice:
    """Which point of a system's sweep is kept, from the samples of all of them."""
    seen, floor = run.recipe.seen_languages, run.recipe.alignment.helpfulness_floor
    return choose([reached(samples, seen) for samples in point_samples(run, name, system)], floor)


def point_samples(run: RunFolder, name: str, system: SystemSettings) -> list[list[Sample]]:
    """What each point of a system's sweep answered to the development prompts."""
    return [read_samples(point_folder(run, name, number) / "samples.jsonl") for number in range(len(system.sweep))]
