"""The decoder blocks of any Hugging Face causal LM, and THE layer index convention.

A layer index is an integer in `0..L`, the position in `output_hidden_states`: 0 is what enters the first decoder
block (the embeddings), k is the output of decoder block k. The last layer, L, is read before the final norm
(transformers returns it after). No other module adds or subtracts one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lasa.errors import ModelError


class _DeepestLayerReached(Exception):  # noqa: N818 - it ends a forward pass; it is no error
    """Raised inside a forward pass once everything that was asked for has been seen."""


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The stack of decoder blocks, found by its length in the model's own configuration.

    Args:
        model: Any Hugging Face causal LM, also wrapped by PEFT.

    Raises:
        ModelError: No module list, or more than one, has as many entries as the configuration has hidden layers.
    """
    depth = num_layers(model)
    get_decoder: Any = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else model
    root = decoder if isinstance(decoder, nn.Module) else model
    found = [
        (name, module)
        for name, module in root.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and "." not in name
    ] or [(n, m) for n, m in root.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    outermost = [m for n, m in found if not any(n.startswith(other + ".") for other, _ in found if other != n)]
    if len(outermost) != 1:
        raise ModelError(
            f"{type(model).__name__}: found {len(outermost)} stacks of {depth} decoder blocks, expected exactly one. "
            "Only decoder-only language models are supported."
        )
    return outermost[0]


def blocks_between(model: nn.Module, first: int, last: int) -> list[nn.Module]:
    """The decoder blocks that turn layer `first` into layer `last`."""
    check_layer(model, first)
    return list(decoder_blocks(model))[first : check_layer(model, last)]


def num_parameters(model: Any) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())


def context_length(model: nn.Module) -> int | None:
    """The longest row the model can hold, in tokens, or None if it does not say."""
    return getattr(_text_config(model), "max_position_embeddings", None)


def num_layers(model: nn.Module) -> int:
    """L, the number of decoder blocks and the largest layer index."""
    depth = getattr(_text_config(model), "num_hidden_layers", None)
    if not isinstance(depth, int) or depth < 1:
        raise ModelError(f"{type(model).__name__}: the configuration does not say how many decoder blocks there are.")
    return depth


def hidden_size(model: nn.Module) -> int:
    """H, the width of a hidden state."""
    return int(_text_config(model).hidden_size)


def check_layer(model: nn.Module, layer: int) -> int:
    """The layer index itself, once it is known to exist.

    Raises:
        ModelError: The index is outside 0..L.
    """
    depth = num_layers(model)
    if not 0 <= layer <= depth:
        raise ModelError(f"Layer {layer} does not exist: this model has layers 0 (embeddings) to {depth}.")
    return layer


@contextmanager
def observe_layers(model: nn.Module, layers: Sequence[int], observer: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call `observer(layer, hidden_states)` with `[batch, time, H]` whenever a layer is computed.

    The hooks are removed whatever happens in the body.
    """
    blocks = decoder_blocks(model) if layers else nn.ModuleList()  # a search through all modules
    handles = []

    def watch_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        observer(0, args[0] if args else kwargs["hidden_states"])

    def watch_output(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            observer(layer, output[0] if isinstance(output, tuple) else output)

        return hook

    try:
        for layer in sorted(set(layers)):
            check_layer(model, layer)
            if layer == 0:
                handles.append(blocks[0].register_forward_pre_hook(watch_input, with_kwargs=True))
            else:
                handles.append(blocks[layer - 1].register_forward_hook(watch_output(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def forward_to_layers(
    model: nn.Module, layers: Sequence[int], observer: Callable[[int, Tensor], None], **inputs: Any
) -> None:
    """One forward pass that ends as soon as the deepest of `layers` has been observed: no head, no KV cache by default.

    Gradients flow unless the caller forbids them.

    Args:
        model: Any Hugging Face causal LM.
        layers: Layer indices to observe.
        observer: Called with each layer index and its `[batch, time, H]` hidden states, shallow to deep.
        inputs: Arguments of the model's forward pass (`input_ids`, `attention_mask`, ...).
    """
    deepest = max(layers)

    def observe(layer: int, states: Tensor) -> None:
        observer(layer, states)
        if layer == deepest:
            raise _DeepestLayerReached

    with observe_layers(model, layers, observe):
        try:
            model(**{"use_cache": False, **inputs})
        except _DeepestLayerReached:
            return
    raise ModelError(
        f"{type(model).__name__}: layer {deepest} was never computed in a forward pass; "
        "this model does not run its decoder blocks as modules, so it cannot be read."
    )


def has_recurrent_state(model: nn.Module) -> bool:
    """Whether layers keep more of the past than keys and values, such as a state that folds all tokens into one.

    Tokens cannot be hidden from such a state afterwards, nor can it be padded or cut by columns.
    """
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return any(type(layer) not in plain for layer in DynamicCache(config=_text_config(model)).layers)


def input_device(model: nn.Module) -> torch.device:
    """The device on which the model expects its token ids (also under `device_map`, and for weights on disk)."""
    module: Any = getattr(model, "get_input_embeddings", lambda: None)() or model
    device: torch.device = next(module.parameters()).device
    if device.type == "meta":  # accelerate loads the weights for each call
        device = torch.device(module._hf_hook.execution_device)
    return device


def _text_config(model: nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config
