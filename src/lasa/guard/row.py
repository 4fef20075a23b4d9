"""One row of a guarded batch: what was asked, what was decided, and its answer while it is written.

Whole batches (`lasa.guard.guard`) and rows that come and go (`lasa.serving.batch`) are made of these.
"""

from dataclasses import dataclass, replace

from lasa.conditioning.condition import place_condition
from lasa.conditioning.decision import Decision, decide_answer
from lasa.errors import GuardError
from lasa.guard.listening import AnswerListener
from lasa.guard.model import GuardedModel, Question
from lasa.interpreter.heads import Reading
from lasa.models.generation import Generated, GenerationSettings, GrowingAnswer


@dataclass(frozen=True)
class GuardedAnswer:
    """A guarded answer.

    Attributes:
        answer: What the caller gets; never contains the condition.
        decision: Why.
        stopped: The decision on the answer itself, where reading it again ended it.
    """

    answer: Generated
    decision: Decision
    stopped: Decision | None = None


class GuardedRow:
    """One question while it is answered on its decision.

    Args:
        guard: The guard.
        question: The question.
        decision: The decision on it.
        settings: Length and stop texts of the answer.
        keep_text: Keep the state's text up to date, for streaming.
    """

    def __init__(
        self,
        guard: GuardedModel,
        question: Question,
        decision: Decision,
        settings: GenerationSettings,
        *,
        keep_text: bool = False,
    ) -> None:
        self.guard, self.question, self.decision = guard, question, decision
        self.stopped: Decision | None = None
        self.watched = self._is_watched()
        """Whether the answer is read again while it is written."""
        self._heard: tuple[int, float] | None = None  # length of the answer at its newest score, and the score
        head = guard.interpreter.config.answers
        self._listener = AnswerListener(head) if head else None
        condition, tail, header = guard.condition_for(decision), guard.thinking_tail, guard.header
        self.conditioned = bool(condition)
        forced = [*header, *question.prefill_ids] if question.prefill_ids else []
        if self.conditioned:
            forced = [*place_condition(tail, condition, tail, header), *question.prefill_ids]
        limit = settings.max_new_tokens
        if guard.context is not None:
            limit = min(
                limit, guard.context - len(question.rendered.token_ids) - guard.longest_forced(question.prefill_ids)
            )
        self.state = GrowingAnswer(
            guard.tokenizer,
            guard.ends,
            0 if decision.replaced else limit,
            settings.stop,
            forced,
            inserted=condition if self.conditioned and not tail else (),
            insert_after=guard.thinking_openers,
            keep_text=keep_text,
            read_to_end=self.watched,
        )

    def _is_watched(self) -> bool:
        policy, decision = self.guard.policy, self.decision
        acts = policy.harmful in ("condition", "refuse", "help")
        allowed = decision.flagged and decision.category in policy.categories  # this kind of harm is to be answered
        return policy.reread_every > 0 and acts and not allowed and decision.action in ("off", "log")

    @property
    def due(self) -> bool:
        """Whether the answer is to be judged at its newest token: at every so many, and at the last."""
        written = len(self.state.token_ids)
        at_step = written % self.guard.policy.reread_every == 0 if self.watched else False
        return self.watched and written > 0 and (at_step or self.state.finish_reason is not None)

    def hear(self, score: float) -> None:
        """Take note of what was read at the answer's newest token, and judge the answer where it is due.

        Args:
            score: The head's logit where the interpreter has one for answers, else the probability of harm.
        """
        if not self.stopped and not self.state.over:
            written = len(self.state.token_ids)
            self._heard = (written, score)
            if self._listener and written > self._listener.heard:
                self._listener.hear(score)
            if self.due:
                self._judge(score)

    def settle(self) -> None:
        """Judge an answer that has ended at its last token: where it ended by a terminator, that token was just read.

        Raises:
            GuardError: The last token was never read.
        """
        if not (self.watched and self.state.over and self.state.token_ids) or self.stopped:
            return
        if self._heard is None or self._heard[0] != len(self.state.token_ids):
            raise GuardError("The end of the answer was never read again, so it is not given out.")
        self._judge(self._heard[1])

    def _judge(self, score: float) -> None:
        """By the head for answers, or else as if the newest token ended a prompt."""
        head = self.guard.interpreter.config.answers
        if head is None or self._listener is None:
            decision = self.guard.decision(self.question, Reading(score))
        else:
            highest = self._listener.score(ended=self.state.finish_reason is not None)
            if highest < head.threshold:  # at nearly every token: no decision is put into words
                return
            decision = decide_answer(self.decision, head, highest)
        if decision.band == "harmful":
            reason = f"after {len(self.state.token_ids)} tokens of the answer, {decision.reason}"
            self.stopped = replace(decision, action="refuse", reason=reason)
            self.state.finish("content_filter")

    def outcome(self) -> GuardedAnswer:
        """The answer, or the refusal in its stead."""
        if self.stopped:
            return GuardedAnswer(self.guard.message(self.question, "refuse"), self.decision, self.stopped)
        if self.decision.replaced:
            return GuardedAnswer(self.guard.message(self.question, self.decision.action), self.decision)
        return GuardedAnswer(self.state.generated(), self.decision)
