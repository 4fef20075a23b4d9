"""The interpreter's second head: which kind of harm, for prompts that are harmful.

Multinomial logistic regression on the same hidden states, trained on the harmful prompts whose kind is known (see
`lasa.data.harm`); every (language, source, category) cell of a category counts the same. It names a kind only where it
is sure enough: the threshold bounds the share of wrong names among those that it names (selective classification;
Geifman and El-Yaniv, 2017), so far as the development prompts can promise that.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lasa.data.harm import HAZARDS, harm_categories
from lasa.data.prompts import Prompt
from lasa.interpreter.calibration import CONFIDENCE, Threshold
from lasa.interpreter.heads import CategoryHead
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.interpreter.training import LabelledStates

LEAST_QUESTIONS = 20
"""Training questions of a category without which it is not told apart."""

STEPS = 10
"""Shares of the development rows that are tried for naming."""

UNSURE = 0.5
"""Probability from which a category is named where no bound can be promised."""


@dataclass(frozen=True)
class Labels:
    """Harmful prompts whose kind is among some categories.

    Attributes:
        data: They and their states.
        index: The number of each one's category, `[rows]`.
    """

    data: LabelledStates
    index: NDArray[np.int64]


def add_categories(
    interpreter: SafetySemanticInterpreter, train: LabelledStates, development: LabelledStates, errors: float
) -> tuple[SafetySemanticInterpreter, str | None]:
    """An interpreter with a head for the kinds of harm that its data have labels for.

    Args:
        interpreter: Trained and calibrated; it is not changed.
        train: The training rows.
        development: Rows of other questions.
        errors: Target share of wrong names among those that the head gives.

    Returns:
        The interpreter with the head and what holds for its names; or the same and None where fewer than two kinds
        have labels enough.
    """
    names = _enough(train.prompts)
    if len(names) < 2:
        return interpreter, None
    learnt, held = labelled(train, names), labelled(development, names)
    weight, bias = _solved(learnt)
    config = replace(interpreter.config, categories=CategoryHead(names))
    found = SafetySemanticInterpreter(config)
    with torch.no_grad():
        found.load_state_dict({**interpreter.state_dict(), "kinds.weight": weight, "kinds.bias": bias})
        logits = held.data.states @ weight.T + bias
    temperature = _temperature(logits, held.index)
    threshold = naming_threshold(torch.softmax(logits / temperature, -1), held.index, errors)
    found.config = replace(
        config,
        categories=CategoryHead(names, temperature, threshold.value),
        parameters=found.num_parameters(),
        parameter_share=config.parameter_share * found.num_parameters() / max(config.parameters, 1),
    )
    return found.eval(), threshold.statement


def labelled(data: LabelledStates, names: Sequence[str]) -> Labels:
    """The harmful rows whose first label is among the categories."""
    first = [next(iter(harm_categories(prompt)), None) for prompt in data.prompts]
    rows = data.rows([name in names for name in first])
    return Labels(rows, np.array([names.index(name) for name in first if name in names], dtype=np.int64))


def naming_threshold(probabilities: Tensor, index: NDArray[np.int64], errors: float) -> Threshold:
    """The lowest probability from which at most a share of the named kinds is wrong, with 95 % confidence.

    The surest tenth, two tenths, ... of the development rows are tried, each with a binomial test at a tenth of the
    level (Geifman and El-Yaniv, 2017, with a grid instead of their search); the largest share that passes is named.

    Args:
        probabilities: `[rows, categories]` of development rows.
        index: The true category of each.
        errors: The target share, in (0, 1).
    """
    values, best = (found.numpy() for found in probabilities.double().max(-1))
    order = np.argsort(-values, kind="stable")
    wrong = np.concatenate([[0], np.cumsum(best[order] != index[order])])
    counts = [len(order) * step // STEPS for step in range(1, STEPS + 1)]
    passed = [n for n in counts if n and binom.cdf(wrong[n], n, errors) <= (1 - CONFIDENCE) / STEPS]
    if not passed:
        return Threshold(
            UNSURE,
            False,
            f"No guarantee: {len(order)} development prompts with a known kind of harm do not show that at most "
            f"{errors:.0%} of the names are wrong. A kind is named from a probability of {UNSURE}.",
        )
    named = max(passed)
    return Threshold(
        float(values[order[named - 1]]),
        True,
        f"At most {errors:.0%} of the kinds named are wrong on prompts like the {len(order)} development prompts (with "
        f"{CONFIDENCE:.0%} confidence); {named / len(order):.0%} of them are named.",
    )


def _enough(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """The categories with labels of enough questions, in the taxonomy's order."""
    questions: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for prompt in prompts:
        for name in harm_categories(prompt)[:1]:
            questions[name].add(prompt.question)
    return tuple(name for name in HAZARDS if len(questions[name]) >= LEAST_QUESTIONS)


def _solved(data: Labels, strength: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Weights `[categories, H]` and biases of the regression, its standardisation folded into them."""
    states = data.data.states.double().numpy()
    mean, deviation = states.mean(0), np.maximum(states.std(0), 1e-6)
    solved = LogisticRegression(C=strength, max_iter=1000)
    solved.fit((states - mean) / deviation, data.index, sample_weight=_weights(data))
    coefficients, intercepts = solved.coef_, solved.intercept_
    if len(coefficients) == 1:  # two categories: scikit-learn gives the second's logit alone
        coefficients, intercepts = (np.concatenate([-one / 2, one / 2]) for one in (coefficients, intercepts))
    weight = coefficients / deviation
    return torch.from_numpy(weight).float(), torch.from_numpy(intercepts - weight @ mean).float()


def _weights(data: Labels) -> NDArray[np.float64]:
    """Every category the same weight, and within it every language and source; mean 1."""
    cells = [(p.language, p.source, int(kind)) for p, kind in zip(data.data.prompts, data.index, strict=True)]
    counts = Counter(cells)
    sharing = Counter(kind for _, _, kind in counts)
    weights: NDArray[np.float64] = np.array([1 / (counts[cell] * sharing[cell[2]]) for cell in cells])
    weights /= weights.mean()
    return weights


def _temperature(logits: Tensor, index: NDArray[np.int64]) -> float:
    """The temperature with the lowest negative log-likelihood, between 0.05 and 20; 1 without development rows.

    Targets are smoothed by one pseudo-count per category, as in `lasa.interpreter.calibration.fit_temperature`.
    """
    if not len(index):
        return 1.0
    truth, kinds = torch.from_numpy(index), logits.shape[-1]
    smoothing = kinds / (len(index) + kinds)

    def loss(log_temperature: float) -> float:
        scaled = logits.double() / math.exp(log_temperature)
        return float(torch.nn.functional.cross_entropy(scaled, truth, label_smoothing=smoothing))

    return math.exp(float(minimize_scalar(loss, bounds=(math.log(0.05), math.log(20.0)), method="bounded").x))
