"""Chat rendering: from a conversation to token ids, the same way in every stage.

The tokenizer's own chat template renders the conversation once, with a generation prompt; the text is tokenized
without further special tokens, so there is exactly one BOS. Special tokens that a caller typed as text stay text.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from lasa.data.prompts import Message
from lasa.errors import DataError, ModelError


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        token_ids: The prompt, generation prompt included.
        user_span: First and one-past-last token position of the last user message.
    """

    token_ids: list[int]
    user_span: tuple[int, int]


def check_tokenizer(tokenizer: Any) -> None:
    """Make sure that the tokenizer can render chats.

    Raises:
        ModelError: It has no chat template, or is not a fast tokenizer (token positions need one).
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"The tokenizer {tokenizer.name_or_path!r} has no chat template, so conversations cannot be rendered. "
            "Use the chat (instruct) version of the model, or give a Jinja file as chat_template."
        )
    if not tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer {tokenizer.name_or_path!r} is not a fast tokenizer; token positions of messages "
            "cannot be found. Convert it to tokenizer.json."
        )


def check_template(tokenizer: Any) -> None:
    """Make sure that the chat template renders a conversation.

    Raises:
        ModelError: It does not; the message says where it is wrong.
    """
    try:
        render(tokenizer, ({"role": "user", "content": "hello"},))
    except DataError as error:
        line = getattr(error.__cause__, "lineno", None)
        where = f" (line {line})" if line else ""
        raise ModelError(
            f"The chat template of {tokenizer.name_or_path!r} is no use{where}: {error} Give another as chat_template."
        ) from error


def render(tokenizer: Any, messages: Sequence[Message]) -> Rendered:
    """Render a conversation that the assistant is to continue.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        messages: The conversation; the last message is the user's or a tool's.

    Raises:
        DataError: The chat template refuses the conversation (roles out of order, say).
    """
    (one,) = render_each(tokenizer, [messages])
    return one


def render_each(tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
    """Render conversations as `render` does, tokenized in one call, which uses all cores.

    Raises:
        DataError: The chat template refuses one of them.
    """
    texts = [render_text(tokenizer, messages) for messages in conversations]
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    rendered = []
    for messages, text, found, places in zip(
        conversations, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        token_ids = drop_second_bos(tokenizer, found)
        offsets = places[len(found) - len(token_ids) :]
        rendered.append(Rendered(token_ids, _user_span(tokenizer, text, offsets, messages)))
    return rendered


def render_text(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
    """The conversation as text, with special tokens inside the messages defused."""
    safe = [{**m, "content": defuse(tokenizer, m["content"], markers=m["role"] != "assistant")} for m in messages]
    try:
        return str(tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=add_generation_prompt))
    except Exception as error:  # jinja raises whatever a template wants to say
        roles = ", ".join(m["role"] for m in messages)
        raise DataError(f"The chat template cannot render a conversation with the roles {roles}: {error}") from error


def defuse(tokenizer: Any, content: str, *, markers: bool = True) -> str:
    """Break special tokens typed as text, so that a message cannot end its turn or open another.

    A space goes after the first character of each special token found; anything else is left as it is.

    Args:
        tokenizer: Says which tokens are special.
        content: What a caller wrote.
        markers: Also the ordinary tokens and texts that the chat template gives a meaning, such as `<think>`,
            `<tool_call>` or `[INST]`; not in earlier turns of the assistant, where the template itself looks for them.
    """
    pattern = _patterns(tokenizer)[markers]
    while pattern and pattern.search(content):
        content = pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", content)
    return content


def special_tokens(tokenizer: Any, *, markers: bool = True) -> list[str]:
    """Every token of two visible characters or more that the tokenizer would turn into one control id.

    With `markers` also the tokens and the plain texts by which the chat template marks its turns.
    """
    added = [(token.content, token.special) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()]
    found = {text for text, special in added if special or text.startswith(("<|", "[/"))}
    if markers:
        found |= {text for text, _ in added if text in str(tokenizer.chat_template)} | set(plain_markers(tokenizer))
    return [token for token in {*found, *tokenizer.all_special_tokens} if len(token.strip()) > 1]


def plain_markers(tokenizer: Any) -> list[str]:
    """Bracketed texts around the turns of the chat template that are no tokens of their own, such as `[INST]`."""
    tokens = set(tokenizer.get_added_vocab())
    found: set[str] = set()
    for roles in (("system", "user", "assistant", "user"), ("user", "assistant", "user")):
        turns = [{"role": role, "content": "a"} for role in roles]
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except Exception:  # jinja raises whatever a template wants to say, of a system turn too
            continue
        found |= {mark for mark in re.findall(r"\[/?[A-Z_]{2,}\]|<</?[A-Z]+>>", text) if mark not in tokens}
    return sorted(found)


_PATTERNS: WeakKeyDictionary[Any, tuple[Any, dict[bool, re.Pattern[str] | None]]] = WeakKeyDictionary()


def _patterns(tokenizer: Any) -> dict[bool, re.Pattern[str] | None]:
    """What `defuse` looks for; collected once, for a tokenizer may have thousands of added tokens."""
    state = (tokenizer.chat_template, len(tokenizer), tuple(tokenizer.all_special_tokens))
    known = _PATTERNS.get(tokenizer)
    if known is None or known[0] != state:
        found = {m: sorted(special_tokens(tokenizer, markers=m), key=len, reverse=True) for m in (True, False)}
        known = (state, {m: re.compile("|".join(map(re.escape, one))) if one else None for m, one in found.items()})
        _PATTERNS[tokenizer] = known
    return known[1]


def drop_second_bos(tokenizer: Any, token_ids: list[int]) -> list[int]:
    """Exactly one BOS where the template or the tokenizer would give two."""
    bos = tokenizer.bos_token_id
    while bos is not None and len(token_ids) > 1 and token_ids[0] == token_ids[1] == bos:
        token_ids = token_ids[1:]
    return list(token_ids)


def turn_end_ids(tokenizer: Any) -> list[int]:
    """The token ids with which the chat template ends an assistant's turn (need not be `eos_token`).

    Found by rendering an assistant turn: what follows the content, up to and including the first special token;
    `eos_token` where the template adds nothing.
    """
    marker = "lasa"
    turn = ({"role": "user", "content": "a"}, {"role": "assistant", "content": marker})
    text = render_text(tokenizer, turn, add_generation_prompt=False)
    tail = text[text.rindex(marker) + len(marker) :]
    specials = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    ids: list[int] = []
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        ids.append(token)
        if token in specials:
            return ids
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "The tokenizer has no token that ends an assistant's turn (no eos_token, none in its template)."
        )
    return [tokenizer.eos_token_id]


def template_fingerprint(tokenizer: Any) -> str:
    """Identifies how prompts are rendered: a hash of the chat template and the special tokens."""
    facts = [tokenizer.chat_template, sorted(map(str, tokenizer.all_special_tokens)), len(tokenizer)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _user_span(
    tokenizer: Any, text: str, offsets: Sequence[tuple[int, int]], messages: Sequence[Message]
) -> tuple[int, int]:
    place = max(i for i, m in enumerate(messages) if m["role"] == "user")
    content = defuse(tokenizer, messages[place]["content"]).strip()
    start = text.find(content) if content else -1
    if start >= 0 and text.find(content, start + 1) >= 0:
        start = _start_of_message(tokenizer, text, messages, place, content)
    if start < 0:
        raise DataError("The chat template does not contain the last user message as it was given.")
    end = start + len(content)
    inside = [i for i, (left, right) in enumerate(offsets) if right > start and left < end and right > left]
    if not inside:
        raise DataError("The last user message has no token of its own; it is empty after tokenization.")
    return inside[0], inside[-1] + 1


def _start_of_message(tokenizer: Any, text: str, messages: Sequence[Message], place: int, content: str) -> int:
    """Where a message begins whose content is in the text more than once (a role's name, a quoted sentence), or -1.

    Up to the message, the text is the same whatever it says: with another first letter the texts part there.
    """
    written = messages[place]["content"]
    indent = written[: len(written) - len(written.lstrip())]
    other = {**messages[place], "content": indent + ("b" if content.startswith("a") else "a")}
    changed = render_text(tokenizer, [*messages[:place], other, *messages[place + 1 :]])
    start = next((i for i, (one, two) in enumerate(zip(text, changed, strict=False)) if one != two), len(text))
    return start if text.startswith(content, start) else -1
