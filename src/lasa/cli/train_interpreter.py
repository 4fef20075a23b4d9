"""`lasa train-interpreter`: stage 2 alone, from files."""

from pathlib import Path

import typer

from lasa.cli.options import with_model, with_settings
from lasa.interpreter.settings import InterpreterSettings
from lasa.models.settings import ModelSettings


@with_model
@with_settings(
    InterpreterSettings,
    "settings",
    without=("development_share", "hidden", "early_layer"),
)
def train_interpreter(
    model: ModelSettings,
    settings: InterpreterSettings,
    bottleneck: Path | None = typer.Option(None, help="bottleneck.json of `lasa locate` or of a run."),
    layer: int | None = typer.Option(None, min=0, help="Layer to read, instead of --bottleneck."),
    test: list[str] = typer.Option([], help="Held-out prompts; repeatable. The first is the headline."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder for interpreter/ and interpreter.json."),
    language: list[str] = typer.Option([], help="Train on these languages only; repeatable. All others are unseen."),
    seed: int = typer.Option(0, min=0, help="First seed."),
    position: str | None = typer.Option(None, help="Token position, with --layer: last, last_user or mean_user."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of tables."),
) -> None:
    """Train, calibrate and evaluate an interpreter at the semantic bottleneck."""
    import json

    from rich.console import Console

    from lasa.data.sources import load_preferences, named_sources
    from lasa.interpreter.answers import answers_of
    from lasa.interpreter.study import read_point_of, study_interpreter
    from lasa.interpreter.tables import load_tables
    from lasa.languages import canonical_language
    from lasa.models.loading import load_model
    from lasa.progress import say, show_progress
    from lasa.quiet import quiet_libraries
    from lasa.report.terminal import audit_table, probe_summary

    show_progress()
    quiet_libraries()
    languages = [canonical_language(code) for code in language]
    tables = load_tables(settings, languages, named_sources(test), seed)
    say(audit_table(tables.audit))
    network, tokenizer = load_model(model)
    chosen, where = read_point_of(network, bottleneck, layer, position)
    answers = answers_of(row for source in settings.answers for row in load_preferences(source))
    study = study_interpreter(
        network, tokenizer, model.path, chosen, where, tables, settings, output, seed, answers=answers
    )
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
