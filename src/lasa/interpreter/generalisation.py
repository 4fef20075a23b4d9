"""What an interpreter generalises to: languages and sources it never saw, other layers, and other wordings.

None of this chooses anything: the layer is the bottleneck's, whatever another layer scores here.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from lasa.data.perturbations import Perturbation, perturbed
from lasa.data.prompts import Prompt
from lasa.errors import DataError
from lasa.interpreter.evaluation import decisions_on, group_metrics
from lasa.interpreter.fit import fit_interpreter
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.interpreter.settings import CalibrationOptions, TrainingOptions
from lasa.interpreter.training import LabelledStates


def measure(
    interpreter: SafetySemanticInterpreter, data: LabelledStates, seen_languages: Sequence[str]
) -> dict[str, Any]:
    """`group_metrics` of an interpreter's scores and decisions."""
    scores = interpreter.probability(data.states).double().numpy()
    flagged = np.array(decisions_on(interpreter, data.states, data.prompts))
    return group_metrics(scores, flagged, data.prompts, seen_languages)


def leave_one_out(
    by: Literal["language", "source"],
    train: LabelledStates,
    development: LabelledStates,
    test: LabelledStates,
    config: InterpreterConfig,
    training: TrainingOptions,
    calibration: CalibrationOptions,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Train without one language (or source) after the other, and measure on what was left out.

    One seed each, calibrated on development rows alone. What was left out is measured on the test rows of that
    language or source, or, where there are none, on its development rows, whose queries were not trained on.

    Returns:
        By language or source: `rows` (`test` or `development`) with `probe_metrics`, or `skipped` with the reason.
        Empty where the training data have a single one.
    """
    values = sorted({getattr(p, by) for p in train.prompts})
    if len(values) < 2:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for value in values:
        parts = [part.rows([not _has(p, by, value) for p in part.prompts]) for part in (train, development)]
        held = {
            name: part.rows([getattr(p, by) == value for p in part.prompts])
            for name, part in (("test", test), ("development", development))
        }
        rows = next((name for name, part in held.items() if part.prompts), None)
        try:
            if rows is None:
                raise DataError("It has neither test nor development prompts.")
            trained, _ = fit_interpreter(parts[0], parts[1], config, _one_seed(training), calibration, seed=seed)
        except DataError as error:
            found[value] = {"skipped": str(error)}
            continue
        measured = measure(trained.interpreter, held[rows], config.languages)
        found[value] = {"rows": rows, **measured["all"]}
    return found


def layer_sweep(
    at: Callable[[int], tuple[LabelledStates, LabelledStates, LabelledStates, LabelledStates]],
    layers: Sequence[int],
    config: InterpreterConfig,
    training: TrainingOptions,
    calibration: CalibrationOptions,
    seen_languages: Sequence[str],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The same interpreter, one seed, at every layer.

    Args:
        at: Training, development, test and further benign states of a layer.
        layers: The layers.
        config: Of the interpreter at the bottleneck; the layer is replaced.
        training: Of the interpreter at the bottleneck; one seed is used.
        calibration: Of the interpreter at the bottleneck.
        seen_languages: Languages of the training data.
        seed: Of the training.

    Returns:
        Per layer: `layer`, `seen`, `unseen` and `all` (see `probe_metrics`).
    """
    found = []
    for layer in layers:
        train, development, test, more_benign = at(layer)
        here = replace(config, read_point=replace(config.read_point, layer=layer))
        trained, _ = fit_interpreter(train, development, here, _one_seed(training), calibration, more_benign, seed)
        measured = measure(trained.interpreter, test, seen_languages)
        found.append({"layer": layer, **{group: measured[group] for group in ("seen", "unseen", "all")}})
    return found


def perturbation_metrics(
    interpreter: SafetySemanticInterpreter,
    read: Callable[[Sequence[Prompt]], torch.Tensor],
    test: LabelledStates,
    changes: Sequence[Perturbation],
    seen_languages: Sequence[str],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """The interpreter on perturbed copies of labelled prompts, all read together.

    Args:
        interpreter: The interpreter.
        read: Reads prompts at its read point, `[prompts, H]`.
        test: The unchanged prompts with their states.
        changes: The perturbations.
        seen_languages: Languages of the training data.
        seed: Of the perturbations.

    Returns:
        By perturbation: `seen`, `unseen` and `all` (see `probe_metrics`) over the rows that it changes, beside
        `unchanged`, the same prompts as they were; or `skipped` with the reason.
    """
    found: dict[str, dict[str, Any]] = {}
    copies: dict[str, list[Prompt]] = {}
    for change in changes:
        try:
            copies[change] = perturbed(test.prompts, change, seed)
        except DataError as error:
            found[change] = {"skipped": str(error)}
    originals = {_key(prompt): row for row, prompt in enumerate(test.prompts)}
    together = [copy for changed in copies.values() for copy in changed]
    parts = read(together).split([len(changed) for changed in copies.values()])  # type: ignore[no-untyped-call]
    for (name, changed), states in zip(copies.items(), parts, strict=True):
        if not changed:
            found[name] = {"skipped": "It changes none of the prompts."}
            continue
        rows = [originals[_key(copy)] for copy in changed]
        before = LabelledStates(test.states[rows], [test.prompts[row] for row in rows])
        measured = measure(interpreter, LabelledStates(states, changed), seen_languages)
        unchanged = measure(interpreter, before, seen_languages)["all"]
        found[name] = {group: measured[group] for group in ("seen", "unseen", "all")} | {"unchanged": unchanged}
    return {change: found[change] for change in changes}


def _one_seed(training: TrainingOptions) -> TrainingOptions:
    middle = training.strengths[len(training.strengths) // 2]
    return training.model_copy(update={"seeds": 1, "strengths": [middle]})


def _has(prompt: Prompt, by: Literal["language", "source"], value: str) -> bool:
    """Whether a prompt is of a language or source; a code-switched one is of both its languages."""
    return bool(getattr(prompt, by) == value or (by == "language" and value in prompt.details.get("languages", ())))


def _key(prompt: Prompt) -> tuple[str, str, str, str]:
    return *prompt.question, prompt.language, prompt.details.get("original_text", prompt.text)
