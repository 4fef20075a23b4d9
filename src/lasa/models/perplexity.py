"""Perplexity of benign conversations, language by language, before and after alignment: what training cost the model.

The perplexity is over all tokens of the rendered conversations but the first, as the model reads them.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from lasa.data.prompts import Prompt
from lasa.languages import sort_languages
from lasa.models.layers import input_device
from lasa.models.rendering import render

BATCH = 16


@torch.inference_mode()
def language_losses(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> dict[str, tuple[float, int]]:
    """Summed negative log-likelihood (nats) and number of tokens, by language."""
    rows = [(prompt.language, render(tokenizer, prompt.messages).token_ids) for prompt in prompts]
    rows.sort(key=lambda row: len(row[1]))
    sums: dict[str, tuple[float, int]] = {}
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        width = len(batch[-1][1])
        ids = torch.tensor([tokens + [0] * (width - len(tokens)) for _, tokens in batch], device=input_device(model))
        mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for _, tokens in batch], device=ids.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), ids[:, 1:].to(logits.device), reduction="none"
        )
        for (language, tokens), row in zip(batch, losses.tolist(), strict=True):
            loss, count = sums.get(language, (0.0, 0))
            sums[language] = loss + math.fsum(row[: len(tokens) - 1]), count + len(tokens) - 1
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
