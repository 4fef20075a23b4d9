"""Whether a model can be read at all: its layers can be observed, it is causal, and its numbers stay finite."""

from typing import Any

import torch
from torch import Tensor, nn

from lasa.errors import ModelError
from lasa.models.layers import forward_to_layers, input_device, num_layers
from lasa.models.rendering import render


def check_readable(model: nn.Module, tokenizer: Any) -> None:
    """Fail early, with a reason, where a model cannot be read.

    Raises:
        ModelError: Its decoder blocks cannot be found or are not run as modules, its attention is not causal, or a
            layer's numbers overflow on a greeting.
    """
    seen: list[Tensor] = []
    ids = torch.tensor([[0, 0], [0, 1]], device=input_device(model))
    with torch.inference_mode():
        forward_to_layers(model, [1], lambda _, states: seen.append(states), input_ids=ids)
    if len(seen) != 1:
        raise ModelError(f"{type(model).__name__}: layer 1 was observed {len(seen)} times in one forward pass.")
    first, second = seen[0][:, 0].float()
    rounding = 32 * torch.finfo(seen[0].dtype).eps * first.abs().max()
    if (first - second).abs().max() > rounding:
        raise ModelError(
            f"{type(model).__name__}: the state of a token depends on the tokens after it, so this is not a causal "
            "language model. lasa needs a decoder-only model that generates text."
        )
    greeting = render(tokenizer, ({"role": "user", "content": "hello"},))
    with torch.inference_mode():
        ids = torch.tensor([greeting.token_ids], device=input_device(model))
        forward_to_layers(model, range(1, num_layers(model) + 1), check_finite, input_ids=ids)


def check_finite(layer: int, states: Tensor) -> None:
    """Make sure that a layer's hidden states are numbers.

    Raises:
        ModelError: One of them is infinite or not a number.
    """
    if not torch.isfinite(states).all():
        raise ModelError(
            f"Layer {layer} holds values that are no finite numbers in {str(states.dtype).removeprefix('torch.')}. "
            "Load the model with the dtype bfloat16 or float32; if it was, its weights are damaged."
        )
