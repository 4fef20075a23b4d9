"""A model with its interpreter and a policy: what is read, what is decided, and what is put before an answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lasa.conditioning.condition import condition_ids
from lasa.conditioning.decision import Action, Decision, Policy, decide
from lasa.data.language_id import identify_language, identify_languages
from lasa.data.prompts import Message, Prompt
from lasa.errors import ArtifactError, DataError, GuardError, MissingExtraError
from lasa.guard.refusals import fixed_message
from lasa.guard.turns import TurnDecision, score_turns
from lasa.interpreter.heads import Reading
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.models.activated import activation_of
from lasa.models.checks import check_readable
from lasa.models.generation import Generated, terminators
from lasa.models.hidden_states import read_hidden_states
from lasa.models.layers import context_length, has_recurrent_state
from lasa.models.rendering import Rendered, check_tokenizer, defuse, render
from lasa.models.soft_condition import soft_condition_of
from lasa.models.thinking import answer_header, thinking_openers, thinking_tail


@dataclass(frozen=True)
class Question:
    """A conversation that is ready to be read and answered; made by `GuardedModel.question`.

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


class GuardedModel:
    """A model that can be read and conditioned, one question at a time.

    Args:
        model: The model to serve: the base, or one aligned on top of it.
        tokenizer: Its tokenizer.
        interpreter: The interpreter of that base.
        policy: What to do with each band of scores.
        aligned: The model was trained on top of the interpreter's base, so that its weights are others.

    Raises:
        GuardError: The model's layers cannot be observed, the chat template has no place for the condition, or the
            policy is about a category that the interpreter does not tell apart.
        ArtifactError: The interpreter does not fit the model, or the model's adapter acts behind another condition.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        interpreter: SafetySemanticInterpreter,
        policy: Policy | None = None,
        *,
        aligned: bool = False,
    ) -> None:
        check_tokenizer(tokenizer)
        interpreter.check_fits(model, tokenizer, fingerprint=not aligned)
        check_readable(model, tokenizer)
        self.model, self.tokenizer, self.interpreter = model.eval(), tokenizer, interpreter.eval()
        self.policy = policy or Policy()
        _check_categories(self.policy, interpreter)
        self.condition = condition_ids(tokenizer, self.policy.condition)
        activation = activation_of(model)
        if activation is not None and activation.tokens != self.condition:
            raise ArtifactError(
                f"The model's adapter acts behind another condition than {self.policy.condition!r}. Give the condition "
                "that it was trained with (it stands in its lasa.json)."
            )
        self.soft = soft_condition_of(model)
        self.context = context_length(model)
        self.ends = terminators(model, tokenizer)
        self.thinking_tail = thinking_tail(tokenizer)
        self.thinking_openers = thinking_openers(tokenizer)
        self.header = answer_header(tokenizer)
        if self.thinking_tail and has_recurrent_state(model):
            raise GuardError(
                f"The chat template opens a block of reasoning, which cannot be hidden from the recurrent state of "
                f"{type(model).__name__}, so the condition cannot come before it. Use a template that does not open it."
            )

    @property
    def layer(self) -> int:
        """The layer that is read."""
        return self.interpreter.config.read_point.layer

    def decide(
        self,
        conversations: Sequence[Sequence[Message]],
        languages: Sequence[str | None] | None = None,
        prefills: Sequence[str] | None = None,
    ) -> list[Decision]:
        """The decisions alone, without an answer (detector use).

        Args:
            conversations: What was said.
            languages: Of the users, where known.
            prefills: What the caller has the answers begin with, if anything.
        """
        languages, prefills = languages or [None] * len(conversations), prefills or [""] * len(conversations)
        questions = [self.question(*one) for one in zip(conversations, languages, prefills, strict=True)]
        readings = self._read([q.messages for q in questions])
        both = zip(questions, readings, self.read_prefills(questions), strict=True)
        return [self.decision(question, reading, of_prefill) for question, reading, of_prefill in both]

    def score_turns(self, messages: Sequence[Message], language: str | None = None) -> list[TurnDecision]:
        """The decision at every point of a conversation at which the assistant was to speak, the last one included.

        Args:
            messages: The conversation.
            language: The user's language where known; identified where thresholds depend on it.

        Raises:
            DataError: There is no user message, or the conversation cannot be rendered or is too long.
        """
        languages = self.languages(messages, language)
        return score_turns(self.model, self.tokenizer, self.interpreter, messages, self.policy, languages)

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
        used = len(question.rendered.token_ids) + self.longest_forced(prefill_ids)
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

    def longest_forced(self, prefill_ids: Sequence[int]) -> int:
        """An upper bound of the tokens that are forced into a row, the caller's prefill included."""
        conditions = 2 if self.thinking_tail or self.thinking_openers else 1
        return conditions * len(self.condition) + len(self.thinking_tail) + len(self.header) + len(prefill_ids)

    def read_prefills(self, questions: Sequence[Question]) -> list[Reading | None]:
        """The conversations read with the caller's prefill as part of the user's words; None without prefill."""
        prefilled = [with_prefill(q) for q in questions if q.prefill.strip()]
        readings = iter(self._read(prefilled) if prefilled else [])
        return [next(readings) if q.prefill.strip() else None for q in questions]

    def language(self, messages: Sequence[Message]) -> str | None:
        """The user's language as identified from the last user message, or None."""
        text = next(m["content"] for m in reversed(messages) if m["role"] == "user")
        try:
            return identify_language(text)
        except MissingExtraError:  # lingua is not installed
            return None

    def languages(self, messages: Sequence[Message], known: str | None = None) -> set[str]:
        """The languages that decide on thresholds and grade: as the caller says, else all that the user writes in."""
        config = self.interpreter.config
        if known is not None or not (config.language_thresholds or config.coverage):
            return {known} if known else set()
        try:
            return identify_languages("\n".join(m["content"] for m in messages if m["role"] == "user"))
        except MissingExtraError:  # lingua is not installed
            return set()

    def message(self, question: Question, action: Action) -> Generated:
        """The fixed message of an action that replaces the answer, in the user's language."""
        text = fixed_message(action, question.language or self.language(question.messages))
        return Generated(self.tokenizer(text, add_special_tokens=False)["input_ids"], text, "content_filter")

    def decision(self, question: Question, reading: Reading, of_prefill: Reading | None = None) -> Decision:
        """The decision on a question; the caller's prefill, where it was read, can only make it stricter."""
        config = self.interpreter.config
        languages = self.languages(question.messages, question.language)
        if of_prefill is not None and not math.isnan(reading.score) and not of_prefill.score <= reading.score:
            decision = decide(config, self.policy, of_prefill.score, languages, of_prefill.categories)
            return replace(decision, reason=f"{decision.reason} (read with the caller's prefill)")
        return decide(config, self.policy, reading.score, languages, reading.categories)

    def _read(self, conversations: Sequence[tuple[Message, ...]]) -> list[Reading]:
        prompts = [Prompt(str(row), "en", messages) for row, messages in enumerate(conversations)]
        position = self.interpreter.config.read_point.position
        states = read_hidden_states(self.model, self.tokenizer, prompts, [self.layer], position)[:, 0]
        return self.interpreter.read(states)


def with_prefill(question: Question) -> tuple[Message, ...]:
    """The conversation with the caller's prefill as part of the user's words."""
    messages = list(question.messages)
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    messages[last] = {**messages[last], "content": f"{messages[last]['content']}\n{question.prefill}"}
    return tuple(messages)


def _check_categories(policy: Policy, interpreter: SafetySemanticInterpreter) -> None:
    head = interpreter.config.categories
    known = head.names if head else ()
    strange = sorted(set(policy.categories) - set(known))
    if strange:
        told_apart = f"it tells apart {', '.join(known)}" if known else "it was trained without labels of categories"
        raise GuardError(
            f"The policy names the category {strange[0]!r}, which this interpreter does not know: {told_apart}."
        )
