"""Stage 4: guarded generation in one pass. Read while the prompt is prefilled, decide, condition, go on.

The hidden state of the read point is observed inside the model's own prefill; flagged rows then begin with the
condition's tokens, on the same KV cache, in the same batch. A caller's prefill comes after the condition, and is read
as well. Answers may be read again while they are written.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lasa.conditioning import Decision, Policy, condition_ids, decide
from lasa.conversation_scores import TurnDecision, score_turns
from lasa.errors import DataError, GuardError, LasaError
from lasa.generation import Generated, GenerationSettings, RowState, generate, terminators
from lasa.guarded_row import Guarded, GuardedRow, Question
from lasa.hidden_states import check_readable, pool_tokens, read_hidden_states, token_range
from lasa.interpreter import SafetySemanticInterpreter
from lasa.layers import observe_layers
from lasa.prompts import Message, Prompt
from lasa.refusals import refusal_message
from lasa.rendering import check_tokenizer, defuse, render
from lasa.soft_condition import soft_condition_of
from lasa.thinking import hidden_columns, thinking_openers, thinking_tail


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
        self.soft = soft_condition_of(model)
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

    def score_turns(self, messages: Sequence[Message], language: str | None = None) -> list[TurnDecision]:
        """The decision at every point of a conversation at which the assistant was to speak, the last one included.

        Args:
            messages: The conversation.
            language: The user's language where known; identified where thresholds depend on it.

        Raises:
            DataError: There is no user message, or the conversation cannot be rendered or is too long.
        """
        if language is None and self.interpreter.config.language_thresholds:
            language = self.language(messages)
        return score_turns(self.model, self.tokenizer, self.interpreter, messages, self.policy, language)

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

    def condition_for(self, decision: Decision) -> list[int]:
        """Token ids of the condition that an answer on this decision begins with; empty where there is none."""
        if self.soft is not None:
            return [self.soft.token_id(0.0 if decision.action == "log" else decision.score)]
        return self.condition if decision.action == "condition" else []

    def longest_forced(self, question: Question) -> int:
        """An upper bound of the tokens that are forced into the row of a question."""
        conditions = 2 if self.thinking_tail or self.thinking_openers else 1
        return conditions * len(self.condition) + len(self.thinking_tail) + len(question.prefill_ids)

    def prefill_scores(self, questions: Sequence[Question]) -> list[float | None]:
        """Scores of the conversations with the caller's prefill as part of the user's words; None without prefill."""
        prefilled = [q for q in questions if q.prefill.strip()]
        scores = iter(self._read([_with_prefill(q) for q in prefilled]) if prefilled else [])
        return [next(scores) if q.prefill.strip() else None for q in questions]

    def reread(self, rows: Sequence[GuardedRow], states: Tensor) -> None:
        """Score the newest token of the answers that are due, and end those at or above the threshold.

        Args:
            rows: The batch's rows.
            states: What was observed in a decoding step, `[rows, 1, H]`.
        """
        if not self.policy.reread_every:
            return
        due = [index for index, row in enumerate(rows) if row.due]
        if due:
            with torch.inference_mode():
                scores = self.interpreter.probability(states[due, -1]).tolist()
            for index, score in zip(due, scores, strict=True):
                rows[index].judge(self._decision(rows[index].question, score))

    def language(self, messages: Sequence[Message]) -> str | None:
        """The user's language as identified from the last user message, or None."""
        from lasa.evaluation.judges.language_id import identify_language

        text = next(m["content"] for m in reversed(messages) if m["role"] == "user")
        try:
            return identify_language(text[:2000])
        except LasaError:  # lingua is not installed
            return None

    def refusal(self, question: Question) -> Generated:
        """The fixed refusal in the user's language."""
        text = refusal_message(question.language or self.language(question.messages))
        return Generated(self.tokenizer(text, add_special_tokens=False)["input_ids"], text, "stop")

    def _decision(self, question: Question, score: float, prefill_score: float | None = None) -> Decision:
        config = self.interpreter.config
        language = question.language
        if language is None and config.language_thresholds:
            language = self.language(question.messages)
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


def _with_prefill(question: Question) -> tuple[Message, ...]:
    messages = list(question.messages)
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    messages[last] = {**messages[last], "content": f"{messages[last]['content']}\n{question.prefill}"}
    return tuple(messages)
