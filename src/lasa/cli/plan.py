"""`lasa plan`: what a model needs on a machine, before anything is downloaded or rented."""

from pathlib import Path

import typer


def plan(
    model: Path = typer.Option(..., help="config.json of a model, or its folder."),
    gpus: int = typer.Option(1, min=1, max=1024, help="GPUs of the machine."),
    memory: float = typer.Option(80.0, min=1.0, help="GiB of each GPU."),
    teraflops: float = typer.Option(989.0, min=1.0, help="Dense bfloat16 peak of each GPU; the default is an H100's."),
    bandwidth: float = typer.Option(3350.0, min=1.0, help="Memory bandwidth of each GPU in GB/s."),
    prompts: int = typer.Option(20_000, min=1, help="Prompts to read, for layer search and interpreter."),
    rows: int = typer.Option(22_000, min=1, help="Rows of preferences."),
    epochs: float = typer.Option(3.0, min=0.01, help="Passes over them."),
    row_tokens: int = typer.Option(512, min=1, help="Longest row in tokens."),
    batch: int = typer.Option(4, min=1, help="Rows per GPU and forward pass."),
    lora_rank: int = typer.Option(16, min=1, help="Rank of adapters."),
    answers: int = typer.Option(3150, min=1, help="Answers to generate in the evaluation."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Estimate memory and time of each stage, and say which settings fit."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from lasa.artifacts import read_json
    from lasa.planning import Machine, Shape, Work
    from lasa.planning import plan as plan_stages

    shape = Shape.from_config(read_json(model / "config.json" if model.is_dir() else model))
    machine = Machine(gpus, memory, teraflops, bandwidth=bandwidth)
    work = Work(
        prompts=prompts,
        rows=rows,
        epochs=epochs,
        row_tokens=row_tokens,
        batch=batch,
        answers=answers,
        lora_rank=lora_rank,
    )
    stages = plan_stages(shape, machine, work)
    if as_json:
        print(json.dumps({"parameters": shape.parameters, "stages": [asdict(stage) for stage in stages]}))
        return
    table = Table(
        "Stage", "GiB per GPU", "Hours", "Fits", title=f"{shape.parameters:,} parameters on {gpus} x {memory:g} GiB"
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
    console.print("Estimates from shapes; lasa.planning documents the arithmetic.", highlight=False)
