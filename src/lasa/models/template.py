"""The chat template as it was measured: options and today's date become part of its text.

What a template's variables are set to, and the date that it prints, are written into the template itself, behind a
line that says so. They then belong to the rendering's fingerprint, are saved with the tokenizer, and are the same in
training, in the guard and in any other server that renders with this text.
"""

import json
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from lasa.errors import ModelError
from lasa.progress import say

HEADER = re.compile(r"\{# lasa: (\{.*?\}) #\}")
DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


def fix_template(tokenizer: Any, options: Mapping[str, Any], today: date | None, chosen: str | None = None) -> None:
    """Write options, and the date where the template prints one, into the tokenizer's template.

    A template that was fixed before stays as it is.

    Args:
        tokenizer: Its `chat_template` is changed.
        options: Variables of the template, such as `enable_thinking`.
        today: The date that is printed; the real one if None.
        chosen: Another template than the tokenizer's own: a Jinja file, or its text.

    Raises:
        ModelError: The file cannot be read, the template was fixed in another way, does not look at an option, or
            prints the date in a way that cannot be pinned.
    """
    text = str(tokenizer.chat_template) if chosen is None else _text_of(chosen)
    found = HEADER.match(text)
    if found:
        _check_same(json.loads(found[1]), options, today)
        tokenizer.chat_template = text
        return
    unknown = [name for name in options if not re.search(rf"\b{name}\b", text)]
    if unknown:
        raise ModelError(f"The chat template does not look at {unknown[0]!r}. Remove it from template_options.")
    facts: dict[str, Any] = {"given": True} if chosen is not None else {}
    if options:
        facts["options"] = dict(options)
    if DATE_CALL.search(text):
        day = today or date.today()
        facts["date"] = day.isoformat()
        text = DATE_CALL.sub(lambda call: json.dumps(day.strftime(call[2])), text)
        if today is None:
            say(f"The chat template prints today's date; it is pinned to {day.isoformat()} (template_date).")
    if "strftime_now(" in text:
        raise ModelError(
            "The chat template prints today's date in a way that cannot be pinned, so prompts would change from day to "
            "day. Give a template without it as chat_template."
        )
    if facts:
        settings = "".join(f"{{% set {name} = {json.dumps(value)} %}}" for name, value in options.items())
        tokenizer.chat_template = f"{{# lasa: {json.dumps(facts)} #}}{settings}{text}"


def fixed_template(tokenizer: Any) -> str:
    """The tokenizer's template where it is not as the model's maker wrote it; "" where it is."""
    text = str(tokenizer.chat_template)
    return text if HEADER.match(text) else ""


def _text_of(chosen: str) -> str:
    if "{" in chosen:
        return chosen
    try:
        return Path(chosen).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"The chat template {chosen} cannot be read: {error}.") from error


def _check_same(fixed: dict[str, Any], options: Mapping[str, Any], today: date | None) -> None:
    given = {**({"options": dict(options)} if options else {}), **({"date": today.isoformat()} if today else {})}
    differing = [name for name, value in given.items() if name in fixed and fixed[name] != value]
    differing += ["options"] if options and "options" not in fixed else []
    if differing:
        raise ModelError(
            f"The chat template was fixed with other {' and '.join(differing)} ({json.dumps(fixed)}) when the "
            "model was trained. Leave out template_options and template_date."
        )
