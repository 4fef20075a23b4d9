"""AdamW on bfloat16 weights: 8 bytes a parameter, its gradient included, where float32 takes 16.

A bfloat16 weight has 8 significant bits: an update below 1/512 of it is lost when the sum is rounded to nearest, and so
is what a step adds to the second moment. Rounded up or down at random, in proportion to the distance, both arrive on
average (Zamirai et al., 2020, "Revisiting BFloat16 Training", arXiv 2010.06192).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

PART = 2**24
"""Values that are computed in float32 at a time."""


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW with weights and moments in bfloat16, rounded stochastically.

    Args:
        parameters: What to train; matrices decay, vectors do not.
        rate: Learning rate.
        weight_decay: Of matrices.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, weight_decay: float = 0.0) -> None:
        trained = [p for p in parameters if p.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        super().__init__(
            [group for group in groups if group["params"]], {"lr": rate, "betas": (0.9, 0.999), "eps": 1e-8}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state.update(step=0, first=torch.zeros_like(weight), second=torch.zeros_like(weight))
                state["step"] += 1
                parts = [one.reshape(-1).split(PART) for one in (weight, weight.grad, state["first"], state["second"])]
                for w, g, m, v in zip(*parts, strict=True):
                    _update(w, g, m, v, state["step"], group)


def _update(weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int, group: dict[str, Any]) -> None:
    """AdamW (Loshchilov and Hutter, 2019) in float32, on views of what is stored."""
    (one, two), g = group["betas"], gradient.float()
    m = first.float().lerp_(g, 1 - one)
    v = second.float().lerp_(g * g, 1 - two)
    change = (m / (1 - one**step)) / ((v / (1 - two**step)).sqrt_() + group["eps"])
    w = weight.float() * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * change
    for stored, value in ((weight, w), (first, m), (second, v)):
        stored.copy_(round_stochastically(value))


def round_stochastically(values: Tensor) -> Tensor:
    """Float32 values that bfloat16 can hold, each the next below or above at random; right on average."""
    bits = values.view(torch.int32)
    noise = torch.randint(0, 2**16, bits.shape, dtype=torch.int32, device=bits.device)
    return (bits + noise).bitwise_and_(-(2**16)).view(torch.float32)
