"""Which system is meant: of a run, or a model with or without an interpreter. One place for where its parts lie."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lasa.conditioning.condition import DEFAULT_CONDITION
from lasa.errors import RecipeError
from lasa.files.artifacts import read_json
from lasa.guard.system import System
from lasa.models.origin import model_folder
from lasa.models.settings import ModelSettings
from lasa.run.folder import open_run
from lasa.run.recipe import Recipe


def find_system(
    *,
    run: Path | None = None,
    system: str | None = None,
    model: ModelSettings | None = None,
    interpreter: Path | None = None,
    condition: str = DEFAULT_CONDITION,
    forced: bool = False,
) -> System:
    """A run's system, or a model with or without an interpreter.

    Args:
        run: Run folder; its model, interpreter and condition are used.
        system: Name of the run's system; the last one by default.
        model: The model, the embedded one by default; of a run's own model, how it is loaded (`ModelSettings.loading`),
            where the recipe's device or precision is not meant.
        interpreter: Interpreter folder, when there is no run.
        condition: Conditional text, when neither a run nor the model folder says with which it was aligned.
        forced: Also guard a model that the interpreter was not trained on.

    Raises:
        LasaError: There is no such run, system or model.
    """
    if run is not None:
        recipe = open_run(run)
        name = system or list(recipe.systems)[-1]
        if name not in recipe.systems:
            raise RecipeError(f"{run} has no system {name!r}; it has: {', '.join(recipe.systems)}.")
        return replace(system_of_run(run, recipe, name, loading=model.loading if model else {}), forced=forced)
    model = model or ModelSettings(path="embedded")
    card = model_folder(model.path, model.revision) / "lasa.json"
    made = read_json(card) if card.is_file() else {}
    return System(
        name=Path(model.path).name + ("-guarded" if interpreter else ""),
        model=model,
        interpreter=interpreter,
        guarded=interpreter is not None,
        condition=made.get("condition", condition),
        aligned=card.is_file(),
        base=made.get("base_fingerprint", ""),
        forced=forced,
    )


def system_of_run(
    run: Path, recipe: Recipe, name: str, *, folder: Path | None = None, loading: Mapping[str, Any] | None = None
) -> System:
    """A system of a run; it is guarded by its own interpreter, if it was fitted again on it, else by the base's.

    Args:
        run: The run folder.
        recipe: Its recipe.
        name: The system.
        folder: Where the trained model lies, if not in its place (a point of a sweep).
        loading: How the model is loaded, where not as in the recipe.
    """
    settings = recipe.systems[name]
    trained = (folder or run / "systems" / name) if settings.method else None
    own = trained / "interpreter" if trained else run / "interpreter"
    model = recipe.model.model_copy(update=dict(loading or {}))
    if trained:  # it has its tokenizer, and so its template, beside it
        model = model.model_copy(update={"path": str(trained), "revision": None, "chat_template": None})
    return System(
        name=name,
        model=model,
        interpreter=own if own.is_dir() else run / "interpreter",
        guarded=settings.guarded,
        condition=recipe.alignment.condition or DEFAULT_CONDITION,
        action=settings.action,
        aligned=trained is not None,
    )
