"""`lasa compare`: two runs or two systems, paired."""

from pathlib import Path

import typer


def compare(
    a: Path = typer.Argument(help="A run folder, or one system's samples.jsonl."),
    b: Path = typer.Argument(help="Another."),
    output: Path | None = typer.Option(None, "--output", "-o", help="Write PATH.json, PATH.md and PATH.csv."),
    split: str | None = typer.Option(None, help="Compare on this benchmark only."),
    seen: list[str] = typer.Option([], help="A safety-tuned language; repeatable."),
) -> None:
    """Compare two runs or systems on the prompts that both answered."""
    from rich.console import Console

    from lasa.evaluation import compare as comparison

    rows = comparison.compare(a, b, seen_languages=seen, split=split)
    Console().print(comparison.to_table(rows))
    if output:
        for suffix in (".json", ".md", ".csv"):
            comparison.write_comparison(output.with_name(output.name + suffix), rows)
