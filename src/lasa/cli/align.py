"""`lasa align`: stage 3 alone, from files. Under `accelerate launch` it trains on several processes."""

from pathlib import Path

import typer

from lasa.cli.options import with_settings
from lasa.models.settings import ModelSettings


@with_settings(ModelSettings, "model", called={"path": "model"}, without=("four_bit",), defaults={"path": "embedded"})
def align(
    model: ModelSettings,
    interpreter: Path | None = typer.Option(None, help="Interpreter folder; needed for the signals interpreter, soft."),
    preferences: str = typer.Option(..., help="Source of preferences: a file, `hf:owner/name`, ..."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder for the trained model."),
    method: str = typer.Option("kto", help="sft, kto or dpo."),
    signal: str = typer.Option("interpreter", help="interpreter, soft, label, sampled, always or none."),
    probes: list[str] = typer.Option([], help="Labelled prompts on which the interpreter's drift is measured."),
    benign: list[str] = typer.Option([], help="Benign prompts on which the perplexity is measured before and after."),
    parallel: list[str] = typer.Option([], help="Parallel prompts, for a consistency term."),
    harmless: list[str] = typer.Option([], help="Harmless text in any language, to learn to refuse from."),
    refusals: Path | None = typer.Option(None, help="TOML file of refusals by language; the shipped ones by default."),
    condition: str | None = typer.Option(None, help="The conditional text; the paper's by default."),
    setting: list[str] = typer.Option(
        [],
        "--set",
        help="NAME=VALUE: any other setting of a system in a recipe (learning_rate, steps, lora_rank, ...).",
    ),
    seed: int = typer.Option(0, min=0, help="Of the rows' order and the training."),
) -> None:
    """Align a model on preferences, conditioned on an interpreter's decisions."""
    import yaml
    from rich.console import Console

    from lasa.alignment.processes import training_device
    from lasa.alignment.settings import AlignmentSettings, SystemSettings
    from lasa.alignment.system import align_system
    from lasa.alignment.tables import AlignmentTables
    from lasa.data.refusals import read_refusals
    from lasa.data.sources import load_each, load_joined, load_preferences
    from lasa.errors import RecipeError
    from lasa.files.artifacts import read_json
    from lasa.files.settings import check_settings
    from lasa.interpreter.probe import load_interpreter
    from lasa.interpreter.settings import CalibrationOptions
    from lasa.launch import leave_launch
    from lasa.models.loading import load_model
    from lasa.models.origin import model_folder
    from lasa.progress import show_progress
    from lasa.quiet import quiet_libraries

    show_progress()
    quiet_libraries()
    settings = {"method": method, "signal": signal, "guarded": signal in ("interpreter", "soft", "always")}
    for one in setting:
        name, equals, value = one.partition("=")
        if not equals:
            raise RecipeError(f"--set {one}: expected NAME=VALUE, such as learning_rate=1e-5.")
        settings[name] = yaml.safe_load(value)
    system = check_settings(SystemSettings, settings, "lasa align")
    section = check_settings(AlignmentSettings, {"preferences": preferences, "condition": condition}, "lasa align")
    on = {"device": training_device(model.device), "four_bit": system.four_bit}
    network, tokenizer = load_model(model.model_copy(update=on))
    probe = load_interpreter(interpreter) if interpreter else None
    if probe is not None:
        probe.check_fits(network, tokenizer, fingerprint=not system.four_bit)
    tables = AlignmentTables(
        load_preferences(preferences),
        load_each(probes),
        load_joined(parallel),
        [prompt for prompt in load_each(benign) if prompt.harmful is not True],
        harmless=load_each(harmless),
        refusals=read_refusals(refusals),
    )
    align_system(
        network, tokenizer, probe, tables, system, section, CalibrationOptions(), output,
        name=output.name, base=model_folder(model.path, model.revision).name, seed=seed,
    )  # fmt: skip
    leave_launch()
    console, training = Console(), read_json(output / "training.json")
    console.print(
        f"Trained in {training['wrapper']}, loss {training['losses'][0]:.4f} -> {training['losses'][-1]:.4f}.",
        highlight=False,
    )
    if tables.benign:
        for code, found in read_json(output / "perplexity.json")["languages"].items():
            console.print(f"Perplexity {code}: {found['before']:.3f} -> {found['after']:.3f}", highlight=False)
    console.print(f"Written: {output}", soft_wrap=True, highlight=False)
