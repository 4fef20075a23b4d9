"""The main job: the stages of LASA in order, from a recipe to metrics and a report.

1. find the semantic bottleneck   2. train the interpreter there   3. align systems on its signal
4. generate, guarded or not, and judge   5. metrics   6. report

Each stage reads what the one before wrote into the run folder, so a run that was stopped goes on where it stopped.
"""

import gc
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lasa.alignment.rows import decisions, token_rows
from lasa.alignment.trainers import TrainingSettings, train
from lasa.artifacts import fingerprint, model_fingerprint, provenance, read_json, write_json
from lasa.bottleneck import find_bottleneck
from lasa.conditioning import DEFAULT_CONDITION, Policy
from lasa.errors import DataError
from lasa.evaluation.compare import read_samples
from lasa.evaluation.metrics import compare_systems, system_metrics
from lasa.evaluation.outcomes import Sample
from lasa.evaluation.run import generate_samples, make_judge
from lasa.guard import Guard
from lasa.hidden_states import ReadPoint, read_hidden_states, read_to_folder
from lasa.interpreter import InterpreterConfig, SafetySemanticInterpreter, hidden_width, load_interpreter
from lasa.interpreter_evaluation import decisions_on, evaluate_interpreter, group_metrics, ngram_baseline
from lasa.interpreter_training import LabelledStates, TrainingOptions, calibrate, split_by_query, train_interpreter
from lasa.layers import hidden_size, num_layers
from lasa.models import load_model, model_folder, num_parameters
from lasa.progress import say
from lasa.prompts import Prompt
from lasa.recipe import Recipe, SystemSection
from lasa.rendering import template_fingerprint
from lasa.report import write_report
from lasa.run_folder import RunFolder
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
        stored.all(), layers, prompts, num_layers(model), resamples=section.resamples, seed=run.recipe.seed
    )
    used = found.layer if section.layer is None else section.layer
    if used is None:
        raise DataError(f"{found.verdict} Set layer_search.layer in the recipe to go on with a layer of your choice.")
    if section.layer is not None and section.layer != found.layer:
        say(f"Using layer {section.layer} as the recipe asks. {found.verdict}")
    write_json(run.path / "bottleneck.json", {**found.to_json(), "used_layer": used, "position": section.position})
    say(found.verdict)


def interpret(run: RunFolder, model: Any, tokenizer: Any) -> None:
    """Stage 2: train the interpreter at the bottleneck, and its controls; calibrate; measure on held-out prompts."""
    recipe, section = run.recipe, run.recipe.interpreter
    layer = int(read_json(run.path / "bottleneck.json")["used_layer"])
    seen = recipe.seen_languages
    pool = _labelled(section.train, seen)
    if section.development:
        parts = [pool, _labelled(section.development, seen)]
    else:
        kept, held = split_by_query(pool, section.development_share, recipe.seed)
        parts = [[p for p, k in zip(pool, kept, strict=True) if k], [p for p, h in zip(pool, held, strict=True) if h]]
    tests = {name: _judgeable(load_prompts(source)) for name, source in recipe.evaluation.benchmarks.items()}
    early = min(section.early_layer, layer)
    layers = sorted({layer, early, num_layers(model)})
    position = recipe.layer_search.position
    everything = [*parts[0], *parts[1], *(p for prompts in tests.values() for p in prompts)]
    states = read_hidden_states(model, tokenizer, everything, layers, position)

    def at(which: int, start: int, prompts: Sequence[Prompt]) -> LabelledStates:
        return LabelledStates(states[start : start + len(prompts), layers.index(which)], prompts)

    def fit(which: int) -> SafetySemanticInterpreter:
        width = hidden_size(model)
        config = InterpreterConfig(
            ReadPoint(which, position, template_fingerprint(tokenizer)),
            width,
            hidden_width(section.kind, width, num_parameters(model), section.hidden),
            base_model=str(recipe.model.path),
            base_fingerprint=model_fingerprint(model),
            languages=tuple(seen),
            data={
                "train": fingerprint([p.to_json() for p in parts[0]]),
                "development": fingerprint([p.to_json() for p in parts[1]]),
            },
            provenance=provenance(seed=recipe.seed),
        )
        options = TrainingOptions(
            learning_rate=section.learning_rate,
            epochs=section.epochs,
            noise=section.noise,
            seeds=section.seeds,
            seed=recipe.seed,
        )
        development = at(which, len(parts[0]), parts[1])
        trained = train_interpreter(at(which, 0, parts[0]), development, config, options)
        calibrated, guarantee = calibrate(trained.interpreter, development, false_refusals=section.false_refusals)
        size = trained.interpreter.num_parameters()
        trained.interpreter.config = replace(
            calibrated,
            parameters=size,
            parameter_share=size / num_parameters(model),
            metrics={
                "development_losses": trained.development_losses,
                "development_auroc": trained.development_auroc,
                "threshold": guarantee,
            },
        )
        return trained.interpreter

    probe, controls = fit(layer), {"early_layer": fit(early), "late_layer": fit(num_layers(model))}
    results: dict[str, Any] = {}
    start = len(parts[0]) + len(parts[1])
    for name, prompts in tests.items():
        entry: dict[str, Any] = {}
        if prompts:
            entry = evaluate_interpreter(probe, at(layer, start, prompts), seen)
            for control, other in controls.items():
                data = at(other.config.read_point.layer, start, prompts)
                flagged = decisions_on(other, data.states, prompts)
                measured = group_metrics(
                    other.probability(data.states).double().numpy(), _array(flagged), prompts, seen
                )
                entry[control] = {"layer": other.config.read_point.layer, **_groups(measured)}
            entry["ngram_baseline"] = _groups(ngram_baseline(parts[0], prompts, seen, recipe.seed))
        results[name] = entry
        start += len(prompts)
    probe.save_pretrained(run.path / "interpreter")
    facts = {
        "layer": layer,
        "threshold": probe.config.threshold,
        "temperature": probe.config.temperature,
        "parameters": probe.config.parameters,
        "parameter_share": probe.config.parameter_share,
        "development": probe.config.metrics,
    }
    write_json(run.path / "interpreter.json", {"facts": facts, "benchmarks": results})


def align(run: RunFolder, name: str, system: SystemSection, interpreter: SafetySemanticInterpreter) -> None:
    """Stage 3: train one system on the preferences, conditioned on its signal."""
    recipe = run.recipe
    model, tokenizer = _load(recipe, recipe.model.path)
    preferences = load_preferences(recipe.alignment.preferences)

    def interpret_prompts(prompts: Sequence[Prompt]) -> list[bool]:
        point = interpreter.config.read_point
        states = read_hidden_states(model, tokenizer, prompts, [point.layer], point.position)[:, 0]
        return decisions_on(interpreter, states, prompts)

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
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    del model, trained
    gc.collect()


def evaluate(run: RunFolder, name: str, system: SystemSection, interpreter: SafetySemanticInterpreter) -> None:
    """Stage 4: answer every benchmark prompt and judge the answers."""
    recipe = run.recipe
    path = str(run.path / "systems" / name) if system.method else recipe.model.path
    model, tokenizer = _load(recipe, path)
    guard = None
    if system.guarded:
        policy = Policy(condition=recipe.alignment.condition or DEFAULT_CONDITION)
        guard = Guard(model, tokenizer, interpreter, policy)
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

    return {
        "schema": 1,
        "seen_languages": seen,
        "headline": headline,
        "bottleneck": bottleneck,
        "interpreter": {**interpreter["facts"], **interpreter["benchmarks"][headline]},
        "systems": systems_on(headline),
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
        compare_systems(samples[other], samples[last], other, last, languages, group)
        for other in others
        for group, languages in groups.items()
        if languages
    ]


def _of(split: str, samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.split == split]


def _labelled(sources: Sequence[str], languages: Sequence[str]) -> list[Prompt]:
    prompts = [p for source in sources for p in load_prompts(source) if p.language in languages]
    if not prompts:
        raise DataError(f"{', '.join(sources)}: no prompt in the seen languages {', '.join(languages)}.")
    return prompts


def _judgeable(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts on which an interpreter can be right or wrong; none if a label is missing altogether."""
    labelled = [p for p in prompts if p.harmful is not None]
    return labelled if len({p.harmful for p in labelled}) == 2 else []


def _groups(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in ("seen", "unseen")}


def _array(flags: Sequence[bool]) -> Any:
    import numpy as np

    return np.array(flags)


def _load(recipe: Recipe, path: str) -> tuple[Any, Any]:
    section = recipe.model
    return load_model(
        path, dtype=section.dtype, device=section.device, trust_remote_code=section.trust_remote_code
    )
