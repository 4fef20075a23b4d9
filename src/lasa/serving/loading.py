"""Put a guard together from a run folder, or from a model and an interpreter folder."""

from dataclasses import replace
from pathlib import Path

from lasa.conditioning import DEFAULT_CONDITION, Policy
from lasa.errors import GuardError
from lasa.guard import Guard
from lasa.interpreter import load_interpreter
from lasa.models import load_model, model_folder
from lasa.run_folder import interpreter_folder, open_run


def load_guard(
    *,
    run: Path | None = None,
    system: str = "lasa",
    model: str = "embedded",
    interpreter: Path | None = None,
    policy: Policy | None = None,
    force: bool = False,
) -> Guard:
    """A guard over a run's system, or over a model with an interpreter.

    Args:
        run: Run folder; its system, interpreter and condition are used.
        system: Name of the run's system.
        model: Model folder, when there is no run.
        interpreter: Interpreter folder, when there is no run.
        policy: Actions; the condition of a run's recipe is kept.
        force: Also pair the interpreter with a model that it was not trained on.

    Raises:
        GuardError: There is no interpreter, or no such system; nothing is served without a guard.
        ArtifactError: The interpreter belongs to another model.
    """
    policy = policy or Policy()
    if run is not None:
        recipe = open_run(run)
        if system not in recipe.systems:
            raise GuardError(f"{run} has no system {system!r}; it has: {', '.join(recipe.systems)}.")
        aligned = bool(recipe.systems[system].method)
        folder = str(run / "systems" / system) if aligned else recipe.model.path
        network, tokenizer = load_model(folder, dtype=recipe.model.dtype, device=recipe.model.device)
        policy = replace(policy, condition=recipe.alignment.condition or DEFAULT_CONDITION)
        probe = load_interpreter(interpreter_folder(run, system))
    else:
        if interpreter is None:
            raise GuardError("A guard needs an interpreter. Give --run RUN, or --model DIR with --interpreter DIR.")
        network, tokenizer = load_model(model)
        probe = load_interpreter(interpreter)
        aligned = (model_folder(model) / "lasa.json").is_file()
    probe.check_fits(network, tokenizer, fingerprint=not aligned and not force)
    return Guard(network, tokenizer, probe, policy)
