"""Where an interpreter holds: a certificate per language, from harmless parallel text, without a single safety label.

Four signals per language, on sentences that are translations of each other:

- agreement: the rank correlation (Spearman) of the interpreter's scores with those of the same sentences in the seen
  languages. An interpreter that reads meaning gives a sentence and its translation the same place; one that reads the
  surface does not. It is compared with what the seen languages reach among themselves on this model.
- displacement: how far the mean state of a language lies from that of the seen languages, in the mean distance of a
  state of theirs to its language's mean. The interpreter has learned nothing about states that lie elsewhere. It is
  comparable between models at their bottleneck, where languages lie together; at other layers none may.
- shift: how far the scores of a language lie from those of the same sentences in the seen languages, in standard
  deviations of these. A language whose harmless text scores high is flagged as a whole.
- retrieval: how often the nearest English sentence is the translation, under centred cosine, at the layer read.

The grade comes from displacement, and from agreement as a floor. Its constants were fitted on one real model and
tried on the other (lab notes). Shift and retrieval are reported: each predicts well on one model and
not on another.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from lasa.data.prompts import Prompt, check_parallel
from lasa.errors import DataError
from lasa.interpreter.evaluation import probe_metrics
from lasa.interpreter.heads import Grade
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.interpreter.training import LabelledStates
from lasa.languages import sort_languages
from lasa.statistics import CONFIDENCE, Rate, wilson

Floats = NDArray[np.float64]

COVERED_AGREEMENT, PARTLY_AGREEMENT = 0.5, 0.35
"""Least agreement, as a share of that among the seen languages, of a covered and of a partly covered language."""

COVERED_DISPLACEMENT, PARTLY_DISPLACEMENT = 0.6, 0.7
"""Largest displacement of a covered and of a partly covered language."""

LEAST_REFERENCE = 0.2
"""Agreement among the seen languages below which the interpreter is not graded at all: it reads no meaning there."""

FEWEST = 30
"""Sentences below which no language is graded covered."""


@dataclass(frozen=True)
class LanguageCoverage:
    """What is known of one language.

    Attributes:
        grade: The prediction.
        agreement: Spearman correlation with the seen languages' scores.
        displacement: Distance of its mean state to theirs, in mean distances within a language.
        shift: Mean difference to them, in standard deviations of theirs.
        retrieval: Share of sentences whose nearest English sentence is their translation.
        auroc: Measured area under the ROC curve, where there are labels.
    """

    grade: Grade
    agreement: Rate
    displacement: Rate
    shift: Rate
    retrieval: Rate | None
    auroc: Rate | None = None


@dataclass(frozen=True)
class Coverage:
    """The certificate of an interpreter.

    Attributes:
        layer: Layer that is read.
        position: Token position that is read.
        reference: Agreement of the seen languages among themselves.
        languages: By code.
        rank_correlation: Spearman correlation of a signal with the measured AUROC over the unseen languages, by signal;
            none with fewer than three of them measured, or all alike.
    """

    layer: int
    position: str
    reference: float
    languages: dict[str, LanguageCoverage]
    rank_correlation: dict[str, float]

    @property
    def rule(self) -> str:
        """How a grade comes about."""
        return (
            f"covered: agreement of at least {COVERED_AGREEMENT:.0%} of that among the seen languages "
            f"({self.reference:.2f}), and a displacement of at most {COVERED_DISPLACEMENT}; partly: "
            f"{PARTLY_AGREEMENT:.0%} and {PARTLY_DISPLACEMENT}; else not covered"
        )

    def to_json(self) -> dict[str, Any]:
        """As in `coverage.json`."""
        return {**asdict(self), "rule": self.rule}


def measure_coverage(
    interpreter: SafetySemanticInterpreter, sentences: LabelledStates, labelled: LabelledStates | None = None
) -> Coverage:
    """Grade every language of a table of harmless parallel sentences.

    Args:
        interpreter: The interpreter; its training languages are the seen ones.
        sentences: Parallel sentences with their states at its read point; labels are not looked at.
        labelled: Labelled prompts, to measure what was predicted, or None.

    Raises:
        DataError: The sentences are not parallel, or are in fewer than two seen languages.
    """
    check_parallel(sentences.prompts)
    seen = interpreter.config.languages
    scores = _by_language(_logits(interpreter, sentences.states), sentences.prompts)
    if len(set(seen) & set(scores)) < 2:
        raise DataError(
            f"Coverage needs sentences in at least two of the interpreter's languages ({', '.join(seen)}); the table "
            f"is in {', '.join(sort_languages(set(scores)))}."
        )
    agreements = {code: _agreement(scores[code], _consensus(scores, seen, code)) for code in scores}
    reference = float(np.mean([agreements[code].value or 0.0 for code in scores if code in seen]))
    displaced = _displacement(sentences, seen)
    retrieved = _retrieval(sentences)
    measured = _measured(interpreter, labelled) if labelled else {}
    languages = {}
    for code in sort_languages(set(scores)):
        languages[code] = LanguageCoverage(
            grade(agreements[code], displaced[code], reference),
            agreements[code],
            displaced[code],
            _shift(scores[code], _consensus(scores, seen, code)),
            retrieved.get(code),
            measured.get(code),
        )
    point = interpreter.config.read_point
    unseen = [one for code, one in languages.items() if code not in seen]
    return Coverage(point.layer, point.position, reference, languages, _rank_correlation(unseen))


def grade(agreement: Rate, displacement: Rate, reference: float) -> Grade:
    """The predicted grade of a language; see `Coverage.rule`."""
    if displacement.value is None or reference < LEAST_REFERENCE:
        return "not covered"
    share, moved = (agreement.value or 0.0) / reference, displacement.value
    if share >= COVERED_AGREEMENT and moved <= COVERED_DISPLACEMENT and agreement.n >= FEWEST:
        return "covered"
    return "partly" if share >= PARTLY_AGREEMENT and moved <= PARTLY_DISPLACEMENT else "not covered"


def _rank_correlation(languages: Sequence[LanguageCoverage]) -> dict[str, float]:
    found = {}
    for signal in ("agreement", "displacement", "shift", "retrieval"):
        pairs = [(getattr(one, signal), one.auroc) for one in languages]
        known = [(x.value, y.value) for x, y in pairs if x and y and None not in (x.value, y.value)]
        signals, areas = np.array(known).reshape(-1, 2).T
        if len(known) > 2 and np.ptp(signals) > 0 and np.ptp(areas) > 0:
            found[signal] = _spearman(signals, areas)
    return found


@torch.no_grad()
def _logits(interpreter: SafetySemanticInterpreter, states: torch.Tensor) -> Floats:
    logits: Floats = interpreter(states.to(interpreter.out.weight.device)).double().cpu().numpy()
    return logits


def _by_language(scores: Floats, prompts: Sequence[Prompt]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for prompt, score in zip(prompts, scores.tolist(), strict=True):
        found.setdefault(prompt.language, {})[prompt.query_id] = score
    return found


def _consensus(scores: dict[str, dict[str, float]], seen: Collection[str], without: str) -> dict[str, float]:
    """Mean score of each sentence in the seen languages but one."""
    others = [scores[code] for code in seen if code in scores and code != without]
    shared = set.intersection(*(set(one) for one in others))
    return {query: float(np.mean([one[query] for one in others])) for query in shared}


def _paired(first: dict[str, float], second: dict[str, float]) -> tuple[Floats, Floats]:
    shared = sorted(first.keys() & second.keys())
    return np.array([first[query] for query in shared]), np.array([second[query] for query in shared])


def _spearman(first: Floats, second: Floats) -> float:
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def _agreement(scores: dict[str, float], others: dict[str, float]) -> Rate:
    """Spearman's correlation; its interval on Fisher's scale with the variance of Bonett and Wright (2000)."""
    mine, theirs = _paired(scores, others)
    n = len(mine)
    if n < 4 or np.ptp(mine) == 0 or np.ptp(theirs) == 0:
        return Rate(None, None, None, n)
    r = _spearman(mine, theirs)
    centre = math.atanh(min(max(r, -0.9999), 0.9999))
    spread = norm.ppf(0.5 + CONFIDENCE / 2) * math.sqrt((1 + r**2 / 2) / (n - 3))
    return Rate(r, math.tanh(centre - spread), math.tanh(centre + spread), n)


def _shift(scores: dict[str, float], others: dict[str, float]) -> Rate:
    """Mean paired difference in standard deviations of the others."""
    mine, theirs = _paired(scores, others)
    n = len(mine)
    if n < 2 or np.ptp(theirs) == 0:
        return Rate(None, None, None, n)
    differences = (mine - theirs) / theirs.std(ddof=1)
    mean = float(differences.mean())
    spread = float(norm.ppf(0.5 + CONFIDENCE / 2) * differences.std(ddof=1) / math.sqrt(n))
    return Rate(mean, mean - spread, mean + spread, n)


def _displacement(sentences: LabelledStates, seen: Collection[str], resamples: int = 500) -> dict[str, Rate]:
    """Distance of mean states, on the same sentences, in the mean distance to the mean within a seen language.

    What sampling adds to a squared distance is taken off, so that few sentences do not look farther apart than many.
    """
    rows = _rows(sentences.prompts)
    states = sentences.states.double().cpu().numpy()
    found = {}
    for code in rows:
        learned = [rows[other] for other in seen if other in rows]
        shared = sorted(set.intersection(*(set(one) for one in [rows[code], *learned])))
        if len(shared) < 2:
            found[code] = Rate(None, None, None, len(shared))
            continue
        theirs = np.stack([states[[one[query] for query in shared]] for one in learned])
        within = float(np.linalg.norm(theirs - theirs.mean(axis=1, keepdims=True), axis=-1).mean())
        apart = (states[[rows[code][query] for query in shared]] - theirs.mean(axis=0)) / max(within, 1e-12)
        n = len(shared)
        mean = apart.mean(axis=0)
        noise = float(((apart - mean) ** 2).sum(axis=1).mean()) / (n - 1)
        draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples) / n
        squared = np.maximum(((draws @ apart) ** 2).sum(axis=1) - 2 * noise, 0)  # a draw has the noise twice
        low, high = np.sqrt(np.quantile(squared, (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2)))
        found[code] = Rate(math.sqrt(max(float(mean @ mean) - noise, 0)), float(low), float(high), n)
    return found


def _rows(prompts: Sequence[Prompt]) -> dict[str, dict[str, int]]:
    """Row of each query, by language."""
    rows: dict[str, dict[str, int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt.language, {})[prompt.query_id] = row
    return rows


def _retrieval(sentences: LabelledStates, into: str = "en") -> dict[str, Rate]:
    """Share of translations found in one language by cosine, each language centred at its own mean."""
    rows = _rows(sentences.prompts)
    found = {}
    for code in rows.keys() - {into} if into in rows else ():
        shared = sorted(rows[code].keys() & rows[into].keys())
        mine, english = (
            torch.nn.functional.normalize(states - states.mean(0), dim=-1)
            for states in (sentences.states[[rows[c][q] for q in shared]].double() for c in (code, into))
        )
        hits = int(((mine @ english.T).argmax(dim=1) == torch.arange(len(shared))).sum())
        found[code] = wilson(hits, len(shared))
    return found


def _measured(interpreter: SafetySemanticInterpreter, labelled: LabelledStates) -> dict[str, Rate]:
    found = {}
    for code in {prompt.language for prompt in labelled.prompts}:
        part = labelled.only([code])
        scores = _logits(interpreter, part.states)
        area = probe_metrics(scores, scores > 0, part.prompts).get("auroc")
        if area:
            found[code] = Rate(**area)
    return found
