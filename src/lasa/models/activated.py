"""An adapter that acts only behind the condition (activated LoRA, arXiv 2504.12397).

The adapter's maps are added at the tokens that a mask names and nowhere else; all that comes before the condition is
computed by the base model's own weights, and its KV cache is shared. PEFT looks for the place by searching the input
for the condition's tokens, which a user could type. Here whoever has decided sets the mask, and without one the model
is its base.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lasa.errors import ModelError
from lasa.files.artifacts import read_json, write_json
from lasa.models.layers import input_device

ADAPTER_CONFIG = "adapter_config.json"
TOKENS = "alora_invocation_tokens"
"""PEFT's name for the tokens from which on an adapter acts."""


class Activation:
    """Where a model's adapter acts in the forward passes to come.

    Args:
        model: A PEFT model whose adapter was made with `alora_invocation_tokens`.

    Attributes:
        tokens: The condition that the adapter acts behind.
        mask: Rows and tokens at which it acts, `[rows, tokens]`, or `[rows, 1]` for all tokens of a row; None for
            nowhere.

    Raises:
        ModelError: It was made without.
    """

    def __init__(self, model: Any) -> None:
        name = model.active_adapter
        config = model.peft_config[name]
        self.tokens: list[int] = list(config.alora_invocation_tokens or [])
        if not self.tokens:  # stored, it would be taken for an adapter that acts everywhere
            raise ModelError("An adapter that acts behind a condition needs the condition's tokens; there are none.")
        self.mask: Tensor | None = None
        config.alora_invocation_tokens = None  # or PEFT searches every input for them
        _put_into_layers(self, model, name)
        model.activation = self

    def complete(self, folder: Path) -> None:
        """Name the condition in the config that PEFT has written; without it the adapter would pass for a plain one."""
        config = read_json(folder / ADAPTER_CONFIG)
        write_json(folder / ADAPTER_CONFIG, {**config, TOKENS: self.tokens})

    def add(self, module: Any, name: str, x: Tensor, result: Tensor) -> Tensor:
        """The output of a linear map, with that of its adapter where the mask says so.

        Args:
            module: PEFT's layer.
            name: Of the adapter.
            x: What the map is applied to, `[rows, tokens, D]`.
            result: What the base model's map gave.
        """
        mask = self.mask
        if mask is None:
            return result
        if result.ndim != 3 or mask.shape[0] != result.shape[0] or mask.shape[1] not in (1, result.shape[1]):
            raise ModelError(
                f"An adapter behind the condition was to act at {tuple(mask.shape)} rows and tokens of a map that sees "
                f"{tuple(result.shape[:-1])}. Name other lora_targets: each must see a whole batch, row by row."
            )
        lora_a, lora_b = module.lora_A[name], module.lora_B[name]
        inner = lora_a(module.lora_dropout[name](module._cast_input_dtype(x, lora_a.weight.dtype)))
        added = result + lora_b(inner) * module.scaling[name]
        return torch.where(mask[..., None].to(result.device), added, result)


def _put_into_layers(activation: Activation, model: Any, name: str) -> None:
    """Replace PEFT's own variant of an activated adapter, which cannot be merged either."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.variants import ALoraLinearVariant  # PEFT takes seconds to import

    class Masked(ALoraLinearVariant):  # type: ignore[misc]
        def __init__(self) -> None:
            self.activation = activation  # copied along with a model that is copied

        def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
            return self.activation.add(module, active_adapter, x, result)

    for layer in model.modules():
        if isinstance(layer, LoraLayer) and name in layer.lora_A:
            layer.lora_variant[name] = Masked()


def activation_of(model: Any) -> Activation | None:
    """Where the model's adapter acts, or None for a model that has no such adapter."""
    found = getattr(model, "activation", None)
    return found if isinstance(found, Activation) else None


def stored_tokens(folder: Path) -> list[int]:
    """The condition that the adapter in a folder acts behind; empty where it acts everywhere, or is none."""
    path = folder / ADAPTER_CONFIG
    return (read_json(path).get(TOKENS) or []) if path.is_file() else []


@contextmanager
def acting_in_rows(model: nn.Module, rows: Sequence[bool] = ()) -> Iterator[Callable[[Sequence[bool]], None]]:
    """Says for forward passes which rows are behind their condition, at all tokens; at the end none is.

    Args:
        model: Any model.
        rows: Those at first.

    Yields:
        What to call with one truth value per row; it does nothing where the model has no such adapter.
    """
    activation = activation_of(model)

    def act_in(rows: Sequence[bool]) -> None:
        if activation is not None:
            activation.mask = torch.tensor(rows, device=input_device(model))[:, None] if any(rows) else None

    act_in(rows)
    try:
        yield act_in
    finally:
        act_in([])


@contextmanager
def acting_before_labels(model: nn.Module, width: int) -> Iterator[None]:
    """In every pass with labels, act from `width` tokens before each row's first label to its end; in others, nowhere.

    The mask stays until the next pass, for the blocks that are computed again on the way back.

    Args:
        model: The model in training; nothing is done for one without such an adapter.
        width: Tokens of the condition, and whatever stands between it and the answer.
    """
    activation = activation_of(model)
    if activation is None:
        yield
        return

    def place(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        labels, activation.mask = kwargs.get("labels"), None
        if labels is not None:
            first = (labels != -100).int().argmax(1) - width
            activation.mask = torch.arange(labels.shape[1], device=labels.device) >= first[:, None]

    handle = model.register_forward_pre_hook(place, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        activation.mask = None
