"""`lasa doctor`: can this model be read and guarded here, and does its interpreter still read it well?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lasa.cli.options import SystemChoice, with_model, with_settings
from lasa.interpreter.settings import CalibrationOptions
from lasa.models.settings import ModelSettings

if TYPE_CHECKING:
    from rich.console import Console

INDENT, WARNING = " " * 13, "yellow"


@with_model
@with_settings(SystemChoice, "choice")
@with_settings(CalibrationOptions, "calibration", without=("per_language",))
def doctor(
    model: ModelSettings,
    choice: SystemChoice,
    calibration: CalibrationOptions,
    samples: Path | None = typer.Option(
        None,
        help="A guarded system's samples: does it decide here as it did there? Those of --run by default. Exit code 1 "
        "where more decisions change than --drift-bound.",
    ),
    base: str | None = typer.Option(None, help="The base model, where --model was aligned on top of it."),
    prompts: str | None = typer.Option(None, help="Probe prompts on which to measure the interpreter's drift."),
    drift_bound: float | None = typer.Option(
        None,
        min=0.0,
        max=1.0,
        help="Warn when more of the decisions change; 0.02 from base to model, 0.01 for samples.",
    ),
    refit: Path | None = typer.Option(
        None, help="Fit temperature and thresholds again on --model and the probe prompts; save the interpreter here."
    ),
) -> None:
    """Check that a model can be loaded, rendered, read and guarded, and that its interpreter decides as it did."""
    from dataclasses import replace

    from rich.console import Console

    from lasa.errors import RecipeError
    from lasa.evaluation.again import SAME_BOUND, decide_again
    from lasa.evaluation.samples import read_samples
    from lasa.files.artifacts import model_fingerprint
    from lasa.interpreter.drift import DRIFT_BOUND
    from lasa.interpreter.probe import load_interpreter
    from lasa.models.loading import load_model
    from lasa.progress import show_progress
    from lasa.quiet import quiet_libraries

    if (base is None) != (prompts is None) or (base is not None and choice.interpreter is None):
        raise RecipeError("Drift needs --interpreter, --base and --prompts together.")
    if refit is not None and base is None:
        raise RecipeError("--refit needs --interpreter, --base and --prompts.")
    if samples is not None and choice.run is None and choice.interpreter is None:
        raise RecipeError("--samples needs the guard that decides: give --run, or --model and --interpreter.")
    show_progress()
    quiet_libraries()
    console = Console(soft_wrap=True, highlight=False)
    system = choice.find(model)
    if choice.run and system.guarded:
        own = choice.run / "samples" / f"{system.name}.jsonl"
        samples = samples or (own if own.is_file() else None)
    decided = read_samples(samples) if samples else []
    probe = load_interpreter(system.interpreter) if system.interpreter else None
    network, tokenizer = load_model(system.model.rendering_like(probe.config.chat_template if probe else ""))
    _readable(console, network, tokenizer)
    if probe is None:
        return
    same_weights = not (base or decided or system.aligned or system.forced)
    probe.check_fits(network, tokenizer, fingerprint=same_weights)
    console.print("interpreter  fits this model")
    if base is not None and prompts is not None:
        options = calibration.model_copy(update={"per_language": bool(probe.config.language_thresholds)})
        bound = DRIFT_BOUND if drift_bound is None else drift_bound
        _drift(console, probe, base, (network, tokenizer), prompts, bound, refit, options)
    if decided:
        bound = SAME_BOUND if drift_bound is None else drift_bound
        if not system.aligned and model_fingerprint(network) != probe.config.base_fingerprint:
            console.print(
                f"{INDENT}Its weights are others than the interpreter's, or in another precision.", style=WARNING
            )
        measured = replace(system, forced=system.forced or not system.aligned)  # it serves nobody
        guard = measured.guard_over(network, tokenizer, probe)
        again = decide_again(guard, decided, bound)
        console.print(f"decisions    {again.verdict}", style=WARNING if again.drift.exceeded else None)
        if again.drift.exceeded:
            raise typer.Exit(1)


def _readable(console: "Console", network: Any, tokenizer: Any) -> None:
    """What the model is, that it can be read, and what of its template people should know."""
    from lasa.models.checks import check_readable
    from lasa.models.layers import hidden_size, num_layers, num_parameters
    from lasa.models.rendering import plain_markers, render, turn_end_ids

    console.print(f"model        {type(network).__name__}, {num_parameters(network):,} parameters")
    console.print(f"layers       0 to {num_layers(network)}, {hidden_size(network)} wide")
    check_readable(network, tokenizer)
    console.print("reading      every layer can be observed")
    rendered = render(tokenizer, ({"role": "user", "content": "hello"},))
    bos = rendered.token_ids.count(tokenizer.bos_token_id) if tokenizer.bos_token_id is not None else 0
    console.print(f"rendering    {len(rendered.token_ids)} tokens for a greeting, {bos} BOS")
    warnings = []
    if bos == 0 and tokenizer("hello")["input_ids"][:1] == [tokenizer.bos_token_id]:
        warnings += [
            "Warning: the tokenizer adds a BOS to plain text, and the chat template has none. Models that",
            "were trained with one degenerate without it: put {{ bos_token }} first in the template.",
        ]
    if plain_markers(tokenizer):
        warnings += [
            f"The template marks turns in plain text: {', '.join(plain_markers(tokenizer))}.",
            "lasa breaks these in what users write; other servers may not.",
        ]
    for line in warnings:
        console.print(f"{INDENT}{line}", style=WARNING, markup=False)
    console.print(f"turn end     {tokenizer.convert_ids_to_tokens(turn_end_ids(tokenizer))}", markup=False)


def _drift(
    console: "Console",
    interpreter: Any,
    base: str,
    aligned: tuple[Any, Any],
    source: str,
    bound: float,
    output: Path | None,
    options: Any,
) -> None:
    from lasa.data.sources import load_prompts
    from lasa.interpreter import drift as interpreter_drift
    from lasa.models.hidden_states import read_hidden_states
    from lasa.models.loading import load_model

    prompts, point = load_prompts(source), interpreter.config.read_point
    states = []
    for network, tokenizer, is_base in ((*load_model(base), True), (*aligned, False)):
        interpreter.check_fits(network, tokenizer, fingerprint=is_base)
        states.append(read_hidden_states(network, tokenizer, prompts, [point.layer], point.position)[:, 0])
    drift = interpreter_drift.measure_drift(interpreter, states[0], states[1], prompts, bound)
    console.print(f"drift        {drift.verdict}", style=WARNING if drift.exceeded else None)
    if output is not None:
        refitted, calibrated = interpreter_drift.refit(interpreter, states[1], prompts, options)
        refitted.save_pretrained(output)
        config = calibrated.config
        console.print(f"refit        threshold {config.threshold:.3f}, temperature {config.temperature:.3f}: {output}")
        for statement in calibrated.statements.values():
            console.print(f"{INDENT}{statement}")
        had, stated = interpreter.config, calibrated.statements
        lost = [f"the threshold of {code}" for code in had.language_thresholds if f"language {code}" not in stated]
        if had.controversial is not None and "controversial" not in stated:
            lost.append("the controversial band")
        if lost:
            console.print(
                f"{INDENT}Not fitted again, so no longer there: {', '.join(lost)}. Thresholds of languages take "
                "--false-refusals and benign prompts in them, the band takes --controversial-misses.",
                style=WARNING,
            )
