"""What is asked, in which language, and with which other prompts it shares its meaning.

A prompt is one conversation that ends in a user message. Translations of one question share a `query_id`: it is
the label of the semantic silhouette, and the cluster of every interval.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from lasa.errors import DataError

Message = dict[str, str]
"""A chat message: `{"role": "system" | "user" | "assistant" | "tool", "content": str}`."""


@dataclass(frozen=True)
class Prompt:
    """One row of the prompt table.

    Attributes:
        query_id: Identifies the meaning; equal for all translations of one question.
        language: BCP-47 code of the last user message.
        messages: The conversation so far; the last message is the user's (or a tool's).
        harmful: Whether complying would be harmful; None where the source does not say.
        source: Where the row comes from, for audits and leave-one-source-out.
        category: The source's own category, or "".
        details: Anything else an evaluation needs (an expected answer, a kind); never shown to the model.
    """

    query_id: str
    language: str
    messages: tuple[Message, ...]
    harmful: bool | None = None
    source: str = ""
    category: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> tuple[str, str]:
        """What its translations and changed copies have in common: two corpora may number their questions alike."""
        return self.source, self.query_id

    @property
    def text(self) -> str:
        """The last user message."""
        return next(m["content"] for m in reversed(self.messages) if m["role"] == "user")

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object; the inverse of `Prompt.from_json`."""
        row: dict[str, Any] = {"query_id": self.query_id, "language": self.language, "messages": list(self.messages)}
        for name in ("harmful", "source", "category", "details"):
            if getattr(self, name) not in (None, "", {}):
                row[name] = getattr(self, name)
        return row

    @staticmethod
    def from_json(row: dict[str, Any]) -> "Prompt":
        """A row written by `to_json`.

        Raises:
            ValueError: A field is missing or of another type.
        """
        return _PROMPT.validate_python(row)


_PROMPT = TypeAdapter(Prompt)


def user_prompt(query_id: str, language: str, text: str, **rest: Any) -> Prompt:
    """A single-turn prompt."""
    return Prompt(query_id, language, ({"role": "user", "content": text},), **rest)


def check_parallel(prompts: Sequence[Prompt]) -> None:
    """Make sure that a semantic and a language silhouette are both defined.

    Raises:
        DataError: Fewer than two languages or queries, no query that occurs in two languages, or one that occurs twice
            in the same.
    """
    languages = {p.language for p in prompts}
    queries = Counter((p.query_id) for p in prompts)
    if len(languages) < 2:
        raise DataError(
            f"The prompts are all in one language ({', '.join(languages) or 'none'}); a silhouette needs at least two. "
            "Give parallel prompts: the same queries in several languages."
        )
    if len(queries) < 2:
        raise DataError("There is one query only; a silhouette needs at least two. Give more parallel queries.")
    if max(queries.values()) < 2:
        raise DataError(
            "No query occurs in two languages, so meaning and language cannot be told apart. "
            "Translations of one question must share their query id."
        )
    (query, language), times = Counter((p.query_id, p.language) for p in prompts).most_common(1)[0]
    if times > 1:
        raise DataError(
            f"Query {query!r} occurs {times} times in {language}. Equal query ids mean translations of one question, "
            "so give different questions different ids."
        )
