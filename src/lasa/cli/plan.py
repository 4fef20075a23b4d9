"""`lasa plan`: what a model needs on a machine, before anything is downloaded or rented."""

from pathlib import Path

import typer

from lasa.cli.options import with_settings
from lasa.run.settings import Machine, Work


@with_settings(Machine, "machine")
@with_settings(Work, "work")
def plan(
    machine: Machine,
    work: Work,
    model: Path = typer.Option(..., help="config.json of a model, or its folder."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Estimate memory and time of each stage, and say which settings fit."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from lasa.files.artifacts import read_json
    from lasa.run.planning import plan as plan_stages
    from lasa.run.shape import Shape

    shape = Shape.from_config(read_json(model / "config.json" if model.is_dir() else model))
    stages = plan_stages(shape, machine, work)
    if as_json:
        print(json.dumps({"parameters": shape.parameters, "stages": [asdict(stage) for stage in stages]}))
        return
    table = Table(
        "Stage",
        "GiB per GPU",
        "Hours",
        "Fits",
        title=f"{shape.parameters:,} parameters on {machine.gpus} x {machine.memory:g} GiB",
    )
    for stage in stages:
        table.add_row(stage.name, f"{stage.memory:.1f}", f"{stage.hours:.2f}", "yes" if stage.fits else "no")
    console = Console()
    console.print(table)
    able = [stage for stage in stages if stage.fits and stage.name.startswith("3")]
    best = min(able, key=lambda stage: stage.hours, default=None)
    console.print(
        f"Fastest alignment that fits: {best.name[3:]}."
        if best
        else "No way to align fits; use more GPUs or a smaller batch.",
        highlight=False,
    )
    console.print("Estimates from shapes; lasa.run.planning documents the arithmetic.", highlight=False)
