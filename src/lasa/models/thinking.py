"""Where an answer begins: behind the template's header, before a block of reasoning, inside it and behind it.

Some chat templates open the block at the end of the generation prompt, others leave that to the model. The prompt is
read as it was rendered, opener included; where the condition must then come before the opener, the opener's tokens
are hidden from that row on the KV cache, and forced again after the condition. Templates with channels leave it to the
model to finish the message's header; what answers are written with is found by rendering one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lasa.errors import GuardError
from lasa.models.rendering import render, render_text

CLOSERS = {
    "<think>": "</think>",
    "<thought>": "</thought>",
    "[THINK]": "[/THINK]",
    "<seed:think>": "</seed:think>",
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>",
}
"""How models mark the beginning of their reasoning, and how they end each kind of block."""

THINKING_MARKERS = tuple(CLOSERS)

_ASKED = ({"role": "user", "content": "a"},)


def thinking_openers(tokenizer: Any) -> list[list[int]]:
    """The token ids with which an answer may open a block of reasoning, for the markers that the tokenizer knows."""
    known = set(tokenizer.added_tokens_decoder)
    ids = [tokenizer(marker, add_special_tokens=False)["input_ids"] for marker in THINKING_MARKERS]
    return [one for one in ids if one[0] in known]


def thinking_tail(tokenizer: Any) -> list[int]:
    """The end of the generation prompt that opens a block of reasoning; empty where the template opens none.

    A block that the template also closes (reasoning switched off) does not count.
    """
    opened = opened_block(tokenizer)
    ids: list[int] = tokenizer(opened, add_special_tokens=False)["input_ids"] if opened else []
    return ids if ids and render(tokenizer, _ASKED).token_ids[-len(ids) :] == ids else []


def opened_block(tokenizer: Any) -> str:
    """The end of the generation prompt that opens a block of reasoning, as text; "" where the template opens none."""
    whole, without = (render_text(tokenizer, _ASKED, add_generation_prompt=wanted) for wanted in (True, False))
    prompt = whole[len(without) :] if whole.startswith(without) else ""
    start = max(prompt.rfind(marker) for marker in THINKING_MARKERS)
    if start < 0 or "/" in prompt[start:]:  # closed again: every closing marker has a slash
        return ""
    return prompt[start:]


def answer_in_block(text: str, opened: str, end: str) -> str:
    """An answer as it is said where the prompt has opened a block of reasoning.

    Args:
        text: The answer. Thoughts of its own, up to the marker that ends them, stay; without any the block is empty.
        opened: `opened_block`: what the prompt has said already.
        end: `block_end`: what stands between thoughts and answer; "" where no block is open.
    """
    closer = end.strip()
    if not closer or closer not in text:
        return end + text
    return text.lstrip().removeprefix(opened.strip()).lstrip()


def block_end(tokenizer: Any) -> str:
    """What closes the block of reasoning that the generation prompt opens, up to the answer; "" where it opens none.

    As the template writes it behind thoughts that it is given. Where it writes none: the marker that belongs to the
    opening one, with the white space that stands behind that (twice between block and answer, as templates have it).
    """
    opened = opened_block(tokenizer)
    if not opened:
        return ""
    [marker] = [marker for marker in THINKING_MARKERS if opened.startswith(marker)]
    thought, answer = "lasa thought", "lasa answer"
    said = {"role": "assistant", "reasoning_content": thought, "content": answer}
    written = render_text(tokenizer, (*_ASKED, said), add_generation_prompt=False)
    between = written.partition(thought)[2].partition(answer)[0]
    space = opened[len(opened.rstrip()) :]
    return between if CLOSERS[marker] in between else space + CLOSERS[marker] + 2 * space


def answer_header(tokenizer: Any) -> list[int]:
    """The token ids that the chat template writes between generation prompt and answer; empty in most templates.

    A block of reasoning, open or closed, belongs to no header, nor does white space.

    Raises:
        GuardError: An answer does not stand where the generation prompt ends, so the condition cannot be placed.
    """
    answer = "lasa"
    prompt = render_text(tokenizer, _ASKED)
    begun = len(render_text(tokenizer, _ASKED, add_generation_prompt=False))
    written = render_text(tokenizer, (*_ASKED, {"role": "assistant", "content": answer}), add_generation_prompt=False)
    before = written[: max(0, written.rfind(answer))]
    blocks = [place for marker in THINKING_MARKERS if (place := prompt.find(marker, begun)) >= 0]
    head = prompt[: min(blocks, default=len(prompt))].rstrip()
    if not before.startswith(head):
        raise GuardError(
            f"In the chat template of {tokenizer.name_or_path!r} answers do not stand where the generation prompt "
            "ends, so the condition cannot be put at their beginning. Give a template in which they do."
        )
    header = before[len(head) :].lstrip()
    if not header or any(marker in header for marker in THINKING_MARKERS):
        return []
    ids: list[int] = tokenizer(header, add_special_tokens=False)["input_ids"]
    return ids


@contextmanager
def hidden_columns(model: nn.Module, start: int, end: int, rows: Callable[[], Sequence[int]]) -> Iterator[None]:
    """Hide the prompt's columns `[start, end)` from some rows in every decoding step of `model.generate`.

    The rows' later tokens move up, as if the columns had never been there. (A sliding window still counts them: it is
    shorter by `end - start` tokens for these rows while they lie within it.)

    Args:
        model: The model that generates.
        start: First column of the batch.
        end: One past the last column; also the width of the prefill.
        rows: Gives the rows once the prefill has run.

    Raises:
        GuardError: In a step, where mask or positions are not given to the decoder as expected.
    """

    def hide(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if mask is None or mask.ndim != 2 or positions is None:
            raise GuardError(
                f"{type(model).__name__} does not take a plain attention mask and positions, so the condition cannot "
                "be put before its block of reasoning. Use a template that does not open the block."
            )
        hidden = list(rows()) if mask.shape[1] > end else []
        if hidden:
            mask, positions = mask.clone(), positions.clone()
            mask[hidden, start:end] = 0
            positions[hidden] -= end - start
        return args, {**kwargs, "attention_mask": mask, "position_ids": positions}

    if start == end:
        yield
        return
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    handle = decoder.register_forward_pre_hook(hide, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
