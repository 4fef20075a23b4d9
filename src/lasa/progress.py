"""Progress with a rate and time left. Silent in a library; the command line switches it on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_console: "Console | None" = None
_drawing = Lock()
"""Held while a bar is there."""

Advance = Callable[[int], None]
"""Called with the number of units just done."""


def show_progress() -> None:
    """Show progress on standard error from now on."""
    global _console
    from rich.console import Console

    _console = Console(stderr=True)


def progress_is_shown() -> bool:
    """Whether it was switched on."""
    return _console is not None


def say(message: "str | Table") -> None:
    """Tell the person something that happened, or show a table (nothing is printed in a library)."""
    if _console is not None:
        _console.print(message, highlight=False)


@cache
def say_once(message: str) -> None:
    """Tell the person something that several stages would say again."""
    say(message)


@contextmanager
def progress(description: str, total: int, unit: str = "") -> Iterator[Advance]:
    """A bar for a piece of work; on a terminal it is drawn, in a log one line says what was done and how long it took.

    Work that is part of another with a bar, such as what a judge reads of the answers to a batch, has none of its own;
    nor has work in another thread meanwhile.

    Args:
        description: What is being done.
        total: Units of work in all.
        unit: Name of the unit, plural.
    """
    if _console is None or not _drawing.acquire(blocking=False):
        yield lambda done: None
        return
    try:
        with _bar(_console, description, total, unit) as advance:
            yield advance
    finally:
        _drawing.release()


@contextmanager
def _bar(console: "Console", description: str, total: int, unit: str) -> Iterator[Advance]:
    from rich import progress as rich_progress

    started = time.monotonic()
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=30),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn(unit),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
    )
    done = 0
    with rich_progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(description, total=total, rate="")

        def advance(units: int) -> None:
            nonlocal done
            done += units
            rate = done / max(time.monotonic() - started, 1e-9)
            bars.update(task, completed=min(done, total), rate=f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s")

        yield advance
    seconds = time.monotonic() - started
    console.print(f"{description}: {total:,} {unit} in {seconds:.1f} s", highlight=False)
