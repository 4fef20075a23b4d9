"""Run the benchmarks and print each ratio beside its target: `python benchmarks/run.py [--smoke | --gpu] [NAME ...]`.

A benchmark is a module in this folder with a function `measure(scale: Scale) -> list[Ratio]`. What a run measured is
one line of `history.jsonl`, with the machine, its load and the versions: to be committed with the change it measures.
"""

import argparse
import importlib
import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from harness import GPU, SMOKE, Ratio, Scale, machine
from rich.console import Console
from rich.table import Table

from lasa.files.artifacts import provenance, write_json

HERE = Path(__file__).parent
HISTORY = HERE / "history.jsonl"
SIGNATURE = "\ndef measure(scale: Scale) -> list[Ratio]:"
NAMES = [path.stem for path in sorted(HERE.glob("*.py")) if SIGNATURE in path.read_text(encoding="utf-8")]

ON_GPU = ["reading", "generation", "training"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--smoke", action="store_true", help="tiny sizes: tries the benchmarks out, measures nothing")
    sizes.add_argument("--gpu", action="store_true", help=f"large sizes on a GPU; {', '.join(ON_GPU)} by default")
    parser.add_argument("--output", type=Path, default=HERE.parent / "bench-results" / "benchmarks.json")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    console = Console(highlight=False)
    here = {**machine(), "threads": torch.get_num_threads()}
    measured: dict[str, list[Ratio]] = {}
    scale = SMOKE if arguments.smoke else GPU if arguments.gpu else Scale()
    for name in arguments.names or (ON_GPU if arguments.gpu else NAMES):
        with console.status(f"benchmark {name}"):
            measured[name] = importlib.import_module(name).measure(scale)
        console.print(_table({name: measured[name]}, arguments.smoke))
        document = {
            "smoke": arguments.smoke,
            "machine": here,
            "benchmarks": {name: [{**asdict(r), "met": r.met} for r in ratios] for name, ratios in measured.items()},
            "provenance": provenance(),
        }
        write_json(arguments.output, json.loads(json.dumps(document)))  # after each: a stop costs one benchmark
    ratios = [ratio for found in measured.values() for ratio in found]
    missed = [ratio.name for ratio in ratios if not ratio.met]
    console.print(f"{len(ratios) - len(missed)} of {len(ratios)} targets met. Written: {arguments.output}")
    for name in missed:
        console.print(f"[red]not met[/] {name}")
    if not arguments.smoke:
        made = provenance()
        line = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": here,
            "versions": made["versions"],
            "git_commit": made["git_commit"],
            "ratios": {ratio.name: round(ratio.value, 4) for ratio in ratios},
        }
        with HISTORY.open("a", encoding="utf-8") as history:
            history.write(json.dumps(line) + "\n")


def _table(measured: dict[str, list[Ratio]], smoke: bool) -> Table:
    table = Table(title="Tiny sizes: the ratios mean nothing" if smoke else None, title_justify="left")
    for name in ("benchmark", "ratio", "measured", "target", "met"):
        table.add_column(name, justify="right" if name in ("measured", "target") else "left")
    for name, ratios in measured.items():
        for ratio in ratios:
            table.add_row(
                name,
                f"{ratio.name} ({ratio.detail})" if ratio.detail else ratio.name,
                f"{ratio.value:.3g}",
                f"{'>=' if ratio.at_least else '<='} {ratio.target:g}",
                "[green]met[/]" if ratio.met else "[red]not met[/]",
            )
    return table


if __name__ == "__main__":
    main()
