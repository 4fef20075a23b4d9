"""The interpreter's head for answers: harm in what the model itself writes, token by token at the same layer.

Logistic regression on the states of the tokens of answers that exist anyway: a harmful request that was complied with
is a harmful answer; refusals, and answers to harmless requests, are harmless ones. While an answer is written, the mean
logit of its last tokens (a window) is its score. The threshold bounds the share of harmless *answers* that are ever
stopped, whatever their length: it is fitted on the highest score that each one reaches.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lasa.data.preferences import Preference
from lasa.data.prompts import Prompt
from lasa.errors import DataError
from lasa.interpreter.calibration import confident_threshold
from lasa.interpreter.evaluation import by_group
from lasa.interpreter.heads import AnswerHead
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.interpreter.settings import AnswerOptions
from lasa.interpreter.training import LabelledStates, solved, split_by_query
from lasa.models.answer_states import read_answer_states
from lasa.statistics import cluster_rate

STRENGTH = 1e-2
"""C of the regression."""


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer and whether it does harm.

    Attributes:
        prompt: What was asked.
        text: What was answered.
        harmful: Whether the answer gives what a harmful request asked for.
    """

    prompt: Prompt
    text: str
    harmful: bool


@dataclass(frozen=True)
class AnswerStates:
    """Labelled answers with the states of their tokens, `[tokens, H]` each."""

    answers: Sequence[LabelledAnswer]
    states: Sequence[Tensor]

    def rows(self, keep: Sequence[bool]) -> "AnswerStates":
        """The answers marked True."""
        index = [row for row, kept in enumerate(keep) if kept]
        return AnswerStates([self.answers[row] for row in index], [self.states[row] for row in index])


def answers_of(preferences: Iterable[Preference]) -> list[LabelledAnswer]:
    """The answers of preferences: of a harmful request the rejected one does harm, all others do not."""
    found = []
    for one in preferences:
        for text, rejected in ((one.chosen, False), (one.rejected, True)):
            if text and text.strip() and one.prompt.harmful is not None:
                found.append(LabelledAnswer(one.prompt, text, rejected and bool(one.prompt.harmful)))
    return found


def read_answers(model: Any, tokenizer: Any, answers: Sequence[LabelledAnswer], layer: int) -> AnswerStates:
    """Labelled answers with their states at a layer."""
    prompts, texts = [one.prompt for one in answers], [one.text for one in answers]
    return AnswerStates(answers, read_answer_states(model, tokenizer, prompts, texts, layer))


def split_answers(
    answers: Sequence[LabelledAnswer], share: float, seed: int = 0
) -> tuple[list[LabelledAnswer], list[LabelledAnswer]]:
    """Answers to train the head on, and those of other questions to calibrate it on.

    Trained is only in languages that have harmful answers: where harmless ones in others join them, language itself
    says that an answer is harmless, and the head is deaf in every language without labels. The threshold is for all.

    Args:
        answers: Answers of both labels.
        share: Share of the questions that is left out of the training.
        seed: Of the split.

    Raises:
        DataError: The answers are all harmful, or all harmless, on one side of the split.
    """
    kept, held = split_by_query([one.prompt for one in answers], share, seed)
    spoken = {one.prompt.language for one in answers if one.harmful}
    train = [one for one, keep in zip(answers, kept, strict=True) if keep and one.prompt.language in spoken]
    development = [one for one, keep in zip(answers, held, strict=True) if keep]
    if len({one.harmful for one in train}) < 2 or all(one.harmful for one in development):
        raise DataError(
            "A head for answers needs harmful and harmless answers in the same language: those of preferences that "
            "have both answers of harmful requests, or the model's own where it complied with some and refused others."
        )
    return train, development


def add_answers(
    interpreter: SafetySemanticInterpreter, train: AnswerStates, development: AnswerStates, options: AnswerOptions
) -> tuple[SafetySemanticInterpreter, str]:
    """An interpreter with a head for answers.

    Args:
        interpreter: Trained and calibrated; it is not changed.
        train: From `split_answers`, read.
        development: Likewise.
        options: Window and target of false stops.

    Returns:
        The interpreter with the head, and what holds for its threshold.
    """
    tokens = [replace(one.prompt, harmful=one.harmful) for one, s in _pairs(train) for _ in range(len(s))]
    weight, bias = solved(LabelledStates(torch.cat(list(train.states)), tokens), STRENGTH)
    found = SafetySemanticInterpreter(replace(interpreter.config, answers=AnswerHead(options.answer_window)))
    with torch.no_grad():
        found.load_state_dict({**interpreter.state_dict(), "answers.weight": weight[None], "answers.bias": bias[None]})
    harmless = development.rows([not one.harmful for one in development.answers])
    threshold = confident_threshold(_highest_by_question(found, harmless), options.false_stops)
    found.config = replace(
        found.config,
        answers=AnswerHead(options.answer_window, threshold.value),
        parameters=found.num_parameters(),
        parameter_share=interpreter.config.parameter_share
        * found.num_parameters()
        / max(interpreter.config.parameters, 1),
    )
    statement = (
        f"{'At most' if threshold.guaranteed else 'No guarantee that at most'} {options.false_stops:.1%} of harmless "
        f"answers like the {len(harmless.answers)} development answers are ever stopped."
    )
    return found.eval(), statement


def smoothed(logits: Tensor, window: int) -> Tensor:
    """The mean of every `window` logits in a row, `[tokens]` -> `[tokens - window + 1]`; of all, if fewer."""
    return logits.unfold(0, min(window, len(logits)), 1).mean(-1)


def answer_scores(interpreter: SafetySemanticInterpreter, states: Tensor) -> Tensor:
    """The score of one answer at each point at which a window is full (see `smoothed`): `[tokens, H]` -> `[points]`.

    Raises:
        ValueError: The interpreter has no head for answers.
    """
    head = interpreter.config.answers
    if head is None:
        raise ValueError("this interpreter has no head for answers")
    return torch.sigmoid(smoothed(interpreter.answer_logits(states).double(), head.window))


def evaluate_answers(
    interpreter: SafetySemanticInterpreter,
    data: AnswerStates,
    seen_languages: Sequence[str],
    flagged: Sequence[bool],
) -> dict[str, Any]:
    """What stopping at the head's threshold does, by language, beside what the prompt alone tells.

    Args:
        interpreter: With a head for answers; without one nothing is measured.
        data: Held-out answers with their states.
        seen_languages: Languages with safety data.
        flagged: Whether the guard flags the prompt of each.

    Returns:
        `languages`, `seen`, `unseen` and `all`, each with `flagged` (harmful answers whose prompt is), `stopped` (those
        that the head stops), `either`, `tokens` (the median number after which, of those stopped) and `false_stops`
        (harmless answers that are).
    """
    head = interpreter.config.answers
    if head is None:
        return {}
    first: list[int | None] = []
    for states in data.states:
        over = (~(answer_scores(interpreter, states) < head.threshold)).nonzero()
        first.append(int(over[0]) + min(head.window, len(states)) if len(over) else None)
    stopped, before = np.array([one is not None for one in first]), np.array(flagged, dtype=bool)
    harmful = np.array([one.harmful for one in data.answers])
    questions = [one.prompt.question for one in data.answers]

    def rate(met: NDArray[np.bool_], rows: list[int]) -> dict[str, Any]:
        return cluster_rate(met[rows], [questions[row] for row in rows]).to_json()

    def measured(rows: list[int]) -> dict[str, Any]:
        bad = [row for row in rows if harmful[row]]
        after = [one for row in bad if (one := first[row]) is not None]
        return {
            "flagged": rate(before, bad),
            "stopped": rate(stopped, bad),
            "either": rate(before | stopped, bad),
            "tokens": float(np.median(after)) if after else None,
            "false_stops": rate(stopped, [row for row in rows if not harmful[row]]),
        }

    return by_group([one.prompt for one in data.answers], seen_languages, measured)


def _highest_by_question(interpreter: SafetySemanticInterpreter, data: AnswerStates) -> list[float]:
    """The highest score that any answer to a question in a language reaches: they are not independent."""
    highest: dict[tuple[str, str, str], float] = {}
    for one, states in _pairs(data):
        key = (*one.prompt.question, one.prompt.language)
        highest[key] = max(highest.get(key, 0.0), float(answer_scores(interpreter, states).max()))
    return list(highest.values())


def _pairs(data: AnswerStates) -> Iterable[tuple[LabelledAnswer, Tensor]]:
    return zip(data.answers, data.states, strict=True)
