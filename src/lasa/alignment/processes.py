"""A training that `accelerate launch` spreads over several processes: what is asked for, and what is really in use."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from lasa.alignment.consistency import Consistency
from lasa.errors import RecipeError
from lasa.launch import is_first, launched
from lasa.models.loading import FIRST_ALONE
from lasa.models.memory import release_memory
from lasa.models.soft_condition import SoftCondition
from lasa.progress import say

Row = TypeVar("Row")
Result = TypeVar("Result")

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


def sharding() -> bool:
    """Whether the accelerate configuration asks for a model that is spread over the processes."""
    return any(map(_asked_for, STRATEGIES))


def training_device(asked: str) -> str:
    """Where this process trains: the first visible GPU, or its own one among the processes of a launch.

    Args:
        asked: The device of the settings; only where there is no GPU, or `cpu` is asked for, it is anything else.

    Raises:
        RecipeError: A GPU is asked for by its number, on which the trainers would not stay.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus or asked == "cpu":
        return asked
    if asked not in ("auto", "cuda", "cuda:0"):
        raise RecipeError(
            f"Training cannot stay on the device {asked!r}: the trainers use the first GPU that they see. To choose "
            f"one, make it the only visible one (CUDA_VISIBLE_DEVICES={asked.rpartition(':')[2]}) and leave the device "
            "at `auto`."
        )
    if launched():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if gpus > 1:
        say(
            f"Training on cuda:0, one of {gpus} visible GPUs. To train on all of them: accelerate launch "
            f"--num_processes {gpus} -m lasa align (recipes/accelerate has configurations)."
        )
    return "cuda:0"


def shared(rows: Sequence[Row], work: Callable[[Sequence[Row]], Sequence[Result]]) -> list[Result]:
    """What `work` gives for each row, in order; the processes of a launch each do their share of it.

    Args:
        rows: The same in every process.
        work: One result per row, in order; what can be pickled, where there are several processes.
    """
    if not launched():
        return list(work(rows))
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState()
    mine = range(state.process_index, len(rows), state.num_processes)
    done = list(zip(mine, work([rows[row] for row in mine]), strict=True))
    given = gather_object(done)
    # Meanwhile the thread that gathered lets go of its tensors, for which it needs the interpreter's lock: PyTorch 2.7
    # holds that while it waits, at the end of the group, for the thread.
    state.wait_for_everyone()
    return [result for _, result in sorted(given, key=lambda one: one[0])]


def hand_over(model: Any, dtype: torch.dtype) -> None:
    """Make room on the devices for a model that is to be sharded.

    The first process keeps the weights in main memory. Where the configuration has it hand them out (FSDP2 with
    `fsdp_cpu_ram_efficient_loading`), the others keep tensors that were never written to, which take no memory; on
    `meta` they would have no addresses, by which accelerate finds again what the optimiser is to train. Else each
    process keeps a copy.

    Args:
        model: The whole model, read for the last time.
        dtype: In which its weights are trained.
    """
    handed_out = _is_on(FIRST_ALONE) and os.environ.get("FSDP_VERSION") == "2"
    if is_first() or not handed_out:
        model.to("cpu").to(dtype)
    else:
        model._apply(
            lambda one: torch.empty_like(one, device="cpu", dtype=dtype) if isinstance(one, nn.Parameter) else one.cpu()
        )
        model.tie_weights()
    release_memory()


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
    return _is_on(strategy.variable)


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")
