"""`lasa align`: stage 3 alone, from files. Under `accelerate launch` it trains on several processes."""

from pathlib import Path

import typer


def align(
    model: str = typer.Option("embedded", help="Local Hugging Face model folder, or `embedded`."),
    interpreter: Path | None = typer.Option(None, help="Interpreter folder; needed for the signals interpreter, soft."),
    preferences: str = typer.Option(..., help="Preferences: a file, or `embedded:preferences`."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder for the trained model."),
    method: str = typer.Option("kto", help="sft, kto or dpo."),
    signal: str = typer.Option("interpreter", help="interpreter, soft, label, sampled or none."),
    probes: list[str] = typer.Option([], help="Labelled prompts on which the interpreter's drift is measured."),
    benign: list[str] = typer.Option([], help="Benign prompts on which the perplexity is measured before and after."),
    parallel: list[str] = typer.Option([], help="Parallel prompts, for a consistency term."),
    condition: str | None = typer.Option(None, help="The conditional text; the paper's by default."),
    setting: list[str] = typer.Option(
        [],
        "--set",
        help="NAME=VALUE: any other setting of a system in a recipe (learning_rate, steps, lora_rank, ...).",
    ),
    seed: int = typer.Option(0, min=0, help="Of the rows' order and the training."),
    dtype: str = typer.Option("auto", help="auto, float32, bfloat16 or float16."),
    device: str = typer.Option("auto", help="auto or a torch device."),
) -> None:
    """Align a model on preferences, conditioned on an interpreter's decisions."""
    import yaml
    from rich.console import Console

    from lasa.alignment.processes import launch_device
    from lasa.alignment_study import AlignmentTables, align_system
    from lasa.artifacts import read_json
    from lasa.errors import RecipeError
    from lasa.interpreter import load_interpreter
    from lasa.interpreter_calibration import CalibrationOptions
    from lasa.models import load_model, model_folder
    from lasa.progress import show_progress
    from lasa.quiet import quiet_libraries
    from lasa.recipe import AlignmentSection, SystemSection, check_settings
    from lasa.sources import load_preferences, load_prompts

    show_progress()
    quiet_libraries()
    settings = {"method": method, "signal": signal, "guarded": signal in ("interpreter", "soft")}
    for one in setting:
        name, equals, value = one.partition("=")
        if not equals:
            raise RecipeError(f"--set {one}: expected NAME=VALUE, such as learning_rate=1e-5.")
        settings[name] = yaml.safe_load(value)
    system = check_settings(SystemSection, settings, "lasa align")
    section = check_settings(AlignmentSection, {"preferences": preferences, "condition": condition}, "lasa align")
    place = launch_device() if device == "auto" else device
    network, tokenizer = load_model(model, dtype=dtype, device=place, four_bit=system.four_bit)
    probe = load_interpreter(interpreter) if interpreter else None
    if probe is not None:
        probe.check_fits(network, tokenizer, fingerprint=not system.four_bit)
    tables = AlignmentTables(
        load_preferences(preferences),
        [p for source in probes for p in load_prompts(source)],
        [p for source in parallel for p in load_prompts(source)],
        [p for source in benign for p in load_prompts(source) if p.harmful is not True],
    )
    align_system(
        network, tokenizer, probe, tables, system, section, CalibrationOptions(), output,
        name=output.name, base=model_folder(model).name, seed=seed,
    )  # fmt: skip
    if not output.is_dir():
        return  # another process of the launch writes it
    console, training = Console(), read_json(output / "training.json")
    console.print(
        f"Trained in {training['wrapper']}, loss {training['losses'][0]:.4f} -> {training['losses'][-1]:.4f}.",
        highlight=False,
    )
    if tables.benign:
        for code, found in read_json(output / "perplexity.json")["languages"].items():
            console.print(f"Perplexity {code}: {found['before']:.3f} -> {found['after']:.3f}", highlight=False)
    console.print(f"Written: {output}", soft_wrap=True, highlight=False)
