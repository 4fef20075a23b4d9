"""How a system of a run is trained: on which tables, and watched by what."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lasa.alignment.callbacks import HelpfulnessFloor
from lasa.alignment.processes import training_device
from lasa.alignment.settings import SystemSettings
from lasa.alignment.system import align_system
from lasa.alignment.tables import AlignmentTables
from lasa.conditioning.condition import DEFAULT_CONDITION
from lasa.conditioning.decision import Policy
from lasa.data.prompts import Prompt
from lasa.data.sources import load_joined
from lasa.evaluation.answering import LocalModel
from lasa.evaluation.judge_settings import make_judges
from lasa.evaluation.metrics import rate_of
from lasa.evaluation.panel import Panel
from lasa.evaluation.run import plan_batches
from lasa.guard.guard import Guard
from lasa.interpreter.probe import SafetySemanticInterpreter, load_interpreter
from lasa.interpreter.study import development_states
from lasa.models.generation import GenerationSettings
from lasa.models.loading import load_model
from lasa.models.origin import model_folder
from lasa.run.folder import RunFolder
from lasa.run.preferences import harmless_text, preferences_of, refusals_of
from lasa.run.sources import development_prompts, interpreter_tables


def train_system(
    run: RunFolder, system: SystemSettings, interpreter: SafetySemanticInterpreter, folder: Path, label: str
) -> None:
    """Train a system of a run, on a base that is loaded for it.

    Args:
        run: The run, with stages 1 and 2 behind it.
        system: What is trained: a system, or a point of its sweep.
        interpreter: The run's.
        folder: Where the model goes.
        label: Shown with the progress.

    Raises:
        LasaError: What is wrong with settings or data, or the training failed.
    """
    recipe = run.recipe
    if system.interpreter_layer is not None:
        interpreter = load_interpreter(run.path / "interpreter_at" / str(system.interpreter_layer))
    on = {"device": training_device(recipe.model.device), "four_bit": system.four_bit}
    model, tokenizer = load_model(recipe.model.model_copy(update=on))
    interpreter.check_fits(model, tokenizer, fingerprint=not system.four_bit)
    benign = [prompt for prompt in development_prompts(recipe) if prompt.harmful is False]
    labelled = interpreter_tables(recipe)
    layer = interpreter.config.read_point.layer
    known = None if system.four_bit else development_states(labelled, layer, run.path)
    align_system(
        model,
        tokenizer,
        interpreter,
        AlignmentTables(
            preferences_of(run, system),
            labelled.development,
            load_joined(recipe.layer_search.prompts),
            benign,
            labelled.calibration,
            harmless_text(recipe) if system.trusts else (),
            refusals_of(recipe),
            known,
        ),
        system,
        recipe.alignment,
        recipe.interpreter,
        folder,
        name=label,
        base=model_folder(recipe.model.path, recipe.model.revision).name,
        seed=recipe.seed,
        floor=_floor(run, tokenizer, interpreter if system.guarded else None, benign),
    )


def _floor(
    run: RunFolder, tokenizer: Any, interpreter: SafetySemanticInterpreter | None, benign: Sequence[Prompt]
) -> HelpfulnessFloor | None:
    """What watches helpfulness while a system is trained, if the recipe asks for it."""
    section, evaluation = run.recipe.alignment, run.recipe.evaluation
    if section.watch_every is None:
        return None
    panel = Panel(*make_judges(evaluation.judges, run.path / "verdicts"), settings=evaluation)

    def measure(model: Any) -> float:
        policy = Policy(condition=section.condition or DEFAULT_CONDITION)
        guard = Guard(model, tokenizer, interpreter, policy, aligned=True) if interpreter else None
        system = LocalModel(model, tokenizer, guard, GenerationSettings(max_new_tokens=evaluation.max_new_tokens))
        tasks = [("development", prompt) for prompt in benign]
        samples = []
        for batch in plan_batches(tasks, system, evaluation.batch_size, evaluation.batch_tokens or system.budget):
            chosen = [tasks[row] for row in batch]
            samples += panel.samples(chosen, system([prompt for _, prompt in chosen]))
        return rate_of(samples, "helpful", clustered=False).value or 0.0

    return HelpfulnessFloor(measure, section.helpfulness_floor, section.watch_every, section.stop_at_floor)
