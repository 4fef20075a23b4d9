"""A training that `accelerate launch` spreads over several processes: what is asked for, and what is really in use."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lasa.alignment.consistency import Consistency
from lasa.errors import RecipeError
from lasa.models.soft_condition import SoftCondition

ROWS = "rows"
"""Folder, among the trainer's checkpoints, of the rows that several processes share."""


class Strategy(NamedTuple):
    """A way to spread a model over processes.

    Attributes:
        variable: The variable with which `accelerate launch` asks for it.
        name: For people.
        wrappers: The classes that a model is then trained in.
    """

    variable: str
    name: str
    wrappers: frozenset[str]


STRATEGIES = (
    Strategy("ACCELERATE_USE_FSDP", "FSDP", frozenset({"FSDPModule", "FullyShardedDataParallel"})),
    Strategy("ACCELERATE_USE_DEEPSPEED", "DeepSpeed", frozenset({"DeepSpeedEngine"})),
)


def check_wrapper(trainer: Any) -> str:
    """The class that a model was really trained in.

    Raises:
        RecipeError: The accelerate configuration asks for FSDP or DeepSpeed, and something else was used in silence
            (accelerate runs an FSDP configuration with `use_cpu: true` as plain DDP).
    """
    wrapper = type(trainer.model_wrapped)
    classes = {one.__name__ for one in wrapper.__mro__}
    for strategy in STRATEGIES:
        if _asked_for(strategy) and not classes & strategy.wrappers:
            name = strategy.name
            raise RecipeError(
                f"The accelerate configuration asks for {name}, but the model was trained in {wrapper.__name__}. "
                f"{name} needs GPUs: remove `use_cpu`, or use a configuration without {name}."
            )
    return wrapper.__name__


def check_unsharded(soft: SoftCondition | None, consistency: Consistency | None) -> None:
    """Refuse what reaches into the model past its wrapper: a sharded one holds parts of its weights there.

    Raises:
        RecipeError: One of the two is to be trained with FSDP or DeepSpeed.
    """
    what = "the signal 'soft'" if soft else "the consistency term" if consistency else None
    for strategy in STRATEGIES:
        if what and _asked_for(strategy):
            raise RecipeError(
                f"The accelerate configuration asks for {strategy.name}, with which {what} cannot be trained. "
                f"Use a configuration without {strategy.name}, and lora_rank or four_bit for a large model."
            )


def launch_device() -> str:
    """Where a process of `accelerate launch` loads its model; `auto` outside of one.

    A model that is to be sharded is loaded into main memory.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return "auto"
    if any(map(_asked_for, STRATEGIES)) or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def shared_rows(rows: list[dict[str, Any]], config: Any) -> Any:
    """A data set where every process finds it: TRL caches log-probabilities beside it, written by the first one."""
    from datasets import Dataset, load_from_disk  # missing, it would hide that TRL is

    data = Dataset.from_list(rows)
    if config.world_size == 1:
        return data
    folder = Path(config.output_dir) / ROWS
    if config.process_index == 0:
        data.save_to_disk(folder)
    config.distributed_state.wait_for_everyone()
    return load_from_disk(folder)


def _asked_for(strategy: Strategy) -> bool:
    return os.environ.get(strategy.variable, "").lower() in ("1", "true")
