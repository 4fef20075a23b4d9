"""What a stage of a run costs: time, processor time, and the most memory it held, on the host and on GPUs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GIB = 2**30
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """The cost of what is done inside.

    Yields:
        A dictionary that is filled at the end: `seconds`, `cpu_seconds` (of all threads of this process),
        `peak_gib` (its largest resident size, where Linux tells it) and `gpu_peak_gib` (the most that tensors held, all
        visible GPUs together, where there are some).
    """
    import torch

    found: dict[str, float] = {}
    gpus = range(torch.cuda.device_count())
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    resettable = _reset_peak()
    started, processor = time.monotonic(), time.process_time()
    yield found
    found["seconds"] = round(time.monotonic() - started, 2)
    found["cpu_seconds"] = round(time.process_time() - processor, 2)
    if resettable:
        found["peak_gib"] = round(_peak() / GIB, 2)
    if gpus:
        found["gpu_peak_gib"] = round(sum(map(torch.cuda.max_memory_allocated, gpus)) / GIB, 2)


def added(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """The cost of two pieces of work, one after the other: times are added, of the peaks the higher one counts."""
    both = {name: max(one.get(name, 0.0), value) for name, value in (one | other).items()}
    return {**both, **{name: round(one.get(name, 0.0) + other.get(name, 0.0), 2) for name in both if "seconds" in name}}


def _reset_peak() -> bool:
    """Whether Linux has set the largest resident size of this process back to the present one (`man 5 proc`)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return _STATUS.is_file()


def _peak() -> int:
    """Largest resident size since then, in bytes."""
    return next(int(line.split()[1]) * 1024 for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
