"""Systems of a run side by side, in a process for every core, where the model is small.

Over matrices as small as the embedded model's, a second thread waits more than it computes, and far more where another
program wants the core as well. So every process computes on one thread, on systems of its own; what they write does not
depend on how many there are.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch

from lasa import errors
from lasa.errors import LasaError
from lasa.progress import progress_is_shown, show_progress
from lasa.quiet import quiet_libraries

SMALL = 50_000_000
"""Parameters below which a model is computed on one thread, and loaded once a core."""

_START = "from lasa.pipeline import work_beside; work_beside()"


def processes_for(parameters: float, device: str) -> int:
    """As many as there are cores for a small model on a CPU, else one.

    Args:
        parameters: Of the base model.
        device: Of the settings.
    """
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    return os.cpu_count() or 1 if on_cpu and parameters < SMALL else 1


@contextmanager
def shared_out(folder: Path, work: str, names: Sequence[str], processes: int) -> Iterator[Sequence[str]]:
    """Have other processes do their share of a run's systems, and give this one's.

    Args:
        folder: The run, which this process has locked.
        work: What is to be done with each system: a name that `work_beside` knows.
        names: Of the systems.
        processes: How many share the work, this one among them.

    Raises:
        LasaError: What went wrong in another process; what was finished is kept.
    """
    shares = [names[first::processes] for first in range(min(processes, len(names)))]
    if len(shares) < 2:
        yield names
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    others = [_start(folder, work, share) for share in shares[1:]]
    try:
        yield shares[0]
        for other in others:
            told = other.stdout.read() if other.stdout else ""
            if other.wait():
                raise _error(told)
    finally:
        for other in others:
            other.kill()
            other.communicate()
        torch.set_num_threads(threads)


def told_beside() -> tuple[Path, str, list[str]]:
    """In such a process: the run, what is to be done, and with which systems. It ends when the first one does."""
    folder, work, shown, *names = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    quiet_libraries()
    if shown == "shown":
        show_progress()
    return Path(folder), work, names


@contextmanager
def handed_on() -> Iterator[None]:
    """In such a process: tell the first one of an error that a person can act on."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (LasaError, OSError) as error:
        print(json.dumps([type(error).__name__, str(error)]))
        sys.exit(2)


def _start(folder: Path, work: str, names: Sequence[str]) -> "subprocess.Popen[str]":
    shown = "shown" if progress_is_shown() else "silent"
    return subprocess.Popen(
        [sys.executable, "-c", _START, str(folder), work, shown, *names],
        stdin=subprocess.PIPE,  # closed when this process ends, however it ends
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"},  # one bar at a time: this process's
        start_new_session=True,  # Ctrl-C is for this process, which then ends the others
    )


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _error(told: str) -> LasaError:
    if not told.strip():
        return LasaError("A process that worked beside this one failed or was killed. Call the same command again.")
    kind, message = json.loads(told.strip().splitlines()[-1])
    found = getattr(errors, kind, LasaError)
    error: LasaError = found(message)
    return error
