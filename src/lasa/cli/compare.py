"""`lasa compare`: two runs or two systems, paired."""

from pathlib import Path

import typer


def compare(
    a: Path = typer.Argument(help="A run folder, or one system's samples.jsonl."),
    b: Path = typer.Argument(help="Another."),
    output: Path | None = typer.Option(None, "--output", "-o", help="Write PATH.json, PATH.md and PATH.csv."),
    seen: list[str] = typer.Option([], help="A safety-tuned language; repeatable."),
) -> None:
    """Compare two runs or systems on the prompts that both answered."""
    from rich.console import Console

    from lasa.evaluation import compare as comparison

    rows = comparison.compare(a, b, seen_languages=seen)
    Console().print(comparison.to_table(rows))
    if output:
        comparison.write_comparison(output, rows)
