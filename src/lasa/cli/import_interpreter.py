"""`lasa import-interpreter`: take over an interpreter that was trained with the authors' public code."""

from pathlib import Path

import typer

from lasa.cli.options import with_settings
from lasa.models.settings import ModelSettings


@with_settings(ModelSettings, "model", called={"path": "model"})
def import_interpreter(
    model: ModelSettings,
    checkpoint: Path = typer.Argument(help="Folder with checkpoint.pt and config.json."),
    layer: int = typer.Option(..., min=0, help="Layer to read (0: embeddings): `layer_idx` of their config.json."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder for the interpreter."),
    position: str = typer.Option("last", help="Token position: last, last_user or mean_user."),
    prompts: str | None = typer.Option(
        None, help="Labelled prompts to fit temperature and threshold on: their probes were trained without a template."
    ),
    false_refusals: float | None = typer.Option(None, help="Target share of flagged benign prompts, with --prompts."),
) -> None:
    """Import an official LASA checkpoint; its weights are read without running any code."""
    from rich.console import Console

    from lasa.data.sources import load_prompts
    from lasa.errors import RecipeError
    from lasa.files.artifacts import model_fingerprint
    from lasa.interpreter.drift import refit
    from lasa.interpreter.official import import_official
    from lasa.interpreter.settings import CalibrationOptions
    from lasa.models.hidden_states import read_hidden_states
    from lasa.models.loading import load_model
    from lasa.models.rendering import template_fingerprint
    from lasa.quiet import quiet_libraries

    if false_refusals is not None and prompts is None:
        raise RecipeError("--false-refusals needs --prompts to fit the threshold on.")
    quiet_libraries()
    console = Console(soft_wrap=True, highlight=False)
    network, tokenizer = load_model(model)
    interpreter = import_official(
        checkpoint,
        layer=layer,
        position=position,  # type: ignore[arg-type]
        template=template_fingerprint(tokenizer),
        base_model=model.path,
        base_fingerprint=model_fingerprint(network),
    )
    interpreter.check_fits(network, tokenizer)
    if prompts is None:
        console.print("Warning: its threshold was chosen on bare prompts. Fit it again with --prompts.", style="yellow")
    else:
        table = load_prompts(prompts)
        states = read_hidden_states(network, tokenizer, table, [layer], interpreter.config.read_point.position)[:, 0]
        interpreter, calibrated = refit(interpreter, states, table, CalibrationOptions(false_refusals=false_refusals))
        for name, statement in calibrated.statements.items():
            console.print(f"{name}: {statement}")
    interpreter.save_pretrained(output)
    console.print(f"Layer {layer}, threshold {interpreter.config.threshold:.3f}. Written: {output}")
