"""What a training computes with, where the default is wrong or slow."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from trl.trainer import utils

ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels of attention, without cuDNN's: on Hopper GPUs, from torch 2.11, its gradients are NaN for batches with a mask
that are 64 tokens longer than a multiple of 128, where a head scores all keys below -88 (PyTorch issue 196678).
"""


@contextmanager
def training_kernels() -> Iterator[None]:
    """Attention whose gradients are finite, and a head that scores answers alone.

    On devices without Triton, as CPUs, TRL scores every position of a batch, prompts and padding too, and masks them
    afterwards: two thirds of a step, where answers are a quarter of the tokens and the vocabulary is large.
    """
    module: Any = utils
    known = module._use_triton
    module._use_triton = lambda device: True  # read for this choice alone; the kernels ask for themselves
    try:
        with sdpa_kernel(ATTENTION):
            yield
    finally:
        module._use_triton = known
