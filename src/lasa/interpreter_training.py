"""Train and calibrate the Safety Semantic Interpreter on stored hidden states.

Binary cross-entropy, every (language, source, label) cell with the same total weight; early stopping on development
rows that share no query with training; temperature and threshold fitted on the development rows alone.
"""

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lasa.errors import DataError, RecipeError
from lasa.interpreter import InterpreterConfig, SafetySemanticInterpreter
from lasa.progress import progress
from lasa.prompts import Prompt


@dataclass(frozen=True)
class LabelledStates:
    """Hidden states of one read point with what is known of their prompts.

    Attributes:
        states: `[rows, H]` float32.
        prompts: The prompts; all labelled.
    """

    states: Tensor
    prompts: Sequence[Prompt]

    @property
    def labels(self) -> Tensor:
        """1 for harmful, 0 for benign, `[rows]` float32."""
        return torch.tensor([float(bool(p.harmful)) for p in self.prompts])

    def rows(self, keep: Sequence[bool]) -> "LabelledStates":
        """The rows marked True."""
        index = [row for row, kept in enumerate(keep) if kept]
        return LabelledStates(self.states[index], [self.prompts[row] for row in index])

    def only(self, languages: Sequence[str]) -> "LabelledStates":
        """The rows in some languages."""
        return self.rows([p.language in languages for p in self.prompts])


@dataclass(frozen=True)
class TrainingOptions:
    """How the interpreter is trained; the defaults are the paper's where it states them.

    Attributes:
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        epochs: At most this many passes.
        patience: Stop after this many epochs without a better development loss.
        batch_size: Rows per step.
        noise: Standard deviation of Gaussian input noise, in units of each feature's own deviation; 0 for none.
        seeds: Independent trainings; the one with the best development loss is kept, the spread is reported.
        seed: First seed.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    epochs: int = 20
    patience: int = 4
    batch_size: int = 128
    noise: float = 0.0
    seeds: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A trained interpreter and how its seeds compare.

    Attributes:
        interpreter: The one with the lowest development loss, its best weights restored.
        development_losses: Best development loss per seed.
        development_auroc: AUROC on the development rows per seed.
    """

    interpreter: SafetySemanticInterpreter
    development_losses: list[float]
    development_auroc: list[float] = field(default_factory=list)


def train_interpreter(
    train: LabelledStates, development: LabelledStates, config: InterpreterConfig, options: TrainingOptions
) -> Trained:
    """Train with several seeds and keep the best by development loss.

    Raises:
        DataError: A split lacks a label, has an unlabelled row, or shares a query with the other.
    """
    _check_splits(train, development)
    found: list[tuple[float, float, SafetySemanticInterpreter]] = []
    with progress("Training the interpreter", options.seeds * options.epochs, "epochs") as advance:
        for seed in range(options.seed, options.seed + options.seeds):
            loss, interpreter, epochs = _train_one(train, development, config, options, seed, advance)
            advance(options.epochs - epochs)
            found.append((loss, auroc(interpreter, development), interpreter))
    best = min(found, key=lambda entry: entry[0])
    return Trained(best[2], [loss for loss, _, _ in found], [area for _, area, _ in found])


def auroc(interpreter: SafetySemanticInterpreter, data: LabelledStates) -> float:
    """Area under the ROC curve."""
    with torch.no_grad():
        return float(roc_auc_score(data.labels.numpy(), interpreter(data.states).numpy()))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al., 2017), between 0.05 and 20."""
    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        return float(torch.nn.functional.binary_cross_entropy_with_logits(scaled, labels))

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20.0)), method="bounded")
    return float(math.exp(found.x))


@dataclass(frozen=True)
class Threshold:
    """A threshold for a target false-refusal rate and what can be promised about it.

    Attributes:
        value: Prompts with this probability or more are flagged.
        guarantee: What holds, in words.
    """

    value: float
    guarantee: str


def conformal_threshold(benign_probabilities: Sequence[float], false_refusals: float) -> Threshold:
    """The threshold that flags at most a share of benign prompts, with the split-conformal guarantee where n allows.

    With n exchangeable benign development prompts, flagging what lies strictly above the ceil((n + 1)(1 - a))-th
    smallest score flags a new benign prompt with probability at most a (Vovk et al., 2005; no assumption on the
    scores).

    Args:
        benign_probabilities: Scores of benign development prompts.
        false_refusals: The target share a, in (0, 1).
    """
    scores = np.sort(np.asarray(benign_probabilities, dtype=float))
    rank = math.ceil((len(scores) + 1) * (1 - false_refusals))
    if len(scores) and rank <= len(scores):
        return Threshold(
            _just_above(scores[rank - 1]),
            f"At most {false_refusals:.1%} of benign prompts like the {len(scores)} development prompts are flagged "
            "(split conformal, on average over development sets).",
        )
    highest = float(scores[-1]) if len(scores) else 0.5
    return Threshold(
        max(_just_above(highest), 0.5),
        f"No guarantee: {len(scores)} benign development prompts cannot bound a rate of {false_refusals:.1%}; "
        f"at least {math.ceil(1 / false_refusals) - 1} are needed. The threshold lies above all of them.",
    )


def balanced_threshold(probabilities: Tensor, labels: Tensor) -> float:
    """The middle of the widest interval of thresholds with the best balanced accuracy."""
    p, y = probabilities.double().numpy(), labels.numpy() > 0.5
    edges = np.concatenate([[0.0], np.unique(p), [1.0]])
    middles = (edges[1:] + edges[:-1]) / 2
    tpr = np.array([(p[y] >= t).mean() for t in middles])
    tnr = np.array([(p[~y] < t).mean() for t in middles])
    score = tpr + tnr
    best = np.flatnonzero(score >= score.max() - 1e-12)
    widest = best[np.argmax((edges[1:] - edges[:-1])[best])]
    return float(middles[widest])


def calibrate(
    interpreter: SafetySemanticInterpreter,
    development: LabelledStates,
    *,
    false_refusals: float | None = None,
    per_language: bool = False,
) -> tuple[InterpreterConfig, str]:
    """Fit temperature and threshold(s) on development rows.

    Args:
        interpreter: The trained probe.
        development: Rows that were not trained on.
        false_refusals: Target share of flagged benign prompts; None takes the best balanced accuracy.
        per_language: Also fit a threshold for each development language.

    Returns:
        The config with temperature and thresholds, and what can be said about the threshold.
    """
    with torch.no_grad():
        logits = interpreter(development.states)
    temperature = fit_temperature(logits, development.labels)
    probabilities = torch.sigmoid(logits / temperature)
    benign = development.labels < 0.5
    if false_refusals is None:
        threshold = balanced_threshold(probabilities, development.labels)
        return _replace(interpreter.config, temperature, threshold, {}), "Best balanced accuracy on development data."
    found = conformal_threshold(probabilities[benign].tolist(), false_refusals)
    by_language: dict[str, float] = {}
    if per_language:
        for code in sorted({p.language for p in development.prompts}):
            own = torch.tensor([p.language == code for p in development.prompts]) & benign
            by_language[code] = conformal_threshold(probabilities[own].tolist(), false_refusals).value
    return _replace(interpreter.config, temperature, found.value, by_language), found.guarantee


def expected_calibration_error(
    probabilities: NDArray[np.float64], labels: NDArray[np.float64], bins: int = 10
) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error with equal-width bins, and the reliability diagram it sums over."""
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    diagram, error = [], 0.0
    for number in range(bins):
        inside = index == number
        if inside.any():
            confidence, accuracy = float(probabilities[inside].mean()), float(labels[inside].mean())
            diagram.append({"confidence": confidence, "accuracy": accuracy, "n": int(inside.sum())})
            error += inside.mean() * abs(confidence - accuracy)
    return float(error), diagram


def _train_one(
    train: LabelledStates,
    development: LabelledStates,
    config: InterpreterConfig,
    options: TrainingOptions,
    seed: int,
    advance: Any,
) -> tuple[float, SafetySemanticInterpreter, int]:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        interpreter = SafetySemanticInterpreter(config)
        optimizer = torch.optim.AdamW(
            interpreter.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        weights, labels = cell_weights(train.prompts), train.labels
        dev_weights, dev_labels = cell_weights(development.prompts), development.labels
        deviation = train.states.std(dim=0)
        best, best_loss, best_epoch, epoch = copy.deepcopy(interpreter.state_dict()), math.inf, 0, 0
        for epoch in range(1, options.epochs + 1):
            interpreter.train()
            for rows in torch.randperm(len(labels), generator=generator).split(options.batch_size):
                states = train.states[rows]
                if options.noise:
                    noise = torch.randn(states.shape, generator=generator)
                    states = states + options.noise * deviation * noise
                loss = _weighted_loss(interpreter(states), labels[rows], weights[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            interpreter.eval()
            with torch.no_grad():
                dev_loss = float(_weighted_loss(interpreter(development.states), dev_labels, dev_weights))
            advance(1)
            if dev_loss < best_loss:
                best, best_loss, best_epoch = copy.deepcopy(interpreter.state_dict()), dev_loss, epoch
            elif epoch - best_epoch >= options.patience:
                break
    interpreter.load_state_dict(best)
    return best_loss, interpreter.eval(), epoch


def cell_weights(prompts: Sequence[Prompt]) -> Tensor:
    """Weight of each row so that every (language, source, label) cell counts the same; mean 1."""
    cells = [(p.language, p.source, p.harmful) for p in prompts]
    counts = Counter(cells)
    weights = torch.tensor([1 / counts[cell] for cell in cells])
    # Equal totals for both labels, even when one of them comes from more sources.
    labels = torch.tensor([bool(p.harmful) for p in prompts])
    for side in (labels, ~labels):
        if side.any():
            weights[side] /= weights[side].sum()
    return weights * len(prompts) / weights.sum()


def _weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (losses * weights).sum() / weights.sum()


def _check_splits(train: LabelledStates, development: LabelledStates) -> None:
    for name, part in (("training", train), ("development", development)):
        if any(p.harmful is None for p in part.prompts):
            raise DataError(f"The {name} prompts are not all labelled harmful or benign. Add a label column.")
        if len({p.harmful for p in part.prompts}) < 2:
            raise DataError(f"The {name} prompts need both harmful and benign rows to train an interpreter.")
    shared = {p.query_id for p in train.prompts} & {p.query_id for p in development.prompts}
    if shared:
        raise DataError(
            f"{len(shared)} queries are in both the training and the development data (such as "
            f"{sorted(shared)[0]!r}); early stopping and thresholds would be fitted on known prompts. Split by query."
        )


def split_by_query(prompts: Sequence[Prompt], share: float, seed: int) -> tuple[list[bool], list[bool]]:
    """Masks of training and development rows; all translations of a query go to the same side.

    Raises:
        RecipeError: The share leaves one side empty.
    """
    queries = sorted({p.query_id for p in prompts})
    order = np.random.default_rng(seed).permutation(len(queries))
    count = round(share * len(queries))
    if not 0 < count < len(queries):
        raise RecipeError(f"A development share of {share} of {len(queries)} queries leaves one side empty.")
    held_out = {queries[index] for index in order[:count]}
    development = [p.query_id in held_out for p in prompts]
    return [not kept for kept in development], development


def _replace(
    config: InterpreterConfig, temperature: float, threshold: float, by_language: dict[str, float]
) -> InterpreterConfig:
    from dataclasses import replace

    return replace(config, temperature=temperature, threshold=threshold, language_thresholds=by_language)


def _just_above(score: float) -> float:
    return float(min(np.nextafter(np.float32(score), np.float32(2.0)), 1.0))


Kind = Literal["mlp", "linear"]
