"""Read hidden states of the tokens of answers that exist already, as the guard sees them while they are written."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lasa.data.prompts import Prompt
from lasa.errors import DataError
from lasa.models.checks import check_finite
from lasa.models.hidden_states import DEFAULT_TOKEN_BUDGET, render_all
from lasa.models.layers import check_layer, context_length, forward_to_layers, input_device
from lasa.models.padding import right_pad
from lasa.progress import progress


@torch.no_grad()
def read_answer_states(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    layer: int,
    *,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> list[Tensor]:
    """The states of every token of each answer, read after its prompt.

    Args:
        model: Any Hugging Face causal LM.
        tokenizer: Its tokenizer.
        prompts: What was asked.
        answers: What was answered, none of them empty.
        layer: Layer to read.
        token_budget: Tokens of one batch, padding counted.

    Returns:
        Per answer `[tokens, H]` float32 on the CPU.

    Raises:
        DataError: An answer is empty, a prompt cannot be rendered, or both are longer than the model's context.
    """
    check_layer(model, layer)
    before = [one.token_ids for one in render_all(tokenizer, prompts, model)]
    written = tokenizer(list(answers), add_special_tokens=False)["input_ids"] if answers else []
    rows = [[*asked, *said] for asked, said in zip(before, written, strict=True)]
    longest = context_length(model)
    for prompt, said, whole in zip(prompts, written, rows, strict=True):
        if not said or (longest and len(whole) > longest):
            wrong = f"is too long for the model's context of {longest} tokens" if said else "is empty"
            raise DataError(f"The answer to prompt {prompt.query_id!r} ({prompt.language}) {wrong}. Leave it out.")
    found: dict[int, Tensor] = {}
    queue = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    model.eval()
    with progress("Reading answers", len(rows), "answers") as advance:
        while queue:
            width = len(rows[queue[0]])
            batch, queue = queue[: max(1, token_budget // width)], queue[max(1, token_budget // width) :]
            lengths = [len(written[row]) for row in batch]
            found.update(zip(batch, _read_batch(model, layer, [rows[row] for row in batch], lengths), strict=True))
            advance(len(batch))
    return [found[row] for row in range(len(rows))]


def _read_batch(
    model: nn.Module, layer: int, rows: Sequence[Sequence[int]], lengths: Sequence[int]
) -> Sequence[Tensor]:
    """The states of the last so many tokens of each row; all leave the device in one piece."""
    (ids, mask), device = right_pad(rows), input_device(model)
    ends, columns = mask.sum(1, keepdim=True), torch.arange(ids.shape[1])
    said = (columns < ends) & (columns >= ends - torch.tensor(lengths)[:, None])
    read: list[Tensor] = []
    forward_to_layers(
        model,
        [layer],
        lambda _, states: read.append(states[said.to(states.device)]),
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
    )
    check_finite(layer, read[0])
    return torch.split(read[0].to("cpu", torch.float32), list(lengths))
