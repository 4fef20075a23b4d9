"""The soft condition: no text, but one learned embedding that the interpreter's probability scales.

Where the condition's text would stand, every row has one virtual token. Its id is the probability in steps of one
percent, counted on from the end of the vocabulary; its embedding is `neutral + probability * direction`, both learned.
As an id, the probability passes unchanged through whatever handles tokens: batches, caches, the guard.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lasa.errors import ArtifactError
from lasa.files.artifacts import read_tensors, write_tensors
from lasa.models.rendering import render

LEVELS = 100
"""Steps between a probability of 0 and of 1."""

SOFT_CONDITION = "soft_condition.safetensors"
"""The file with the learned embeddings, in the folder of a model that has them."""


class SoftCondition:
    """Virtual tokens on a model's input embeddings.

    Args:
        model: The model; its input embeddings take virtual ids from now on.
        embeddings: `neutral` and `direction`, `[2, H]`.
    """

    def __init__(self, model: Any, embeddings: Tensor) -> None:
        self.layer: nn.Module = model.get_input_embeddings()
        self.first = int(self.layer.num_embeddings)
        weight: Any = self.layer.weight
        self.embeddings = nn.Parameter(embeddings.to(device=weight.device, dtype=weight.dtype))
        self.layer.register_parameter("soft_condition", self.embeddings)
        self._plain = self.layer.forward
        self.layer.forward = self._forward
        model.soft_condition = self

    @classmethod
    def from_tokens(cls, model: Any, tokenizer: Any, condition: Sequence[int]) -> "SoftCondition":
        """A soft condition that starts between the end of the generation prompt and the mean of a text's tokens."""
        layer = model.get_input_embeddings()
        prompt = render(tokenizer, ({"role": "user", "content": "a"},)).token_ids
        with torch.no_grad():
            neutral = layer(torch.tensor(prompt[-1:], device=layer.weight.device))[0]
            full = layer(torch.tensor(list(condition), device=layer.weight.device)).mean(0)
        return cls(model, torch.stack([neutral, full - neutral]))

    @classmethod
    def load(cls, model: Any, path: Path) -> "SoftCondition":
        """A stored soft condition on the model it was trained with.

        Raises:
            ArtifactError: The file is damaged, or belongs to a model of another width.
        """
        embeddings = read_tensors(path).get("embeddings")
        width = model.get_input_embeddings().weight.shape[1]
        if embeddings is None or embeddings.shape != (2, width):
            raise ArtifactError(f"{path} is no soft condition of a model of width {width}. Restore it from a copy.")
        return cls(model, embeddings)

    def restore(self, path: Path) -> None:
        """Go on from the embeddings that `save` wrote."""
        with torch.no_grad():
            self.embeddings.copy_(read_tensors(path)["embeddings"])

    def token_id(self, probability: float) -> int:
        """The virtual token of a probability; one that is not a number counts as 1."""
        level = LEVELS if math.isnan(probability) else round(min(max(probability, 0.0), 1.0) * LEVELS)
        return self.first + level

    def save(self, path: Path) -> None:
        """Write the learned embeddings."""
        write_tensors(path, {"embeddings": self.embeddings.detach().cpu()})

    def _forward(self, ids: Tensor) -> Tensor:
        levels = ids - self.first
        virtual = levels >= 0
        states: Tensor = self._plain(ids.masked_fill(virtual, 0))
        neutral, direction = self.embeddings
        soft = neutral + (levels.clamp(min=0) / LEVELS).unsqueeze(-1).to(direction.dtype) * direction
        return torch.where(virtual.unsqueeze(-1), soft.to(states.dtype), states)


def soft_condition_of(model: Any) -> SoftCondition | None:
    """The soft condition that a model was trained with, or None."""
    found = getattr(model, "soft_condition", None)
    return found if isinstance(found, SoftCondition) else None
