"""Options of a chat template that a caller gives: taken where they leave the prompt as it is."""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lasa.data.prompts import Message
from lasa.models.rendering import defuse, render_text
from lasa.models.template import HEADER


def same_prompt(tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any]) -> bool:
    """Whether a conversation is rendered with these options as without them, so that what is read stays the same.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: The conversation.
        options: Variables of the template; the renderer's own arguments (a template, say) are none.

    Raises:
        DataError: The chat template refuses the conversation.
    """
    plain = render_text(tokenizer, messages)
    if set(options) & set(inspect.signature(tokenizer.apply_chat_template).parameters):
        return False
    header = HEADER.match(str(tokenizer.chat_template))
    fixed = json.loads(header[1]).get("options", {}) if header else {}
    if any(name in fixed and fixed[name] != value for name, value in options.items()):
        return False  # the template overrules it, so that the prompt would be the same by mistake
    safe = [{**m, "content": defuse(tokenizer, m["content"], markers=m["role"] != "assistant")} for m in messages]
    try:
        text = tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=True, **options)
    except Exception:  # jinja raises whatever a template wants to say
        return False
    return bool(text == plain)
