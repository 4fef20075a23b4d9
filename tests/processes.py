"""`lasa run` in processes of its own, forked from one that has imported everything, so that each starts at once."""

import multiprocessing
import sys
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lasa.pipeline", "lasa.report.terminal"])


def start_run(recipe: Path, output: Path) -> BaseProcess:
    """Start the command; what it prints is in `<output>.log`."""
    process = CONTEXT.Process(target=_run, args=(recipe, output), daemon=True)
    process.start()
    return process


def _run(recipe: Path, output: Path) -> None:
    from lasa.cli import main

    sys.argv = ["lasa", "run", str(recipe), "--output", str(output)]
    with output.with_suffix(".log").open("a", encoding="utf-8") as log:
        sys.stdout = sys.stderr = log
        try:
            main()
        except Exception:
            traceback.print_exc()
            sys.exit(1)
