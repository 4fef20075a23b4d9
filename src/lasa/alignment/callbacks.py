"""What happens in a training besides the training: the progress bar, complete checkpoints, the floor of helpfulness."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lasa.models.activated import Activation
from lasa.models.soft_condition import SOFT_CONDITION, SoftCondition
from lasa.progress import Advance, say

COMPLETE = "complete"
"""File that marks a checkpoint which was written to its end."""


@dataclass(frozen=True)
class HelpfulnessFloor:
    """Watches helpfulness while a model is trained.

    Attributes:
        measure: Share of benign development prompts that a model answers.
        floor: The least share.
        every: Steps between measurements.
        stop: End the training where the floor is crossed; else warn and go on.
    """

    measure: Callable[[Any], float]
    floor: float
    every: int
    stop: bool


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end."""
    complete = [mark.parent for mark in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


class AdvanceProgress(TrainerCallback):  # type: ignore[misc]
    """Moves a progress bar on by one with each step."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Tell the bar."""
        self.advance(1)


class CompleteCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Adds to each checkpoint what an adapter's lacks, and the mark that it is complete."""

    def __init__(self, soft: SoftCondition | None, activation: Activation | None) -> None:
        self.soft, self.activation = soft, activation

    def on_save(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        """Write what is missing, then the mark."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if self.soft is not None:
                self.soft.save(folder / SOFT_CONDITION)
            if self.activation is not None:
                self.activation.complete(folder)
            (folder / COMPLETE).touch()


class WatchHelpfulness(TrainerCallback):  # type: ignore[misc]
    """Measures helpfulness every so many steps, and warns or ends the training below the floor.

    Attributes:
        measured: Step and share of every measurement.
    """

    def __init__(self, name: str, floor: HelpfulnessFloor | None) -> None:
        self.name, self.floor = name, floor
        self.measured: list[tuple[int, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure, if it is time to."""
        if self.floor is None or state.global_step % self.floor.every:
            return
        model.eval()
        share = self.floor.measure(model)
        model.train()
        self.measured.append((state.global_step, share))
        if share < self.floor.floor:
            control.should_training_stop |= self.floor.stop  # another callback may have said so already
            say(
                f"Warning: {self.name} helps in {share:.1%} of the benign development prompts after "
                f"{state.global_step} steps, below the floor of {self.floor.floor:.0%}; "
                f"training {'stops' if self.floor.stop else 'goes on'}."
            )
