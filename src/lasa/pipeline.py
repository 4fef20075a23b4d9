"""The main job: the stages of LASA in order, from a recipe to metrics and a report.

1. find the semantic bottleneck   2. train the interpreter there   3. align systems on its signal
4. generate, guarded or not, and judge   5. metrics   6. report

Each stage reads what the one before wrote into the run folder, so a run that was stopped goes on where it stopped.
"""

import gc
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lasa.alignment.rows import decisions, token_rows
from lasa.alignment.trainers import TrainingSettings, train
from lasa.artifacts import provenance, read_json, write_json
from lasa.bottleneck import find_bottleneck
from lasa.cli.tables import audit_table
from lasa.conditioning import DEFAULT_CONDITION, Policy
from lasa.errors import DataError
from lasa.evaluation.compare import COMPARED, read_samples
from lasa.evaluation.metrics import compare_systems, system_metrics
from lasa.evaluation.outcomes import Sample
from lasa.evaluation.run import generate_samples, make_judge
from lasa.guard import Guard
from lasa.hidden_states import read_hidden_states, read_to_folder
from lasa.interpreter import SafetySemanticInterpreter, load_interpreter
from lasa.interpreter_drift import measure_drift, refit
from lasa.interpreter_evaluation import decisions_on
from lasa.interpreter_study import InterpreterTables, calibration_options, load_tables, study_interpreter
from lasa.layers import num_layers
from lasa.models import load_model, model_folder
from lasa.progress import say
from lasa.prompts import Prompt
from lasa.recipe import Recipe, SystemSection
from lasa.report.html import write_report
from lasa.run_folder import RunFolder, interpreter_folder
from lasa.sources import load_preferences, load_prompts


def run_pipeline(recipe: Recipe, output: Path) -> Path:
    """Run every stage that has not been run, and return the path of the report.

    Raises:
        LasaError: What is wrong with recipe, model, data or folder; everything finished so far is kept.
    """
    run = RunFolder(output, recipe)
    with run.locked():
        model, tokenizer = _load(recipe, recipe.model.path)
        if not run.finished("bottleneck"):
            with run.stage("bottleneck"):
                locate(run, model, tokenizer)
        if not run.finished("interpreter"):
            with run.stage("interpreter"):
                interpret(run, model, tokenizer)
        interpreter = load_interpreter(run.path / "interpreter")
        interpreter.check_fits(model, tokenizer)
        for name, system in recipe.systems.items():
            if system.method and not run.finished(f"align {name}"):
                with run.stage(f"align {name}"):
                    align(run, name, system, interpreter)
                gc.collect()  # trainers hold their models in cycles
        for name, system in recipe.systems.items():
            if not run.finished(f"evaluate {name}"):
                with run.stage(f"evaluate {name}"):
                    evaluate(run, name, system, interpreter)
        with run.stage("metrics"):
            write_json(run.path / "metrics.json", collect_metrics(run))
        with run.stage("report"):
            return write_report(run.path)


def locate(run: RunFolder, model: Any, tokenizer: Any) -> None:
    """Stage 1: read all layers once and search for the bottleneck."""
    section = run.recipe.layer_search
    prompts = [prompt for source in section.prompts for prompt in load_prompts(source)]
    layers = list(range(num_layers(model) + 1))
    stored = read_to_folder(model, tokenizer, prompts, layers, run.path / "hidden_states", section.position)
    found = find_bottleneck(
        stored, layers, prompts, num_layers(model), resamples=section.resamples, seed=run.recipe.seed
    )
    used = found.layer if section.layer is None else section.layer
    if used is None:
        raise DataError(f"{found.verdict} Set layer_search.layer in the recipe to go on with a layer of your choice.")
    if section.layer is not None and section.layer != found.layer:
        say(f"Using layer {section.layer} as the recipe asks. {found.verdict}")
    write_json(run.path / "bottleneck.json", {**found.to_json(), "used_layer": used, "position": section.position})
    say(found.verdict)


def interpret(run: RunFolder, model: Any, tokenizer: Any) -> None:
    """Stage 2: audit, train the interpreter at the bottleneck, calibrate, and measure on held-out prompts."""
    recipe = run.recipe
    layer = int(read_json(run.path / "bottleneck.json")["used_layer"])
    tables = _interpreter_tables(recipe)
    say(audit_table(tables.audit))
    study = study_interpreter(
        model,
        tokenizer,
        recipe.model.path,
        layer,
        recipe.layer_search.position,
        tables,
        recipe.interpreter,
        run.path,
        recipe.seed,
    )
    study.save(run.path)


def align(run: RunFolder, name: str, system: SystemSection, interpreter: SafetySemanticInterpreter) -> None:
    """Stage 3: train one system on the preferences, conditioned on its signal; measure the interpreter's drift."""
    recipe = run.recipe
    model, tokenizer = _load(recipe, recipe.model.path)
    preferences = load_preferences(recipe.alignment.preferences)

    point = interpreter.config.read_point

    def interpret_prompts(prompts: Sequence[Prompt]) -> list[bool]:
        states = read_hidden_states(model, tokenizer, prompts, [point.layer], point.position)[:, 0]
        return decisions_on(interpreter, states, prompts)

    probes = _interpreter_tables(recipe).development
    base_states = read_hidden_states(model, tokenizer, probes, [point.layer], point.position)[:, 0]
    conditioned = decisions(preferences, system.signal, interpret_prompts, recipe.seed)
    condition = recipe.alignment.condition or DEFAULT_CONDITION
    rows = token_rows(tokenizer, preferences, conditioned, condition, recipe.seed)
    assert system.method is not None
    settings = TrainingSettings(
        **{name: getattr(system, name) for name in TrainingSettings.__dataclass_fields__ if hasattr(system, name)},
        seed=recipe.seed,
    )
    folder = run.path / "systems" / name
    unfinished = folder.with_name(f".{name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    trained = train(model, tokenizer, rows, settings, unfinished, name)
    trained.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    write_json(
        unfinished / "lasa.json",
        provenance(
            base=str(model_folder(recipe.model.path).name),
            signal=system.signal,
            rows=len(rows),
            conditioned=sum(row.conditioned for row in rows),
            settings=system.model_dump(),
        ),
    )
    states = read_hidden_states(trained, tokenizer, probes, [point.layer], point.position)[:, 0]
    drift = measure_drift(interpreter, base_states, states, probes, recipe.alignment.drift_bound)
    write_json(unfinished / "drift.json", drift.to_json())
    say(f"{name}: {drift.verdict}")
    if recipe.alignment.refit:
        refitted, _ = refit(interpreter, states, probes, calibration_options(recipe.interpreter))
        refitted.save_pretrained(unfinished / "interpreter")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def evaluate(run: RunFolder, name: str, system: SystemSection, interpreter: SafetySemanticInterpreter) -> None:
    """Stage 4: answer every benchmark prompt and judge the answers."""
    recipe = run.recipe
    path = str(run.path / "systems" / name) if system.method else recipe.model.path
    model, tokenizer = _load(recipe, path)
    guard = None
    if system.guarded:
        policy = Policy(condition=recipe.alignment.condition or DEFAULT_CONDITION)
        guard = Guard(model, tokenizer, load_interpreter(interpreter_folder(run.path, name)), policy)
    prompts = {split: load_prompts(source) for split, source in recipe.evaluation.benchmarks.items()}
    generate_samples(
        run.path / "samples" / f"{name}.jsonl",
        prompts,
        make_judge(recipe.evaluation.judge),
        model,
        tokenizer,
        guard,
        max_new_tokens=recipe.evaluation.max_new_tokens,
        batch_size=recipe.evaluation.batch_size,
        name=name,
    )


def collect_metrics(run: RunFolder) -> dict[str, Any]:
    """Stage 5: `metrics.json`, from nothing but what the run wrote."""
    recipe = run.recipe
    samples = {name: read_samples(run.path / "samples" / f"{name}.jsonl") for name in recipe.systems}
    bottleneck, interpreter = (read_json(run.path / f"{name}.json") for name in ("bottleneck", "interpreter"))
    headline, *others = recipe.evaluation.benchmarks
    seen = recipe.seen_languages

    def systems_on(split: str) -> dict[str, Any]:
        return {name: system_metrics(_of(split, rows), seen) for name, rows in samples.items()}

    systems = systems_on(headline)
    for name, system in recipe.systems.items():
        if system.method:
            systems[name]["drift"] = read_json(run.path / "systems" / name / "drift.json")
    return {
        "schema": 1,
        "seen_languages": seen,
        "headline": headline,
        "bottleneck": bottleneck,
        "interpreter": {
            **interpreter["facts"],
            **interpreter["benchmarks"][headline],
            **interpreter["generalisation"],
            "audit": interpreter["audit"],
        },
        "systems": systems,
        "splits": {
            split: {"systems": systems_on(split), "interpreter": interpreter["benchmarks"][split]} for split in others
        },
        "comparisons": _comparisons({name: _of(headline, rows) for name, rows in samples.items()}, seen),
        "seconds": run.seconds,
    }


def _comparisons(samples: dict[str, list[Sample]], seen: Sequence[str]) -> list[dict[str, Any]]:
    """The last system of the recipe against every other, on seen and on unseen languages."""
    *others, last = samples
    codes = {s.prompt.language for rows in samples.values() for s in rows}
    groups = {"seen": codes & set(seen), "unseen": codes - set(seen)}
    return [
        compare_systems(samples[other], samples[last], other, last, languages, group, metric)
        for metric in COMPARED
        for other in others
        for group, languages in groups.items()
        if languages
    ]


def _of(split: str, samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.split == split]


def _interpreter_tables(recipe: Recipe) -> InterpreterTables:
    return load_tables(recipe.interpreter, recipe.seen_languages, recipe.evaluation.benchmarks, recipe.seed)


def _load(recipe: Recipe, path: str) -> tuple[Any, Any]:
    section = recipe.model
    return load_model(path, dtype=section.dtype, device=section.device, trust_remote_code=section.trust_remote_code)
