"""`lasa coverage`: in which languages an interpreter can be expected to hold, from harmless parallel text."""

from pathlib import Path

import typer

from lasa.cli.options import with_model
from lasa.models.settings import ModelSettings


@with_model
def coverage(
    model: ModelSettings,
    interpreter: Path = typer.Option(..., help="Interpreter folder."),
    parallel: list[str] = typer.Option(
        ..., help="Harmless sentences that are translations of each other, a hundred or more; repeatable."
    ),
    labelled: list[str] = typer.Option([], help="Labelled prompts, to measure beside what is predicted; repeatable."),
    output: Path = typer.Option(..., "--output", "-o", help="File for the certificate, such as coverage.json."),
    seal: Path | None = typer.Option(None, help="Save the interpreter with its grades to this folder."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Grade every language: covered, partly, not covered. No safety label is needed."""
    import json
    from dataclasses import replace

    from rich.console import Console

    from lasa.data.sources import load_joined
    from lasa.files.artifacts import write_json
    from lasa.interpreter.coverage import measure_coverage
    from lasa.interpreter.fit import read_for
    from lasa.interpreter.probe import load_interpreter
    from lasa.interpreter.training import LabelledStates
    from lasa.models.loading import load_model
    from lasa.progress import show_progress
    from lasa.quiet import quiet_libraries
    from lasa.report.terminal import coverage_table

    show_progress()
    quiet_libraries()
    probe = load_interpreter(interpreter)
    network, tokenizer = load_model(model.rendering_like(probe.config.chat_template))
    probe.check_fits(network, tokenizer)

    def read(sources: list[str]) -> LabelledStates:
        return read_for(probe, network, tokenizer, load_joined(sources))

    found = measure_coverage(probe, read(parallel), read(labelled) if labelled else None)
    write_json(output, found.to_json())
    if seal is not None:
        probe.config = replace(probe.config, coverage={code: one.grade for code, one in found.languages.items()})
        probe.save_pretrained(seal)
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.print(coverage_table(found))
    if found.rank_correlation:
        told = ", ".join(f"{signal} {value:.2f}" for signal, value in found.rank_correlation.items())
        console.print(f"Rank correlation with the measured AUROC over the unseen languages: {told}.")
    console.print(f"Written: {output}" + (f", {seal}" if seal else ""), soft_wrap=True)
