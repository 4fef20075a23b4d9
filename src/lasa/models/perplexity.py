"""Perplexity of benign conversations, language by language, before and after alignment: what training cost the model.

The perplexity is over all tokens of the rendered conversations but the first, as the model reads them.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lasa.data.prompts import Prompt
from lasa.languages import sort_languages
from lasa.models.layers import input_device
from lasa.models.memory import in_halves
from lasa.models.padding import right_pad
from lasa.models.rendering import render

BATCH_TOKENS = 8192
"""Tokens of one batch, padding counted."""

LOGIT_BYTES = 2**30
"""What the logits of one batch take at most, in the model's own precision; a longer row is alone."""

FLOAT_TOKENS = 1024
"""Tokens whose logits are held in float32 at a time."""


def conversation_losses(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> list[tuple[float, int]]:
    """Summed negative log-likelihood (nats) and number of tokens of each prompt, in order."""
    rows = [render(tokenizer, prompt.messages).token_ids for prompt in prompts]
    return [(math.fsum(losses), len(losses)) for losses in token_losses(model, rows)]


def token_losses(model: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """Negative log-likelihood (nats) of all tokens of each row but its first, in batches of bounded memory.

    Args:
        model: Any Hugging Face causal LM.
        rows: Token ids.
    """
    bytes_per_token = model.config.get_text_config().vocab_size * model.dtype.itemsize
    budget = min(BATCH_TOKENS, LOGIT_BYTES // bytes_per_token)
    batches: list[list[int]] = []
    for row in sorted(range(len(rows)), key=lambda row: len(rows[row])):
        if not batches or (len(batches[-1]) + 1) * len(rows[row]) > budget:
            batches.append([])
        batches[-1].append(row)
    found: list[list[float]] = [[] for _ in rows]
    for batch in batches:
        losses = in_halves([rows[row] for row in batch], partial(_batch_losses, model))
        for row, one in zip(batch, losses, strict=True):
            found[row] = one
    return found


@torch.inference_mode()
def _batch_losses(model: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    ids, mask = (part.to(input_device(model)) for part in right_pad(rows))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    columns = max(1, FLOAT_TOKENS // len(rows))
    parts = torch.split(logits, columns, 1), torch.split(ids[:, 1:].to(logits.device), columns, 1)
    losses = torch.cat(
        [cross_entropy(some.float().transpose(1, 2), t, reduction="none") for some, t in zip(*parts, strict=True)], 1
    )
    return [one[: len(row) - 1] for one, row in zip(losses.tolist(), rows, strict=True)]


def language_losses(prompts: Sequence[Prompt], losses: Sequence[tuple[float, int]]) -> dict[str, tuple[float, int]]:
    """Summed loss and number of tokens by language.

    Args:
        prompts: The prompts.
        losses: `conversation_losses` of them.
    """
    sums: dict[str, tuple[float, int]] = {}
    for prompt, (loss, count) in zip(prompts, losses, strict=True):
        before = sums.get(prompt.language, (0.0, 0))
        sums[prompt.language] = before[0] + loss, before[1] + count
    return sums


def perplexity_drift(before: dict[str, tuple[float, int]], after: dict[str, tuple[float, int]]) -> dict[str, Any]:
    """Perplexities and their ratio by language, and over all.

    Args:
        before: `language_losses` of the base model.
        after: The same of the aligned one, on the same prompts.

    Returns:
        `{"languages": {code: {"before", "after", "ratio", "tokens"}}, "all": {...}}`.
    """

    def entry(codes: Sequence[str]) -> dict[str, float]:
        tokens = sum(before[code][1] for code in codes)
        first, second = (sum(side[code][0] for code in codes) / tokens for side in (before, after))
        return {"before": _exp(first), "after": _exp(second), "ratio": _exp(second - first), "tokens": tokens}

    codes = sort_languages(set(before))
    return {"languages": {code: entry([code]) for code in codes}, "all": entry(codes)}


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
