"""How ratios are measured: interleaved repeats in one process, so that a slow moment of the machine hits both sides."""

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Scale:
    """How much is measured and where: the sizes that the targets are stated for, or a quick try-out."""

    repeats: int = 5
    prompts: int = 256
    layers: int = 12
    width: int = 512
    silhouette_queries: int = 315
    few_prompts: int = 1000
    many_prompts: int = 20_000
    generation_prompt: int = 512
    training_steps: int = 8
    device: str = "cpu"


SMOKE = Scale(1, prompts=8, layers=4, width=64, silhouette_queries=10, few_prompts=20, many_prompts=40,
              generation_prompt=32, training_steps=1)  # fmt: skip
GPU = Scale(width=4096, layers=16, training_steps=16, device="cuda")
"""Half the blocks of an 8B model, in bfloat16."""


@dataclass(frozen=True)
class Ratio:
    """One measured ratio beside its target.

    Attributes:
        name: What is compared with what.
        value: The ratio.
        target: Its bound.
        at_least: Whether the bound is a lower one.
        detail: The measured times or sizes behind it.
    """

    name: str
    value: float
    target: float
    at_least: bool = False
    detail: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target


def interleaved(tasks: Mapping[str, Callable[[], object]], repeats: int, *, warm_up: bool = True) -> dict[str, float]:
    """Median seconds of each task; the tasks take turns, after one unmeasured round where they are to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(warm_up):
        for task in tasks.values():
            task()
    for _ in range(repeats):
        for name, task in tasks.items():
            _wait()
            started = time.perf_counter()
            task()
            _wait()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait() -> None:
    """Until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, object]:
    """The processor, its cores, how busy they were in the last minute (a busy machine tells little), and the GPU."""
    listed = Path("/proc/cpuinfo")
    names = [line for line in listed.read_text().splitlines() if "model name" in line] if listed.is_file() else []
    processor = names[0].partition(":")[2].strip() if names else platform.processor()
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"processor": processor, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), **gpu}


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes.

    On Linux a child inherits `ru_maxrss` from the process that started it, but not `VmHWM`.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
