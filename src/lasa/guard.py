"""Stage 4: guarded generation in one pass. Read while the prompt is prefilled, decide, condition, go on.

The hidden state of the read point is observed inside the model's own prefill; flagged rows then begin with the
condition's tokens, on the same KV cache, in the same batch. A caller's prefill comes after the condition, and is read
as well. Answers may be read again while they are written.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lasa.conditioning import Decision, Policy, condition_ids, decide, place_condition
from lasa.errors import DataError, GuardError, LasaError
from lasa.generation import Generated, GenerationSettings, RowState, generate, terminators
from lasa.hidden_states import check_readable, pool_tokens, read_hidden_states, token_range
from lasa.interpreter import SafetySemanticInterpreter
from lasa.layers import observe_layers
from lasa.prompts import Message, Prompt
from lasa.refusals import refusal_message
from lasa.rendering import Rendered, check_tokenizer, defuse, render
from lasa.thinking import hidden_columns, thinking_openers, thinking_tail


@dataclass(frozen=True)
class Question:
    """A conversation that is ready to be read and answered; made by `Guard.question`.

    Attributes:
        messages: The conversation.
        rendered: Its tokens.
        prefill: Text that the answer must begin with.
        prefill_ids: Its tokens.
        language: The user's language as the caller knows it, or None.
    """

    messages: tuple[Message, ...]
    rendered: Rendered
    prefill: str
    prefill_ids: list[int]
    language: str | None


@dataclass(frozen=True)
class Guarded:
    """A guarded answer.

    Attributes:
        answer: What the caller gets; never contains the condition.
        decision: Why.
        stopped: The decision on the answer itself, where reading it again ended it.
    """

    answer: Generated
    decision: Decision
    stopped: Decision | None = None


class Guard:
    """A model that is read while it answers, and conditioned on what was read.

    Args:
        model: The model to serve: the base, or one aligned on top of it.
        tokenizer: Its tokenizer.
        interpreter: The interpreter of that base.
        policy: What to do with each band of scores.

    Raises:
        GuardError: The model's layers cannot be observed.
        ArtifactError: The interpreter does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        interpreter: SafetySemanticInterpreter,
        policy: Policy | None = None,
    ) -> None:
        check_tokenizer(tokenizer)
        interpreter.check_fits(model, tokenizer, fingerprint=False)
        check_readable(model)
        self.model, self.tokenizer, self.interpreter = model.eval(), tokenizer, interpreter.eval()
        self.policy = policy or Policy()
        self.condition = condition_ids(tokenizer, self.policy.condition)
        self.ends = terminators(model, tokenizer)
        self.thinking_tail = thinking_tail(tokenizer)
        self.thinking_openers = thinking_openers(tokenizer)

    @property
    def layer(self) -> int:
        """The layer that is read."""
        return self.interpreter.config.read_point.layer

    @property
    def context(self) -> int | None:
        """The longest row the model can hold, or None if it does not say."""
        config: Any = self.model.config
        return getattr(config.get_text_config(), "max_position_embeddings", None)

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        settings: GenerationSettings | None = None,
        *,
        languages: Sequence[str | None] | None = None,
        prefills: Sequence[str] | None = None,
        streamer: Any = None,
    ) -> list[Guarded]:
        """Answer conversations, each on its own decision, in one batch.

        Args:
            conversations: Each ends in a user's or tool's message.
            settings: Length and sampling.
            languages: The users' languages where known, for thresholds and refusals in that language; identified
                where they are needed and not given.
            prefills: Text each assistant turn must begin with; it never displaces the condition, and is read too.
            streamer: A transformers streamer; it also sees condition and prefill tokens.

        Raises:
            GuardError: The prompt was not read; nothing is answered then.
            DataError: A conversation cannot be rendered or is too long.
        """
        settings = settings or GenerationSettings()
        count = len(conversations)
        asked = zip(conversations, languages or [None] * count, prefills or [""] * count, strict=True)
        questions = [self.question(messages, language, prefill) for messages, language, prefill in asked]
        if not questions:
            return []
        reading = Reading(self, questions)
        rows: list[GuardedRow] = []

        def open_rows() -> list[RowState]:
            decisions = reading.decisions()
            rows.extend(GuardedRow(self, q, d, settings) for q, d in zip(questions, decisions, strict=True))
            return [row.state for row in rows]

        def observe(layer: int, states: Tensor) -> None:
            if reading.scores is None:
                reading.observe(layer, states)
            else:
                self.reread(rows, states)

        width = max(len(q.rendered.token_ids) for q in questions)
        columns = (width - len(self.thinking_tail), width)
        with (
            observe_layers(self.model, [self.layer], observe),
            hidden_columns(self.model, *columns, lambda: [i for i, row in enumerate(rows) if row.conditioned]),
        ):
            generate(
                self.model,
                self.tokenizer,
                [q.rendered.token_ids for q in questions],
                settings,
                open_rows,
                longest_forced=max(self.longest_forced(q) for q in questions),
                streamer=streamer,
            )
        reading.decisions()  # raises if the prompt was never read
        return [row.outcome() for row in rows]

    def decide(
        self, conversations: Sequence[Sequence[Message]], languages: Sequence[str | None] | None = None
    ) -> list[Decision]:
        """The decisions alone, without an answer (detector use)."""
        languages = languages or [None] * len(conversations)
        questions = [self.question(*one) for one in zip(conversations, languages, strict=True)]
        scores = self._read([q.messages for q in questions])
        return [self._decision(q, score) for q, score in zip(questions, scores, strict=True)]

    def question(self, messages: Sequence[Message], language: str | None = None, prefill: str = "") -> Question:
        """Render a conversation and make sure that all of it can be read and answered.

        Raises:
            DataError: The conversation cannot be rendered, does not fit the model with the condition, or ends in a
                tool's result that this interpreter's read point does not see.
        """
        position = self.interpreter.config.read_point.position
        if position != "last" and messages and messages[-1]["role"] != "user":
            raise DataError(
                f"This interpreter reads at {position!r}, which does not see the {messages[-1]['role']} message at the "
                "end of the conversation. Use an interpreter that reads at 'last'."
            )
        prefill_ids = self.tokenizer(defuse(self.tokenizer, prefill), add_special_tokens=False)["input_ids"]
        question = Question(tuple(messages), render(self.tokenizer, messages), prefill, prefill_ids, language)
        used = len(question.rendered.token_ids) + self.longest_forced(question)
        if self.context is not None and used >= self.context:
            raise DataError(
                f"The conversation takes {used} tokens with what the guard may add, the model's context is "
                f"{self.context}. Shorten the conversation."
            )
        return question

    def longest_forced(self, question: Question) -> int:
        """An upper bound of the tokens that are forced into the row of a question."""
        conditions = 2 if self.thinking_tail or self.thinking_openers else 1
        return conditions * len(self.condition) + len(self.thinking_tail) + len(question.prefill_ids)

    def prefill_scores(self, questions: Sequence[Question]) -> list[float | None]:
        """Scores of the conversations with the caller's prefill as part of the user's words; None without prefill."""
        prefilled = [q for q in questions if q.prefill.strip()]
        scores = iter(self._read([_with_prefill(q) for q in prefilled]) if prefilled else [])
        return [next(scores) if q.prefill.strip() else None for q in questions]

    @torch.inference_mode()
    def reread(self, rows: Sequence["GuardedRow"], states: Tensor) -> None:
        """Score the newest token of the answers that are due, and end those at or above the threshold.

        Args:
            rows: The batch's rows.
            states: What was observed in a decoding step, `[rows, 1, H]`.
        """
        due = [index for index, row in enumerate(rows) if row.due]
        if due:
            for index, score in zip(due, self.interpreter.probability(states[due, -1]).tolist(), strict=True):
                rows[index].judge(self._decision(rows[index].question, score))

    def language(self, question: Question) -> str | None:
        """The user's language: as given, else as identified from the last user message, else None."""
        if question.language is not None:
            return question.language
        from lasa.evaluation.judges.language_id import identify_language

        text = next(m["content"] for m in reversed(question.messages) if m["role"] == "user")
        try:
            return identify_language(text[:2000])
        except LasaError:  # lingua is not installed
            return None

    def refusal(self, question: Question) -> Generated:
        """The fixed refusal in the user's language."""
        text = refusal_message(self.language(question))
        return Generated(self.tokenizer(text, add_special_tokens=False)["input_ids"], text, "stop")

    def _decision(self, question: Question, score: float, prefill_score: float | None = None) -> Decision:
        config = self.interpreter.config
        language = self.language(question) if config.language_thresholds else question.language
        if prefill_score is not None and not math.isnan(score) and not prefill_score <= score:
            decision = decide(config, self.policy, prefill_score, language)
            return replace(decision, reason=f"{decision.reason} (read with the caller's prefill)")
        return decide(config, self.policy, score, language)

    def _read(self, conversations: Sequence[tuple[Message, ...]]) -> list[float]:
        prompts = [Prompt(str(row), "en", messages) for row, messages in enumerate(conversations)]
        position = self.interpreter.config.read_point.position
        states = read_hidden_states(self.model, self.tokenizer, prompts, [self.layer], position)[:, 0]
        scores: list[float] = self.interpreter.probability(states).tolist()
        return scores


class Reading:
    """The decisions on one batch of questions, read from its prefill.

    Args:
        guard: The guard.
        questions: In the order of the batch, which is padded on the left.
    """

    def __init__(self, guard: Guard, questions: Sequence[Question]) -> None:
        self.guard, self.questions = guard, questions
        self.scores: list[float] | None = None
        self._prefill_scores = guard.prefill_scores(questions)
        self._decisions: list[Decision] | None = None

    def observe(self, layer: int, states: Tensor) -> None:
        """Score the prompts on `[rows, width, H]` hidden states of their prefill.

        Raises:
            GuardError: The states are not those of the whole batch.
        """
        rendered = [q.rendered for q in self.questions]
        width = max(len(one.token_ids) for one in rendered)
        if states.shape[:2] != (len(rendered), width):
            raise GuardError(
                f"The prefill had the shape {tuple(states.shape[:2])} instead of {(len(rendered), width)}; "
                "the prompt cannot be read, so it is not answered."
            )
        position = self.guard.interpreter.config.read_point.position
        ranges = []
        for one in rendered:
            start, end = token_range(one, position)
            padding = width - len(one.token_ids)
            ranges.append((start + padding, end + padding))
        with torch.inference_mode():
            self.scores = self.guard.interpreter.probability(pool_tokens(states, ranges)).tolist()

    def decisions(self) -> list[Decision]:
        """One decision per question.

        Raises:
            GuardError: The prompts were not read.
        """
        if self.scores is None:
            raise GuardError("The prompt was never read, so it is not answered. The model bypassed its own layers.")
        if self._decisions is None:
            self._decisions = [
                self.guard._decision(question, score, prefill_score)
                for question, score, prefill_score in zip(
                    self.questions, self.scores, self._prefill_scores, strict=True
                )
            ]
        return self._decisions


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
        guard: Guard,
        question: Question,
        decision: Decision,
        settings: GenerationSettings,
        *,
        keep_text: bool = False,
    ) -> None:
        self.guard, self.question, self.decision = guard, question, decision
        self.stopped: Decision | None = None
        self.conditioned = decision.action == "condition"
        condition, tail = guard.condition, guard.thinking_tail
        forced = list(question.prefill_ids)
        if self.conditioned:
            forced = [*place_condition(tail, condition, tail), *forced]
        limit = settings.max_new_tokens
        if guard.context is not None:
            limit = min(limit, guard.context - len(question.rendered.token_ids) - guard.longest_forced(question))
        self.state = RowState(
            guard.tokenizer,
            guard.ends,
            0 if decision.action == "refuse" else limit,
            settings.stop,
            forced,
            inserted=condition if self.conditioned and not tail else (),
            insert_after=guard.thinking_openers,
            keep_text=keep_text,
        )

    @property
    def watched(self) -> bool:
        """Whether the answer is read again while it is written."""
        policy = self.guard.policy
        acts = policy.harmful in ("condition", "refuse")
        return policy.reread_every > 0 and acts and self.decision.action in ("off", "log")

    @property
    def due(self) -> bool:
        """Whether the answer is to be read again at its newest token."""
        written = len(self.state.token_ids)
        at_step = self.watched and written > 0 and written % self.guard.policy.reread_every == 0
        return at_step and self.state.finish_reason is None

    def judge(self, decision: Decision) -> None:
        """End the answer if the decision on what was written says so."""
        if decision.band == "harmful":
            reason = f"after {len(self.state.token_ids)} tokens of the answer, {decision.reason}"
            self.stopped = replace(decision, action="refuse", reason=reason)
            self.state.finish("content_filter")

    def outcome(self) -> Guarded:
        """The answer, or the refusal in its stead."""
        if self.stopped:
            refusal = replace(self.guard.refusal(self.question), finish_reason="content_filter")
            return Guarded(refusal, self.decision, self.stopped)
        if self.decision.action == "refuse":
            return Guarded(self.guard.refusal(self.question), self.decision)
        return Guarded(self.state.generated(), self.decision)


def _with_prefill(question: Question) -> tuple[Message, ...]:
    messages = list(question.messages)
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    messages[last] = {**messages[last], "content": f"{messages[last]['content']}\n{question.prefill}"}
    return tuple(messages)
