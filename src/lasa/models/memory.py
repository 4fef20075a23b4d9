"""Memory: what is let go of, what a batch may take of it, and what is done when it runs out."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, TypeVar

import torch

from lasa.models.layers import input_device
from lasa.progress import say

Row = TypeVar("Row")
Result = TypeVar("Result")

MOST_TOKENS = 65_536
"""Tokens of a batch of answers where memory would allow more."""

CACHE_SHARE = 0.5
"""Share of the memory beside the weights that a batch's keys and values may take; growing them copies a layer's."""


def release_memory() -> None:
    """Collect what nothing refers to any more (trainers hold their models in cycles) and give it back.

    To the GPUs, and to the system: glibc keeps what a training has freed between other blocks, gigabytes of it, unless
    it is told to trim (`man 3 malloc_trim`).
    """
    gc.collect()
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


def in_halves(rows: Sequence[Row], work: Callable[[Sequence[Row]], Sequence[Result]]) -> list[Result]:
    """Work on all rows at once; where memory runs out, on one half and then on the other.

    Args:
        rows: What to work on.
        work: One result per row, in order.

    Raises:
        RuntimeError: There is no memory for a single row.
    """
    try:
        return list(work(rows))
    except RuntimeError as error:
        if len(rows) < 2 or not is_out_of_memory(error):
            raise
    release_memory()  # only here, for the error held what the attempt had allocated
    middle = ceil(len(rows) / 2)
    say(f"Out of memory with {len(rows)} rows in a batch; going on with {middle}.")
    return in_halves(rows[:middle], work) + in_halves(rows[middle:], work)


@torch.inference_mode()
def cache_bytes_per_token(model: Any) -> int:
    """Bytes that the keys and values of one token take in all layers, measured on a few tokens."""
    ids = torch.zeros(1, 8, dtype=torch.long, device=input_device(model))
    cache = model(input_ids=ids, use_cache=True).past_key_values
    held = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    total: int = sum(part.nbytes for part in held if part is not None)
    return ceil(total / ids.numel())


def token_budget(model: Any) -> int:
    """Tokens of prompts and answers that a batch of a model may hold: as its cache has room for beside its weights.

    It depends on the model and the machine alone, not on what else is in memory, so that batches stay the same.
    """
    places = {parameter.device for parameter in model.parameters()}
    weights = sum(parameter.nbytes for parameter in model.parameters())
    room = CACHE_SHARE * (sum(map(_memory, places)) - weights)
    return max(1, min(MOST_TOKENS, int(room / cache_bytes_per_token(model))))


def _memory(device: torch.device) -> int:
    """All memory of a device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
