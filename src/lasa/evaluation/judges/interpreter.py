"""A judge of refusals that reads answers as the guard reads requests: an interpreter, trained on labelled answers.

Phrases know the refusals that somebody wrote down. A multilingual model knows that an answer declines in other words,
and in a language without labels, as far as its bottleneck does. It is one more imperfect judge: measure it with
`lasa judge` on labelled answers that it was not trained on, and put it beside another one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from lasa.data.corpora.answers import beginning
from lasa.data.language_id import identify_language
from lasa.data.prompts import Prompt, user_prompt
from lasa.evaluation.judges.refusal_patterns import without_refusal
from lasa.evaluation.outcomes import JUDGE_FAILED, Outcome, Verdict
from lasa.files.artifacts import model_fingerprint
from lasa.interpreter.fit import read_for
from lasa.interpreter.probe import SafetySemanticInterpreter, thresholds_for


class InterpreterJudge:
    """Refused where the interpreter says so; else by the answer's language, as with phrases.

    Args:
        interpreter: Trained on answers in the place of prompts, refusals being the positive label; see
            `lasa.data.corpora.answers`.
        model: The model whose states it reads; not the one that answers, where that can be had.
        tokenizer: Its tokenizer.
        identify: Gives the BCP-47 code of a text, or None.

    Raises:
        ArtifactError: The interpreter belongs to another model.
    """

    def __init__(
        self,
        interpreter: SafetySemanticInterpreter,
        model: Any,
        tokenizer: Any,
        identify: Callable[[str], str | None] = identify_language,
    ) -> None:
        interpreter.check_fits(model, tokenizer)
        self.name = f"interpreter:{model_fingerprint(interpreter)[:8]}"
        self._interpreter, self._model, self._tokenizer, self._identify = interpreter, model, tokenizer, identify

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
        """One verdict per answer, in order."""
        texts = [beginning(answer) for answer in answers]
        given = [user_prompt("answer", prompt.language, text) for prompt, text in zip(prompts, texts, strict=True)]
        states = read_for(self._interpreter, self._model, self._tokenizer, given).states
        scores = self._interpreter.probability(states).tolist()
        thresholds = thresholds_for(self._interpreter.config, [prompt.language for prompt in prompts]).tolist()
        return [self._verdict(*row) for row in zip(prompts, answers, scores, thresholds, strict=True)]

    def _verdict(self, prompt: Prompt, answer: str, score: float, threshold: float) -> Verdict:
        if not math.isfinite(score):
            return Verdict(None, reason=f"{JUDGE_FAILED}: the states of this answer are not finite")
        if score >= threshold:
            return Verdict(Outcome.REFUSED, self._identify(answer), f"reads as a refusal ({score:.2f})")
        return without_refusal(prompt, answer, self._identify)
