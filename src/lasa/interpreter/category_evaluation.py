"""How well an interpreter names the kind of harm: per language, seen and unseen languages apart, against n-grams."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lasa.data.harm import harm_categories
from lasa.data.prompts import Prompt
from lasa.interpreter.categories import labelled
from lasa.interpreter.evaluation import by_group, ngram_classifier
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.interpreter.training import LabelledStates
from lasa.statistics import cluster_rate


def evaluate_categories(
    interpreter: SafetySemanticInterpreter, test: LabelledStates, train: LabelledStates, seen_languages: Sequence[str]
) -> dict[str, Any]:
    """Metrics of the head for categories on the harmful prompts of which it tells one kind or more apart.

    Args:
        interpreter: With or without such a head.
        test: Held-out prompts.
        train: What it was trained on, for the n-gram baseline.
        seen_languages: Languages of the training data.

    Returns:
        `languages`, `seen`, `unseen` and `all`, each with `right` (the likeliest kind is one of the prompt's), `named`
        (it is sure enough to be named), `right_when_named` and `ngrams_right`; and `kinds`, the same by the prompt's
        first kind. Empty where there is no head, or no such prompt.
    """
    head = interpreter.config.categories
    if head is None:
        return {}
    known = test.rows([bool(set(harm_categories(p)) & set(head.names)) for p in test.prompts])
    if not known.prompts:
        return {}
    values, best = interpreter.category_probabilities(known.states).max(-1)
    named = (values >= head.threshold).numpy()
    right = _right(best.numpy(), known.prompts, head.names)
    learnt = labelled(train, head.names)
    rival = ngram_classifier(learnt.data.prompts, learnt.index.tolist())(known.prompts).argmax(-1)
    by_ngrams = _right(rival, known.prompts, head.names)
    questions = [p.question for p in known.prompts]

    def rate(hits: NDArray[np.bool_], rows: Sequence[int]) -> dict[str, Any]:
        return cluster_rate(hits[list(rows)], [questions[row] for row in rows]).to_json()

    def measured(rows: list[int]) -> dict[str, Any]:
        return {
            "right": rate(right, rows),
            "named": rate(named, rows),
            "right_when_named": rate(right, [row for row in rows if named[row]]),
            "ngrams_right": rate(by_ngrams, rows),
        }

    first = [next(name for name in harm_categories(p) if name in head.names) for p in known.prompts]
    kinds = {name: [row for row, one in enumerate(first) if one == name] for name in head.names if name in first}
    groups = by_group(known.prompts, seen_languages, measured)
    return {**groups, "kinds": {name: measured(rows) for name, rows in kinds.items()}}


def _right(best: NDArray[np.int64], prompts: Sequence[Prompt], names: Sequence[str]) -> NDArray[np.bool_]:
    """Whether the likeliest category of each prompt is one that it is labelled with."""
    pairs = zip(best.tolist(), prompts, strict=True)
    return np.array([names[one] in harm_categories(prompt) for one, prompt in pairs], dtype=bool)
