"""How far an interpreter's scores and decisions shift: by alignment, or on another machine.

Alignment moves the hidden states that the interpreter reads. The shift is measured on a fixed probe set that both
models read; temperature and thresholds can be fitted again on the aligned model, the weights stay. Another device,
precision or version of a library moves them, too, by rounding.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from lasa.data.prompts import Prompt
from lasa.errors import DataError
from lasa.interpreter.calibration import Calibration, calibrate
from lasa.interpreter.evaluation import decisions_on
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.interpreter.settings import CalibrationOptions
from lasa.interpreter.training import LabelledStates
from lasa.statistics import Rate, cluster_rate

Scores = Sequence[float | None] | NDArray[np.float64]

DRIFT_BOUND = 0.02
"""Share of changed decisions above which a warning is given, unless another is asked for."""


@dataclass(frozen=True)
class Drift:
    """What changed for the interpreter.

    Attributes:
        prompts: Size of the probe set.
        mean_shift: Mean absolute difference of the probabilities, of the prompts with one on both sides.
        largest_shift: The largest one.
        rank_correlation: Spearman's correlation of the scores before and after; None where one side is constant.
        changed: Share of decisions that changed, with its interval over queries.
        newly_flagged: Prompts flagged on the aligned model only.
        newly_passed: Prompts flagged on the base only.
        bound: The stated bound on `changed`.
    """

    prompts: int
    mean_shift: float
    largest_shift: float
    rank_correlation: float | None
    changed: Rate
    newly_flagged: int
    newly_passed: int
    bound: float

    @property
    def exceeded(self) -> bool:
        """Whether more decisions changed than the bound allows."""
        return self.changed.value is not None and self.changed.value > self.bound

    @property
    def found(self) -> str:
        """What was found, in words."""
        return (
            f"{self.newly_flagged + self.newly_passed} of {self.prompts} decisions changed ({self.newly_flagged} newly "
            f"flagged, {self.newly_passed} newly passed); probabilities moved by {self.mean_shift:.3f} on average"
        )

    @property
    def verdict(self) -> str:
        """What alignment changed, as a sentence; a warning where the bound is exceeded."""
        if not self.exceeded:
            return f"{self.found}. Within the bound of {self.bound:.1%}."
        return (
            f"Warning: {self.found}. That is above the bound of {self.bound:.1%}: fit the thresholds again on the "
            "aligned model, or train the interpreter on it."
        )

    def to_json(self) -> dict[str, Any]:
        """The drift with its verdict, as stored in `drift.json`."""
        return {**asdict(self), "exceeded": self.exceeded, "verdict": self.verdict}


def measure_drift(
    interpreter: SafetySemanticInterpreter,
    base_states: Tensor,
    aligned_states: Tensor,
    prompts: Sequence[Prompt],
    bound: float = DRIFT_BOUND,
) -> Drift:
    """Compare the interpreter's scores and decisions on two models' states of the same prompts.

    Args:
        interpreter: The interpreter of the base model.
        base_states: `[prompts, H]`, read on the base model at the interpreter's read point.
        aligned_states: The same, read on the aligned model.
        prompts: The probe set.
        bound: Share of changed decisions that is tolerated.

    Raises:
        DataError: The probe set is empty.
    """
    before, after = (interpreter.probability(states).double().cpu().numpy() for states in (base_states, aligned_states))
    was, now = (decisions_on(interpreter, states, prompts) for states in (base_states, aligned_states))
    return compare_decisions((before, was), (after, now), prompts, bound)


def compare_decisions(
    before: tuple[Scores, Sequence[bool]],
    after: tuple[Scores, Sequence[bool]],
    prompts: Sequence[Prompt],
    bound: float = DRIFT_BOUND,
) -> Drift:
    """Compare scores and decisions on the same prompts.

    Args:
        before: The probabilities and the decisions; a probability that is None, or not a number, is left out of the
            shifts.
        after: The same, made again.
        prompts: The prompts.
        bound: Share of changed decisions that is tolerated.

    Raises:
        DataError: There is no prompt.
    """
    if not prompts:
        raise DataError("Drift needs a probe set of at least one prompt.")
    pairs = np.array([before[0], after[0]], dtype=np.float64)
    old, new = pairs[:, np.isfinite(pairs).all(axis=0)]
    was, now = np.array(before[1], dtype=bool), np.array(after[1], dtype=bool)
    moved = np.abs(new - old) if len(old) else np.zeros(1)
    constant = not len(old) or np.ptp(old) == 0 or np.ptp(new) == 0
    return Drift(
        prompts=len(prompts),
        mean_shift=float(moved.mean()),
        largest_shift=float(moved.max()),
        rank_correlation=None if constant else float(spearmanr(old, new).statistic),
        changed=cluster_rate(was != now, [p.question for p in prompts]),
        newly_flagged=int((now & ~was).sum()),
        newly_passed=int((was & ~now).sum()),
        bound=bound,
    )


def refit(
    interpreter: SafetySemanticInterpreter,
    aligned_states: Tensor,
    prompts: Sequence[Prompt],
    options: CalibrationOptions,
    more_benign: LabelledStates | None = None,
) -> tuple[SafetySemanticInterpreter, Calibration]:
    """A copy of the interpreter with temperature and thresholds fitted on the aligned model.

    Args:
        interpreter: The interpreter of the base model.
        aligned_states: `[prompts, H]`, read on the aligned model.
        prompts: Labelled prompts that nothing is evaluated on afterwards.
        options: What to fit.
        more_benign: Benign rows, read on the aligned model, that join the prompts for thresholds with a target.

    Raises:
        DataError: The prompts lack a label or one of the two labels.
    """
    if {p.harmful for p in prompts} != {True, False}:
        raise DataError(
            "Fitting temperature and thresholds again needs prompts that are all labelled, some harmful and some "
            "benign. Give such a file, or measure the drift alone."
        )
    refitted = copy.deepcopy(interpreter)
    with torch.no_grad():
        calibrated = calibrate(refitted, LabelledStates(aligned_states, prompts), options, more_benign)
    refitted.config = calibrated.config
    return refitted, calibrated
