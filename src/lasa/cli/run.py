"""`lasa run`: the main job, from a recipe to a report."""

from pathlib import Path

import typer


def run(
    recipe: Path = typer.Argument(help="Recipe, a YAML file (see recipes/)."),
    output: Path = typer.Option(..., "--output", "-o", help="Run folder; a stopped run goes on where it stopped."),
    processes: int = typer.Option(
        0,
        min=0,
        help="Processes that work on systems side by side; 0: one a core for a small model on a CPU, else one.",
    ),
) -> None:
    """Find the bottleneck, train the interpreter, align, evaluate and report."""
    from lasa.run.recipe import read_recipe

    settings = read_recipe(recipe)
    from lasa.progress import show_progress
    from lasa.quiet import quiet_libraries

    show_progress()
    quiet_libraries()
    from rich.console import Console

    from lasa.files.artifacts import read_json
    from lasa.pipeline import run_recipe
    from lasa.report.terminal import systems_tables

    path = run_recipe(settings, output, processes)
    console = Console()
    for table in systems_tables(read_json(output / "metrics.json")):
        console.print(table)
    console.print(f"Report: {path}", soft_wrap=True)
