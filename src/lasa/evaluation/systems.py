"""Open what is to be evaluated: a system of a run, or a model with or without an interpreter."""

from pathlib import Path
from typing import Any

from lasa.conditioning import Policy
from lasa.errors import RecipeError
from lasa.guard import Guard
from lasa.models import load_model
from lasa.run_folder import open_run
from lasa.serving.loading import load_guard


def open_system(
    *,
    run: Path | None = None,
    system: str | None = None,
    model: str = "embedded",
    interpreter: Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    policy: Policy | None = None,
) -> tuple[Any, Any, Guard | None]:
    """A run's system, or a model with or without an interpreter, ready to answer.

    Args:
        run: Run folder; its recipe says whether the system is guarded.
        system: Name of the run's system; the last one by default.
        model: Model folder, or a shipped model, when there is no run.
        interpreter: Interpreter folder; without it the model is not guarded.
        dtype: As in `load_model`; a run's recipe has its own.
        device: As in `load_model`.
        policy: What the guard does.

    Returns:
        Model, tokenizer, and the guard or None.

    Raises:
        LasaError: The run has no such system, or model and interpreter do not fit.
    """
    if run is None:
        if interpreter is None:
            return (*load_model(model, dtype=dtype, device=device), None)
        guard = load_guard(model=model, interpreter=interpreter, policy=policy, dtype=dtype, device=device)
        return guard.model, guard.tokenizer, guard
    recipe = open_run(run)
    name = system or list(recipe.systems)[-1]
    if name not in recipe.systems:
        raise RecipeError(f"{run} has no system {name!r}; it has: {', '.join(recipe.systems)}.")
    if recipe.systems[name].guarded:
        guard = load_guard(run=run, system=name, policy=policy, device=device)
        return guard.model, guard.tokenizer, guard
    folder = str(run / "systems" / name) if recipe.systems[name].method else recipe.model.path
    place = recipe.model.device if device == "auto" else device
    return (*load_model(folder, dtype=recipe.model.dtype, device=place), None)
