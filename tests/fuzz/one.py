"""One target in one process: `one.py TARGET SEEDS ROWS [LIBFUZZER FLAGS]`; prints how many files of rows it made."""

import hashlib
import sys
from pathlib import Path

import atheris
from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with atheris.instrument_imports(include=["lasa", "yaml"]):
    from fuzz.files import any_file
    from fuzz.targets import read_or_refuse

    read_or_refuse(sys.argv[1], b"")  # the reader's own imports


def fuzz_rows(name: str, seeds: Path, count: int) -> None:
    """Files that Hypothesis makes; the first of them are kept as seeds for the mutations."""
    made = 0

    @seed(1)
    @settings(
        max_examples=count,
        deadline=10_000,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(any_file(name))
    def check(content: bytes) -> None:
        nonlocal made
        made += 1
        if made <= 200:
            (seeds / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
        read_or_refuse(name, content)

    try:
        check()
    finally:
        print(f"rows {made}", flush=True)


if __name__ == "__main__":
    target, folder, rows, *flags = sys.argv[1:]
    fuzz_rows(target, Path(folder), int(rows))
    atheris.Setup([sys.argv[0], *flags, folder], lambda content: read_or_refuse(target, content))
    atheris.Fuzz()
