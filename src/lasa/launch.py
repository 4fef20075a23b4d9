"""The processes that `accelerate launch` (or torchrun) started: whether there are several, and how they part."""

import os
import sys

import torch


def started() -> int:
    """How many processes were started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched() -> bool:
    """Whether several processes were started."""
    return started() > 1


def is_first() -> bool:
    """Whether this is the process of a launch that writes."""
    return os.environ.get("RANK", "0") == "0"


def leave_launch() -> None:
    """Part from the other processes of a launch, when there is nothing more to share; all but the first one end here.

    A thread of a backend that has just shared something still holds tensors. Where the interpreter is torn down
    meanwhile, the process aborts ("terminate called without an active exception", PyTorch pull request 179291), and
    the launcher ends the first process while it still writes. Destroying the group does not join these threads where
    anything else refers to it, as FSDP's meshes do; so the others do not tear their interpreter down.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if not is_first():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
