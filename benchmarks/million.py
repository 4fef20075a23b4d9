"""A million short prompts through the reader and an interpreter: `python benchmarks/million.py [PROMPTS]`.

The prompts stay in a file, the hidden states go to shards, the scores to one file; what a process holds does not grow
with their number. The large run is killed when half of the prompts are read, and called again. The model is tiny and
random: what is measured is everything around it (rendering, batching, storing, hashing, scoring), in rows per second
and bytes; docs/scale.md says what that means for a real model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from harness import Scale, peak_memory

HERE = Path(__file__).parent
SIZE = Scale(layers=4, width=64)
LAYER = 2
SHORT = (10, 16)
"""Tokens of a prompt, chat template included: shortest and longest."""

SMALL_SHARE = 100
"""The run that memory is compared with has so many times fewer prompts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--score", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=HERE.parent / "bench-results" / "million.json")
    arguments = parser.parse_args()
    if arguments.score:
        score(arguments.score)
        return
    from lasa.files.artifacts import provenance, write_json

    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.prompts)
    for name, value in found.items():
        print(f"{name:>28}  {value:,}")
    write_json(arguments.output, {**found, "provenance": provenance()})
    print(f"Written: {arguments.output}")


def measure(folder: Path, count: int) -> dict[str, float]:
    """Write the prompts, score a small and the whole table, the latter in two processes, and compare."""
    write_table(folder / "small", max(count // SMALL_SHARE, 1000))
    write_table(folder / "large", count)
    small = finished(start(folder / "small"))
    first = start(folder / "large")
    began = time.monotonic()
    while first.poll() is None and rows_read(folder / "large") < count // 2:
        time.sleep(0.2)
    first.kill()
    first.wait()
    before = time.monotonic() - began
    kept = rows_read(folder / "large")
    large = finished(start(folder / "large"))
    seconds = before + large["seconds"]
    states = sum(path.stat().st_size for path in (folder / "large" / "states").iterdir())
    return {
        "prompts": count,
        "seconds": round(seconds),
        "prompts per second": round(count / seconds),
        "prompts per CPU second": round(large["read"] / large["cpu"]),
        "read before the kill": kept,
        "read after the kill": large["read"],
        "scored": large["scored"],
        "bytes of states per prompt": round(states / count, 1),
        "peak MiB": round(large["peak"] / 2**20),
        "peak MiB, small run": round(small["peak"] / 2**20),
        "peak ratio": round(large["peak"] / small["peak"], 3),
    }


def write_table(folder: Path, count: int) -> None:
    """Prompts of random words in `prompts.jsonl`, written in parts, so that none is held in memory for long."""
    from random_model import make_prompts

    folder.mkdir()
    part = 10_000
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for start in range(0, count, part):
            for prompt in make_prompts(min(part, count - start), *SHORT, seed=start):
                file.write(json.dumps({**prompt.to_json(), "query_id": f"{start}/{prompt.query_id}"}) + "\n")


def start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, __file__, "--score", str(folder)], stdout=subprocess.PIPE, text=True)


def finished(process: "subprocess.Popen[str]") -> dict[str, float]:
    """What a scoring process reports."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)
    return dict(json.loads(output))


def rows_read(folder: Path) -> int:
    manifest = folder / "states" / "manifest.json"
    return sum(shard["rows"] for shard in json.loads(manifest.read_text())["shards"]) if manifest.exists() else 0


def score(folder: Path) -> None:
    """Read every prompt of a folder at one layer, score it, and report time, memory and what had to be read."""
    from random_model import make_model, make_tokenizer

    from lasa.data.prompt_file import PromptFile
    from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
    from lasa.models.hidden_states import read_to_folder
    from lasa.models.positions import ReadPoint
    from lasa.models.rendering import template_fingerprint

    began, kept = time.monotonic(), rows_read(folder)
    model, tokenizer, prompts = make_model(SIZE), make_tokenizer(), PromptFile(folder / "prompts.jsonl")
    point = ReadPoint(LAYER, "last", template_fingerprint(tokenizer))
    interpreter = SafetySemanticInterpreter(InterpreterConfig(point, SIZE.width, 16)).eval()
    computed = time.process_time()
    states = read_to_folder(model, tokenizer, prompts, [LAYER], folder / "states")
    scored = 0
    with (folder / "scores.jsonl").open("w", encoding="utf-8") as file:
        for shard in states.shards():
            for probability in interpreter.probability(shard[:, 0]).tolist():
                file.write(f"{probability:.6f}\n")
                scored += 1
    report = {
        "seconds": time.monotonic() - began,
        "cpu": time.process_time() - computed,
        "read": len(prompts) - kept,
        "scored": scored,
        "peak": peak_memory(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
