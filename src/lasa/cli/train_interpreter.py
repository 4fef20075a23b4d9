"""`lasa train-interpreter`: stage 2 alone, from files."""

from pathlib import Path

import typer


def train_interpreter(
    model: str = typer.Option("embedded", help="Local Hugging Face model folder, or `embedded`."),
    bottleneck: Path | None = typer.Option(None, help="bottleneck.json of `lasa locate` or of a run."),
    layer: int | None = typer.Option(None, min=0, help="Layer to read, instead of --bottleneck."),
    train: list[str] = typer.Option(
        ..., help="Labelled prompts: file, `hf:owner/name`, `corpus:path` or `embedded:name`; repeatable."
    ),
    development: list[str] = typer.Option(
        [],
        help="Prompts for early stopping and thresholds; repeatable. Without it a fifth of the queries is split.",
    ),
    calibration: list[str] = typer.Option(
        [], help="More benign prompts for thresholds, in any language; repeatable. Needs --false-refusals."
    ),
    test: list[str] = typer.Option([], help="Held-out prompts; repeatable. The first is the headline."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder for interpreter/ and interpreter.json."),
    language: list[str] = typer.Option([], help="Train on these languages only; repeatable. All others are unseen."),
    false_refusals: float | None = typer.Option(
        None, help="Target share of flagged benign prompts; without it the best balanced accuracy."
    ),
    per_language: bool = typer.Option(False, "--per-language", help="Also a threshold for each language."),
    controversial_misses: float | None = typer.Option(
        None, help="Fit an abstain band: target share of harmful prompts below it."
    ),
    perturbed_copies: list[str] = typer.Option(
        [], help="Also train on copies changed in this way (typos, casing, romanise, ...); repeatable."
    ),
    all_layers: bool = typer.Option(False, "--all-layers", help="Measure every layer, for information only."),
    kind: str = typer.Option("mlp", help="mlp or linear."),
    noise: float = typer.Option(0.0, min=0.0, help="Input noise, in standard deviations of each feature."),
    learning_rate: float = typer.Option(1e-3, min=0.0, help="Of AdamW."),
    epochs: int = typer.Option(20, min=1, help="At most this many passes over the training data."),
    patience: int = typer.Option(4, min=1, help="Stop after this many epochs without a better development loss."),
    seeds: int = typer.Option(3, min=1, help="Independent trainings; the best on development data is used."),
    seed: int = typer.Option(0, min=0, help="First seed."),
    position: str | None = typer.Option(None, help="Token position, with --layer: last, last_user or mean_user."),
    allow_leaks: bool = typer.Option(False, "--allow-leaks", help="Evaluate in spite of training queries in a test."),
    dtype: str = typer.Option("auto", help="auto, float32, bfloat16 or float16."),
    device: str = typer.Option("auto", help="auto or a torch device."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of tables."),
) -> None:
    """Train, calibrate and evaluate an interpreter at the semantic bottleneck."""
    import json

    from rich.console import Console

    from lasa.cli.tables import audit_table, probe_summary
    from lasa.interpreter_study import read_point_of, study_interpreter
    from lasa.interpreter_tables import load_tables
    from lasa.languages import canonical_language
    from lasa.models import load_model
    from lasa.progress import say, show_progress
    from lasa.quiet import quiet_libraries
    from lasa.recipe import InterpreterSection, check_settings
    from lasa.sources import short_names

    show_progress()
    quiet_libraries()
    settings = {
        "train": train,
        "development": development,
        "calibration": calibration,
        "kind": kind,
        "noise": noise,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "patience": patience,
        "seeds": seeds,
        "false_refusals": false_refusals,
        "per_language": per_language,
        "controversial_misses": controversial_misses,
        "perturbed_copies": perturbed_copies,
        "all_layers": all_layers,
        "allow_leaks": allow_leaks,
    }
    section = check_settings(InterpreterSection, settings, "lasa train-interpreter")
    languages = [canonical_language(code) for code in language]
    tables = load_tables(section, languages, short_names(test), seed)
    say(audit_table(tables.audit))
    network, tokenizer = load_model(model, dtype=dtype, device=device)
    chosen, where = read_point_of(network, bottleneck, layer, position)
    study = study_interpreter(network, tokenizer, model, chosen, where, tables, section, output, seed)
    study.save(output)
    if as_json:
        print(json.dumps(study.results, ensure_ascii=False))
        return
    console = Console()
    if test:
        console.print(probe_summary(study.results))
    config = study.interpreter.config
    console.print(
        f"Layer {chosen}, threshold {config.threshold:.3f}, {config.parameters:,} parameters "
        f"({config.parameter_share:.2%} of the model).",
        highlight=False,
    )
    for name, statement in study.results["facts"]["development"]["statements"].items():
        console.print(f"{name}: {statement}", highlight=False, soft_wrap=True)
    console.print(f"Written: {output / 'interpreter'}, {output / 'interpreter.json'}", soft_wrap=True)
