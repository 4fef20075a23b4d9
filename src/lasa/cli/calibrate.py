"""`lasa calibrate`: thresholds for single languages, from harmless requests alone, without training again."""

from pathlib import Path

import typer

from lasa.cli.options import with_model
from lasa.models.settings import ModelSettings


@with_model
def calibrate(
    model: ModelSettings,
    interpreter: Path = typer.Option(..., help="Interpreter folder."),
    benign: list[str] = typer.Option(..., help="Harmless requests, twenty or more in each language; repeatable."),
    false_refusals: float = typer.Option(0.05, min=0.001, max=0.5, help="Share of them that may be flagged."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder for the interpreter with its new thresholds."),
) -> None:
    """Give languages thresholds of their own; says for each what so many requests can promise."""
    from rich.console import Console

    from lasa.data.sources import load_joined
    from lasa.interpreter.calibration import add_language_thresholds
    from lasa.interpreter.fit import read_for
    from lasa.interpreter.probe import load_interpreter
    from lasa.models.loading import load_model
    from lasa.progress import show_progress
    from lasa.quiet import quiet_libraries

    show_progress()
    quiet_libraries()
    probe = load_interpreter(interpreter)
    network, tokenizer = load_model(model.rendering_like(probe.config.chat_template))
    probe.check_fits(network, tokenizer)
    prompts = [prompt for prompt in load_joined(benign) if prompt.harmful is not True]
    found = add_language_thresholds(probe, read_for(probe, network, tokenizer, prompts), false_refusals)
    probe.config = found.config
    probe.save_pretrained(output)
    console = Console(highlight=False, soft_wrap=True)
    for name, statement in found.statements.items():
        code = name.removeprefix("language ")
        threshold = found.config.language_thresholds.get(code, found.config.threshold)
        console.print(f"{code}: threshold {threshold:.3f}. {statement}")
    console.print(f"Written: {output}")
