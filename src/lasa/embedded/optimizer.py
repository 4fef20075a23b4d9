"""The embedded model's optimiser: Muon and AdamW on float32 copies of the weights."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, and below the number of iterations (Jordan et al. 2024, "Muon")."""
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024), with Nesterov momentum and decoupled weight decay.

    `torch.optim.Muon` iterates in bfloat16, one matrix after the other: on a CPU without bfloat16 instructions, two
    thirds of a training step. Here matrices of one shape go together, in float32.

    Args:
        matrices: Two-dimensional parameters.
        lr: Learning rate, multiplied by the square root of rows over columns for tall matrices.
        momentum: Of the running gradient.
        weight_decay: Times the learning rate, taken from the weights.
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes[matrix.shape].append(matrix)
            for (rows, columns), matrices in shapes.items():
                gradients = torch.stack([matrix.grad for matrix in matrices if matrix.grad is not None])
                states = [self.state[matrix] for matrix in matrices]
                buffers = torch.stack([s.get("momentum_buffer", torch.zeros(rows, columns)) for s in states])
                buffers.lerp_(gradients, 1 - group["momentum"])
                updates = orthogonalize(gradients.lerp_(buffers, group["momentum"]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for matrix, state, buffer, update in zip(matrices, states, buffers, updates, strict=True):
                    state["momentum_buffer"] = buffer.clone()
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)


def orthogonalize(matrices: Tensor) -> Tensor:
    """About the nearest orthogonal matrices: singular values are brought between 0.5 and 1.5.

    Args:
        matrices: `[count, rows, columns]`, float32.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MasterWeights:
    """Muon on the hidden matrices, AdamW on the rest, both on float32 copies of the weights.

    Args:
        model: Its weights, bfloat16 or float32, follow the copies after every step.
        muon_learning_rate: Peak rate of the hidden matrices.
        adam_learning_rate: Peak rate of embeddings and norms.
    """

    def __init__(self, model: nn.Module, muon_learning_rate: float, adam_learning_rate: float) -> None:
        self.weights: list[Tensor] = list(model.parameters())
        self.masters = [p.detach().float().clone() for p in self.weights]
        hidden = {id(p) for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n}
        matrices = [m for p, m in zip(self.weights, self.masters, strict=True) if id(p) in hidden]
        others = [m for p, m in zip(self.weights, self.masters, strict=True) if id(p) not in hidden]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=muon_learning_rate),
            torch.optim.AdamW(others, lr=adam_learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates = [muon_learning_rate, adam_learning_rate]

    def step(self, scale: float) -> None:
        """Apply the gradients of the weights and clear them; `scale` multiplies the peak rates.

        A weight without a gradient stays as it is.
        """
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
        self._publish()

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on, as named tensors."""
        tensors = {f"master.{i}": master for i, master in enumerate(self.masters)}
        for number, optimizer in enumerate(self.optimizers):
            for index, entries in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{name}": value for name, value in entries.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `state()`."""
        with torch.no_grad():
            for i, master in enumerate(self.masters):
                master.copy_(tensors[f"master.{i}"])
        for number, optimizer in enumerate(self.optimizers):
            saved = optimizer.state_dict()
            entries: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{number}."):
                    _, _, index, name = key.split(".", 3)
                    entries.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({**saved, "state": entries})
        self._publish()

    def _publish(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)
