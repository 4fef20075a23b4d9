"""The long fuzz run: `python tests/fuzz/run.py [--rows N] [--bytes N] [TARGET ...]`, by default over 150,000 files.

Each target is fed by Hypothesis with rows that resemble its own, then by atheris (libFuzzer) with mutations of these
files, guided by the coverage of lasa and PyYAML. A crash, ten seconds for one file or more than 4 GiB of memory end a
target's run; the file is left in `build/fuzz`, and the exit status is 1.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[1] / "build" / "fuzz"


def main() -> None:
    sys.path.insert(0, str(HERE.parent))
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--rows", type=int, default=1000, help="files made of rows, for each target")
    parser.add_argument("--bytes", type=int, default=5500, help="mutated files, for each target")
    arguments = parser.parse_args()
    total, failed = 0, []
    print("| target | files of rows | mutated files | seconds | found |\n| --- | --- | --- | --- | --- |", flush=True)
    for name in arguments.targets or TARGETS:
        started = time.monotonic()
        rows, mutated, found = fuzz(name, arguments.rows, arguments.bytes)
        total += rows + mutated
        failed += [name] if found else []
        seconds = time.monotonic() - started
        print(f"| {name} | {rows:,} | {mutated:,} | {seconds:.0f} | {found or 'nothing'} |", flush=True)
    print(f"\n{total:,} files; targets with findings: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


def fuzz(name: str, rows: int, mutated: int) -> tuple[int, int, str]:
    """Fuzz one target in a process of its own: the files that it was given of either kind, and where a finding is."""
    seeds = WORK / "seeds" / name
    seeds.mkdir(parents=True, exist_ok=True)
    limits = ["-timeout=10", "-rss_limit_mb=4096", "-max_len=4096", "-seed=1", f"-artifact_prefix={WORK}/{name}-"]
    command = [sys.executable, str(HERE / "one.py"), name, str(seeds), str(rows), f"-runs={mutated}", *limits]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    output = result.stdout + result.stderr
    made, done = re.search(r"^rows ([0-9]+)", output, re.M), re.search(r"^Done ([0-9]+) runs", output, re.M)
    if result.returncode or not (made and done):
        (WORK / f"{name}.log").write_text(output)
    counts = [int(match[1]) if match else 0 for match in (made, done)]
    return counts[0], counts[1], "" if result.returncode == 0 and done else f"see build/fuzz/{name}.log"


if __name__ == "__main__":
    main()
