"""The main job: the stages of LASA in order, from a recipe to metrics and a report.

1. find the semantic bottleneck   2. train the interpreter there   3. align systems on its signal
4. generate, guarded or not, and judge   5. metrics   6. report

Each stage reads what the one before wrote into the run folder, so a run that was stopped goes on where it stopped.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lasa.alignment.settings import SystemSettings
from lasa.bottleneck.search import find_at_positions, search_json
from lasa.data.prompts import Prompt, check_parallel
from lasa.data.sources import load_joined, load_prompts
from lasa.errors import DataError, RecipeError
from lasa.evaluation.answering import LocalModel
from lasa.evaluation.judge_settings import check_files, make_judges
from lasa.evaluation.panel import Panel
from lasa.evaluation.run import generate_samples
from lasa.files.artifacts import FILES, model_fingerprint, read_sealed, write_json, write_sealed
from lasa.guard.system import System
from lasa.interpreter.probe import SafetySemanticInterpreter, load_interpreter
from lasa.interpreter.study import study_interpreter
from lasa.launch import launched
from lasa.models.generation import GenerationSettings
from lasa.models.hidden_states import read_to_folder
from lasa.models.layers import num_layers
from lasa.models.loading import load_model
from lasa.models.memory import release_memory
from lasa.progress import say
from lasa.report.html import write_report
from lasa.report.terminal import audit_table
from lasa.run.beside import handed_on, processes_for, shared_out, told_beside
from lasa.run.folder import RunFolder, open_run, settled
from lasa.run.listening import LISTENED, LISTENING, bare_system, measure_listening
from lasa.run.metrics import collect_metrics
from lasa.run.preferences import (
    OWN_ANSWERS,
    OWN_PREFERENCES,
    answers_to_learn,
    draw_own,
    uses_own,
)
from lasa.run.recipe import Recipe
from lasa.run.sources import (
    alignment_sources,
    development_prompts,
    interpreter_sources,
    interpreter_tables,
    refusals_file,
)
from lasa.run.sweep import choice_of, point_folder
from lasa.run.systems import system_of_run
from lasa.run.training import train_system


def run_recipe(recipe: Recipe, output: Path, processes: int = 1) -> Path:
    """Run every stage that has not been run, and return the path of the report.

    Args:
        recipe: What is to be run.
        output: The run folder.
        processes: How many work on the systems side by side; 0 for as many as pay off (see `processes_for`).

    Raises:
        LasaError: What is wrong with recipe, model, data or folder; everything finished so far is kept.
    """
    if launched():
        raise RecipeError(
            "`lasa run` is one process. To train on several GPUs: accelerate launch -m lasa align, with the folders of "
            "a run's interpreter and preferences (see docs/how-to-align.md)."
        )
    run = RunFolder(output, settled(recipe, output))
    recipe = run.recipe
    with run.locked():
        if not all(run.finished(f"evaluate {name}") for name in recipe.systems):
            check_files(recipe.evaluation.judges)
        read_base(run)
        release_memory()
        interpreter = load_interpreter(run.path / "interpreter")
        parameters = interpreter.config.parameters / interpreter.config.parameter_share
        count = processes or processes_for(parameters, recipe.model.device)
        trained = [name for name, system in recipe.systems.items() if system.method]
        for work, names in (("align", trained), ("evaluate", list(recipe.systems))):
            with shared_out(run.path, work, names, count) as mine:
                _WORK[work](run, mine)
        listen(run, interpreter)
        with run.stage("metrics", "metrics.json"):
            write_json(run.path / "metrics.json", collect_metrics(run))
        with run.stage("report"):
            return write_report(run.path)


def read_base(run: RunFolder) -> None:
    """Stages 1 and 2 and the base's own answers, with one loading of the base model; nothing holds it afterwards."""
    recipe = run.recipe
    sources = interpreter_sources(recipe)
    stages = [("bottleneck", ["bottleneck.json"], recipe.layer_search.prompts, locate)]
    if uses_own(recipe):
        stages.append(("preferences", [OWN_ANSWERS, OWN_PREFERENCES], [*sources, *refusals_file(recipe)], draw_own))
    stages.append(("interpreter", ["interpreter.json", "interpreter/config.json"], sources, interpret))
    base: tuple[Any, Any] | None = None
    for stage, files, reads, work in stages:
        if not run.finished(stage):
            base = base or load_model(recipe.model)
            with run.stage(stage, *files, reads=reads):
                work(run, *base)


def work_beside() -> None:
    """What another process of a run does; see `shared_out`."""
    with handed_on():
        folder, work, names = told_beside()
        _WORK[work](RunFolder(folder, open_run(folder)), names)


def align_systems(run: RunFolder, names: Sequence[str]) -> None:
    """Stage 3 for these systems: every point of their sweeps, and what is kept."""
    recipe, interpreter = run.recipe, load_interpreter(run.path / "interpreter")
    for name in names:
        system = recipe.systems[name]
        for number, point in enumerate(system.points()):
            if not run.finished(f"point {name} {number}"):
                samples = point_folder(run, name, number).relative_to(run.path) / "samples.jsonl"
                reads = alignment_sources(recipe, point)
                with run.stage(f"point {name} {number}", samples.as_posix(), reads=reads):
                    try_point(run, name, number, point, interpreter)
                release_memory()
        if not run.finished(f"align {name}"):
            with run.stage(f"align {name}", *_written(recipe, name), reads=alignment_sources(recipe, system)):
                align(run, name, system, interpreter)
            release_memory()


def evaluate_systems(run: RunFolder, names: Sequence[str]) -> None:
    """Stage 4 for these systems."""
    for name in names:
        if not run.finished(f"evaluate {name}"):
            reads = list(run.recipe.evaluation.benchmarks.values())
            with run.stage(f"evaluate {name}", f"samples/{name}.jsonl", reads=reads):
                evaluate(run, name)
            release_memory()


_WORK = {"align": align_systems, "evaluate": evaluate_systems}


def locate(run: RunFolder, model: Any, tokenizer: Any) -> None:
    """Stage 1: read all layers once and search for the bottleneck."""
    section = run.recipe.layer_search
    prompts = load_joined(section.prompts)
    check_parallel(prompts)
    layers = list(range(num_layers(model) + 1))
    stored = read_to_folder(
        model,
        tokenizer,
        prompts,
        layers,
        run.path / "hidden_states",
        section.position,
        also=[position for position in section.also_positions if position != section.position],
    )
    options = {"resamples": section.resamples, "seed": run.recipe.seed}
    found = search_json(find_at_positions(stored, layers, prompts, num_layers(model), **options))
    used = found["layer"] if section.layer is None else section.layer
    if used is None:
        raise DataError(
            f"{found['verdict']} To go on with a layer of your choice, set layer_search.layer in the recipe and call "
            "the same command again: the run goes on in this folder."
        )
    if section.layer is not None and section.layer != found["layer"]:
        say(f"Using layer {section.layer} as the recipe asks. {found['verdict']}")
    provenance = {"fingerprint": model_fingerprint(model)}  # the rest is in the run's provenance.json
    write_sealed(run.path / "bottleneck.json", {**found, "used_layer": used, "provenance": provenance})
    say(found["verdict"])


def interpret(run: RunFolder, model: Any, tokenizer: Any) -> None:
    """Stage 2: audit, train the interpreter at the bottleneck, calibrate, and measure on held-out prompts."""
    recipe = run.recipe
    layer = int(read_sealed(run.path / "bottleneck.json")["used_layer"])
    tables = interpreter_tables(recipe)
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
        {system.interpreter_layer for system in recipe.systems.values() if system.interpreter_layer is not None},
        answers_to_learn(run),
    )
    study.save(run.path)


def try_point(
    run: RunFolder, name: str, number: int, point: SystemSettings, interpreter: SafetySemanticInterpreter
) -> None:
    """Stage 3, one point of a sweep: train it and answer the development prompts."""
    folder = point_folder(run, name, number)
    label = f"{name}, point {number}"
    prompts = development_prompts(run.recipe)
    if not (folder / "model").is_dir():
        train_system(run, point, interpreter, folder / "model", label)
        release_memory()
    system = system_of_run(run.path, run.recipe, name, folder=folder / "model")
    _answer(run, system, {"development": prompts}, folder / "samples.jsonl", label)


def align(run: RunFolder, name: str, system: SystemSettings, interpreter: SafetySemanticInterpreter) -> None:
    """Stage 3: train one system, or keep the best point of its sweep."""
    folder = run.path / "systems" / name
    if not system.sweep:
        train_system(run, system, interpreter, folder, name)
        return
    choice = choice_of(run, name, system)
    say(f"{name}: {choice.verdict}")
    kept = point_folder(run, name, choice.point) / "model"
    if not kept.is_dir():
        train_system(run, system.points()[choice.point], interpreter, kept, name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    kept.rename(folder)
    for number in range(len(system.sweep)):
        shutil.rmtree(point_folder(run, name, number) / "model", ignore_errors=True)


def evaluate(run: RunFolder, name: str) -> None:
    """Stage 4: answer every benchmark prompt and judge the answers."""
    prompts = {split: load_prompts(source) for split, source in run.recipe.evaluation.benchmarks.items()}
    _answer(run, system_of_run(run.path, run.recipe, name), prompts, run.path / "samples" / f"{name}.jsonl", name)


def listen(run: RunFolder, interpreter: SafetySemanticInterpreter) -> None:
    """Stage 4, for an interpreter with a head for answers: what it would stop of those that the base wrote."""
    system = bare_system(run.recipe)
    if interpreter.config.answers is None or system is None or run.finished(LISTENING):
        return
    with run.stage(LISTENING, LISTENED):
        measure_listening(run, interpreter, system)
    release_memory()


def _answer(run: RunFolder, system: System, prompts: dict[str, list[Prompt]], samples: Path, label: str) -> None:
    """Answer prompts with a system, and judge the answers."""
    recipe = run.recipe
    if recipe.evaluation.dtype is not None:
        system = replace(system, model=system.model.model_copy(update={"dtype": recipe.evaluation.dtype}))
    settings = GenerationSettings(max_new_tokens=recipe.evaluation.max_new_tokens)
    generate_samples(
        samples,
        prompts,
        Panel(*make_judges(recipe.evaluation.judges, run.path / "verdicts"), settings=recipe.evaluation),
        LocalModel(*system.load(), settings),
        batch_size=recipe.evaluation.batch_size,
        batch_tokens=recipe.evaluation.batch_tokens,
        name=label,
    )


def _written(recipe: Recipe, name: str) -> list[str]:
    """What later stages read of a trained system; the manifest covers the rest."""
    files = [FILES, "drift.json", *(["perplexity.json"] if recipe.alignment.development else [])]
    return [f"systems/{name}/{file}" for file in files]
