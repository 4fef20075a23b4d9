"""Where a hidden state is read: at which layer, and at which tokens of a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lasa.models.rendering import Rendered

Position = Literal["last", "last_user", "mean_user"]
"""Last token of the rendered prompt; last token of the last user message; mean over the last user message."""


@dataclass(frozen=True)
class ReadPoint:
    """Where a hidden state is read; it travels with every artefact made from such states.

    Attributes:
        layer: Layer index in 0..L (see `lasa.models.layers`).
        position: Token position.
        template: Fingerprint of the chat rendering.
    """

    layer: int
    position: Position
    template: str


def token_range(rendered: Rendered, position: Position) -> tuple[int, int]:
    """The tokens to average over for a position: `[start, end)` in the unpadded prompt."""
    length = len(rendered.token_ids)
    if position == "last":
        return length - 1, length
    start, end = rendered.user_span
    return (end - 1, end) if position == "last_user" else (start, end)


class TokenRanges:
    """The tokens of each row of a batch that are averaged over.

    They are laid on the device once for all layers: to send them for each would make a GPU wait at each.

    Args:
        ranges: `[start, end)` per row, in columns of the batch (padding counted).
        device: Where the first states will be.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]], device: torch.device) -> None:
        self._bounds = torch.tensor(ranges, device=device)
        self._single = all(end - start == 1 for start, end in ranges)

    def pool(self, states: Tensor) -> Tensor:
        """Mean hidden state over the range of each row.

        Args:
            states: `[batch, time, H]`.

        Returns:
            `[batch, H]`; for ranges of one token exactly that token's state.
        """
        self._bounds = self._bounds.to(states.device)  # layers may be spread over several
        starts, ends = self._bounds.unbind(1)
        if self._single:
            return states[torch.arange(len(starts), device=states.device), starts]
        times = torch.arange(states.shape[1], device=states.device)
        inside = (times >= starts[:, None]) & (times < ends[:, None])
        total = torch.einsum("bt,bth->bh", inside.float(), states.float())
        return (total / (ends - starts)[:, None]).to(states.dtype)
