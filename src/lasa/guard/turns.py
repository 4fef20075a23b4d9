"""Score a conversation at every turn: intent that is spread over several messages, or comes in with a tool's result.

Each read sees what the model saw at that point: system prompt, history and tool results, rendered by the model's own
chat template. A conversation that is longer than the model's context is an error, never cut.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lasa.conditioning.decision import Decision, Policy, decide
from lasa.data.prompts import Message, Prompt
from lasa.errors import DataError
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.models.hidden_states import read_hidden_states


@dataclass(frozen=True)
class TurnDecision:
    """The decision at one point of a conversation.

    Attributes:
        message: Position of the message after which the assistant was to speak.
        decision: What the guard would have decided there.
    """

    message: int
    decision: Decision


def reading_points(messages: Sequence[Message]) -> list[int]:
    """Positions of the messages after which the assistant speaks: user turns, and tool results that it goes on from.

    A user turn followed by another message of the same turn (a second user or tool message) is read at its end.
    """
    given = ("user", "tool")
    return [
        place
        for place, message in enumerate(messages)
        if message["role"] in given and (place + 1 == len(messages) or messages[place + 1]["role"] not in given)
    ]


def turns_to_score(messages: Sequence[Message]) -> list[int]:
    """The reading points behind a user's message.

    Raises:
        DataError: There is none.
    """
    points = [place for place in reading_points(messages) if any(m["role"] == "user" for m in messages[: place + 1])]
    if not points:
        raise DataError("The conversation has no user message to read at.")
    return points


def score_turns(
    model: nn.Module,
    tokenizer: Any,
    interpreter: SafetySemanticInterpreter,
    messages: Sequence[Message],
    policy: Policy | None = None,
    languages: Collection[str] = (),
) -> list[TurnDecision]:
    """The interpreter's decision at every user turn and after every tool result, in order.

    Args:
        model: The model that is served.
        tokenizer: Its tokenizer.
        interpreter: The interpreter of its base.
        messages: The conversation.
        policy: What to do with each band of scores; the default policy if None.
        languages: The user's languages where known.

    Raises:
        DataError: There is no user message, the chat template refuses the conversation, or it is too long.
    """
    points = turns_to_score(messages)
    prompts = [Prompt(f"message {place}", "en", tuple(messages[: place + 1])) for place in points]
    point = interpreter.config.read_point
    states = read_hidden_states(model, tokenizer, prompts, [point.layer], point.position)[:, 0]
    config, policy = interpreter.config, policy or Policy()
    return [
        TurnDecision(place, decide(config, policy, reading.score, languages, reading.categories))
        for place, reading in zip(points, interpreter.read(states), strict=True)
    ]
