"""How well an interpreter reads intent: per language, seen and unseen languages apart, against honest baselines."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve

from lasa.data.prompts import Prompt
from lasa.interpreter.calibration import expected_calibration_error
from lasa.interpreter.encoder import Encoder
from lasa.interpreter.probe import SafetySemanticInterpreter, thresholds_for
from lasa.interpreter.training import LabelledStates
from lasa.languages import sort_languages
from lasa.statistics import Rate, cluster_auroc, cluster_rate

Floats = NDArray[np.float64]


def evaluate_interpreter(
    interpreter: SafetySemanticInterpreter, data: LabelledStates, seen_languages: Sequence[str]
) -> dict[str, Any]:
    """Metrics of an interpreter on held-out prompts, as in `metrics.json`.

    Returns:
        `languages`, `seen`, `unseen`, `all` (see `probe_metrics`), `calibration` and `score_histogram`.
    """
    scores = interpreter.probability(data.states).double().numpy()
    thresholds = thresholds_for(interpreter.config, [p.language for p in data.prompts]).double().numpy()
    labels = data.labels.double().numpy()
    error, diagram = expected_calibration_error(scores, labels)
    edges = np.linspace(0, 1, 21)
    return {
        **group_metrics(scores, scores >= thresholds, data.prompts, seen_languages),
        "calibration": {"ece": error, "reliability": diagram},
        "score_histogram": {
            "edges": edges.tolist(),
            "harmful": np.histogram(scores[labels > 0.5], edges)[0].tolist(),
            "benign": np.histogram(scores[labels < 0.5], edges)[0].tolist(),
        },
    }


def group_metrics(
    scores: Floats, flagged: NDArray[np.bool_], prompts: Sequence[Prompt], seen_languages: Sequence[str]
) -> dict[str, Any]:
    """`probe_metrics` per language, and for the seen languages, the unseen ones, and all."""

    def measured(rows: list[int]) -> dict[str, Any]:
        return probe_metrics(scores[rows], flagged[rows], [prompts[row] for row in rows])

    return by_group(prompts, seen_languages, measured)


def by_group(
    prompts: Sequence[Prompt], seen_languages: Sequence[str], measured: Callable[[list[int]], dict[str, Any]]
) -> dict[str, Any]:
    """What is measured on the rows of each language, the seen ones, the unseen ones, and all."""

    def on(keep: Callable[[Prompt], bool]) -> dict[str, Any]:
        return measured([row for row, prompt in enumerate(prompts) if keep(prompt)])

    codes = sort_languages({p.language for p in prompts})
    return {
        "languages": {code: on(lambda p, code=code: p.language == code) for code in codes},  # type: ignore[misc]
        "seen": on(lambda p: p.language in seen_languages),
        "unseen": on(lambda p: p.language not in seen_languages),
        "all": on(lambda p: True),
    }


def probe_metrics(scores: Floats, flagged: NDArray[np.bool_], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Balanced accuracy, true and false positive rates with intervals, AUROC, and TPR at 1 % false positives.

    Args:
        scores: Probability that each prompt is harmful.
        flagged: The decision on each.
        prompts: The prompts; clusters of the intervals are their queries.
    """
    harmful = np.array([bool(p.harmful) for p in prompts], dtype=bool)
    hard = np.array([p.category == "hard_benign" for p in prompts], dtype=bool)
    queries = [p.question for p in prompts]
    n_harmful, n_benign = int(harmful.sum()), int((~harmful).sum())
    tpr, fpr = _rate(flagged, harmful, queries), _rate(flagged, ~harmful, queries)
    found: dict[str, Any] = {"tpr": tpr.to_json(), "fpr": fpr.to_json()}
    if hard.any():
        found["hard_benign_fpr"] = _rate(flagged, hard, queries).to_json()
    if n_harmful and n_benign:
        found["balanced_accuracy"] = _mean_rate(tpr, _rate(~flagged, ~harmful, queries)).to_json()
        found["auroc"] = cluster_auroc(scores, harmful, queries).to_json()
        false, true, _ = roc_curve(harmful, scores)
        found["tpr_at_1_percent_fpr"] = float(true[false <= 0.01].max())
    return found


def ngram_baseline(
    train: Sequence[Prompt], test: Sequence[Prompt], seen_languages: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """What character n-grams of the text alone achieve: the floor that an interpreter has to beat."""
    scores = ngram_classifier(train, [bool(p.harmful) for p in train], seed)(test)[:, 1]
    return group_metrics(scores, scores >= 0.5, test, seen_languages)


def ngram_classifier(
    train: Sequence[Prompt], labels: Sequence[object], seed: int = 0
) -> Callable[[Sequence[Prompt]], Floats]:
    """A classifier of texts by character n-grams: prompts to probabilities, `[prompts, labels]`, labels sorted."""
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, max_features=100_000)
    features = vectorizer.fit_transform([p.text for p in train])
    classifier = LogisticRegression(max_iter=2000, class_weight="balanced", random_state=seed).fit(features, labels)

    def probabilities(prompts: Sequence[Prompt]) -> Floats:
        found: Floats = classifier.predict_proba(vectorizer.transform([p.text for p in prompts]))
        return found

    return probabilities


def encoder_baseline(
    encode: Encoder, train: Sequence[Prompt], test: Sequence[Prompt], seen_languages: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """What a multilingual sentence encoder with logistic regression achieves: the rival that needs no model inside."""
    classifier = LogisticRegression(max_iter=5000, class_weight="balanced", random_state=seed)
    classifier.fit(encode([p.text for p in train]), [bool(p.harmful) for p in train])
    scores = classifier.predict_proba(encode([p.text for p in test]))[:, 1]
    return group_metrics(scores, scores >= 0.5, test, seen_languages)


def _rate(flagged: NDArray[np.bool_], keep: NDArray[np.bool_], queries: Sequence[Hashable]) -> Rate:
    return cluster_rate(flagged[keep], [query for query, kept in zip(queries, keep, strict=True) if kept])


def _mean_rate(first: Rate, second: Rate) -> Rate:
    """The mean of two independent rates; its interval recovers their variances (MOVER; Zou and Donner, 2008)."""
    a, b = first, second
    assert a.value is not None and a.low is not None and a.high is not None
    assert b.value is not None and b.low is not None and b.high is not None
    mean = (a.value + b.value) / 2
    below = math.hypot(a.value - a.low, b.value - b.low) / 2
    above = math.hypot(a.high - a.value, b.high - b.value) / 2
    return Rate(mean, mean - below, mean + above, a.n + b.n)


def decisions_on(interpreter: SafetySemanticInterpreter, states: torch.Tensor, prompts: Sequence[Prompt]) -> list[bool]:
    """The hard decisions of an interpreter on states that were read at its read point.

    A score that is not a number counts as harmful, as in `lasa.conditioning.decision.decide`.
    """
    scores = interpreter.probability(states).cpu()
    below = scores < thresholds_for(interpreter.config, [p.language for p in prompts])
    flagged: list[bool] = (~below).tolist()
    return flagged
