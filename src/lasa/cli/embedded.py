"""`lasa embedded`: rebuild the embedded model, or write its tables to files."""

from pathlib import Path

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def embedded() -> None:
    """The embedded model: a tiny multilingual chat model with a planted bottleneck."""


@app.command("train")
def train(
    output: Path = typer.Option(..., "--output", "-o", help="Folder for the Hugging Face model."),
    plant: int = typer.Option(6, min=1, help="Layer whose geometry is made to follow meaning."),
    no_plant: bool = typer.Option(False, "--no-plant", help="Train the sister without a bottleneck."),
    steps: int = typer.Option(0, min=0, help="Optimiser steps; 0 for the default."),
    seed: int = typer.Option(0, help="Of corpus, weights and order."),
) -> None:
    """Train the embedded model from nothing (minutes on two cores). Stopped? The same command goes on."""
    from lasa.embedded.training import TrainingSettings, train_embedded
    from lasa.progress import progress, show_progress
    from lasa.quiet import quiet_libraries

    show_progress()
    quiet_libraries()
    default = TrainingSettings()
    settings = TrainingSettings(plant=None if no_plant else plant, steps=steps or default.steps, seed=seed)
    done = 0
    with progress("Training the embedded model", settings.steps, "steps") as advance:

        def tell(now: int, losses: dict[str, float]) -> None:
            nonlocal done
            advance(now - done)
            done = now

        train_embedded(settings, output, tell)
    typer.echo(f"Written: {output}")


@app.command("export")
def export(output: Path = typer.Option(..., "--output", "-o", help="Folder for the JSONL tables.")) -> None:
    """Write the prompt tables of the embedded world to files, to see what a run uses."""
    from lasa.data.prompt_tables import write_prompts
    from lasa.data.world.tables import PROMPT_TABLES

    output.mkdir(parents=True, exist_ok=True)
    for name, table in PROMPT_TABLES.items():
        write_prompts(output / f"{name}.jsonl", table())
        typer.echo(f"Written: {output / f'{name}.jsonl'}")
