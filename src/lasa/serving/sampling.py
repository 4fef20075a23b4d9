"""The next tokens of many rows at once, each drawn by its own settings and its own random number."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lasa.models.generation import GenerationSettings

COLDEST = 1e-6
"""Below this temperature logits would overflow; at it, the likeliest token is drawn."""

Alternatives = tuple[float, list[tuple[int, float]]]
"""The log probability of the token that was taken, and the likeliest tokens with theirs, best first."""


def next_tokens(logits: Tensor, settings: Sequence[GenerationSettings], numbers: Sequence[float]) -> list[int]:
    """The likeliest token of each row, or where it has a temperature the one at its number.

    Args:
        logits: `[rows, V]`.
        settings: Temperature, `top_p` and `top_k` of each row.
        numbers: In `[0, 1)`, one for each row.
    """
    tokens: list[int] = logits.argmax(-1).tolist()
    drawn = [row for row, one in enumerate(settings) if one.temperature > 0]
    if drawn:
        chosen = _draw(logits[drawn].float(), [settings[row] for row in drawn], [numbers[row] for row in drawn])
        for row, token in zip(drawn, chosen, strict=True):
            tokens[row] = token
    return tokens


def alternatives(logits: Tensor, tokens: Sequence[int], counts: Sequence[int | None]) -> list[Alternatives | None]:
    """Log probabilities of the tokens and of so many of the likeliest, before temperature; None where none are asked.

    Args:
        logits: `[rows, V]`.
        tokens: One for each row.
        counts: How many alternatives each row records.
    """
    found: list[Alternatives | None] = [None] * len(tokens)
    for row, count in enumerate(counts):
        if count is not None:
            logprobs = logits[row].float().log_softmax(-1)
            best = logprobs.topk(min(count, len(logprobs)))
            top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            found[row] = float(logprobs[tokens[row]]), top
    return found


def _draw(scores: Tensor, settings: Sequence[GenerationSettings], numbers: Sequence[float]) -> list[int]:
    temperatures = [max(one.temperature, COLDEST) for one in settings]
    likely = (scores / scores.new_tensor(temperatures)[:, None]).softmax(-1)
    cut = [row for row, one in enumerate(settings) if one.top_k or one.top_p < 1]
    if cut:
        likely[cut] = _cut(likely[cut], [settings[row] for row in cut])
    below = likely.double().cumsum(-1)
    places = below[:, -1:] * below.new_tensor(numbers)[:, None]
    chosen: list[int] = torch.searchsorted(below, places, right=True).clamp(max=scores.shape[1] - 1)[:, 0].tolist()
    return chosen


def _cut(likely: Tensor, settings: Sequence[GenerationSettings]) -> Tensor:
    """Only the `top_k` likeliest, and of these the fewest that have `top_p` of their probability together."""
    ordered, places = likely.sort(-1, descending=True)
    most = torch.tensor([one.top_k or likely.shape[1] for one in settings], device=likely.device)[:, None]
    ordered = ordered.masked_fill(torch.arange(likely.shape[1], device=likely.device) >= most, 0)
    before = ordered.cumsum(-1) - ordered
    share = likely.new_tensor([one.top_p for one in settings])[:, None]
    outside = before >= share * ordered.sum(-1, keepdim=True)
    outside[:, 0] = False
    return torch.zeros_like(likely).scatter(1, places, ordered.masked_fill(outside, 0))
