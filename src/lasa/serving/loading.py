"""Put a guard together from a run folder, or from a model and an interpreter folder."""

from pathlib import Path

from lasa.conditioning import DEFAULT_CONDITION, Policy
from lasa.errors import GuardError
from lasa.guard import Guard
from lasa.interpreter import load_interpreter
from lasa.models import load_model
from lasa.run_folder import open_run


def load_guard(
    *,
    run: Path | None = None,
    system: str = "lasa",
    model: str = "embedded",
    interpreter: Path | None = None,
    policy: Policy | None = None,
) -> Guard:
    """A guard over a run's system, or over a model with an interpreter.

    Args:
        run: Run folder; its system, interpreter and condition are used.
        system: Name of the run's system.
        model: Model folder, when there is no run.
        interpreter: Interpreter folder, when there is no run.
        policy: Actions; the condition of a run's recipe is kept.

    Raises:
        GuardError: There is no interpreter, or no such system; nothing is served without a guard.
    """
    if run is not None:
        recipe = open_run(run)
        if system not in recipe.systems:
            raise GuardError(f"{run} has no system {system!r}; it has: {', '.join(recipe.systems)}.")
        folder = str(run / "systems" / system) if recipe.systems[system].method else recipe.model.path
        network, tokenizer = load_model(folder, dtype=recipe.model.dtype, device=recipe.model.device)
        chosen = policy or Policy(condition=recipe.alignment.condition or DEFAULT_CONDITION)
        return Guard(network, tokenizer, load_interpreter(run / "interpreter"), chosen)
    if interpreter is None:
        raise GuardError("A guard needs an interpreter. Give --run RUN, or --model DIR with --interpreter DIR.")
    network, tokenizer = load_model(model)
    return Guard(network, tokenizer, load_interpreter(interpreter), policy)
