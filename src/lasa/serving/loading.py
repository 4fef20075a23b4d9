"""Put a guard together from a run folder, or from a model and an interpreter folder."""

from dataclasses import dataclass, replace
from pathlib import Path

from lasa.artifacts import read_json
from lasa.conditioning import DEFAULT_CONDITION, Policy
from lasa.errors import ArtifactError, GuardError
from lasa.guard import Guard
from lasa.interpreter import load_interpreter
from lasa.models import load_model, model_folder
from lasa.run_folder import interpreter_folder, open_run


@dataclass(frozen=True)
class Parts:
    """What a guard is put together from.

    Attributes:
        model: Folder of the model, or a shipped model.
        interpreter: Folder of the interpreter.
        condition: The conditional text.
        aligned: Whether the model was trained on top of the interpreter's base.
        dtype: Of the weights; see `load_model`.
        device: Where to compute.
        base: Fingerprint of the model that an aligned folder was trained from; empty where it does not say.
    """

    model: str
    interpreter: Path
    condition: str
    aligned: bool
    dtype: str
    device: str
    base: str = ""


def find_parts(
    *,
    run: Path | None = None,
    system: str = "lasa",
    model: str = "embedded",
    interpreter: Path | None = None,
    condition: str = DEFAULT_CONDITION,
    dtype: str = "auto",
    device: str = "auto",
) -> Parts:
    """The parts of a run's system, or a model with an interpreter.

    Args:
        run: Run folder; its system, interpreter and condition are used.
        system: Name of the run's system.
        model: Model folder, when there is no run.
        interpreter: Interpreter folder, when there is no run.
        condition: Conditional text, when neither a run nor the model folder says with which it was aligned.
        dtype: Of the weights, when there is no run.
        device: Where to compute; a run's recipe says where it is `auto`.

    Raises:
        GuardError: There is no interpreter, or no such system; nothing is served without a guard.
    """
    if run is not None:
        recipe = open_run(run)
        if system not in recipe.systems:
            raise GuardError(f"{run} has no system {system!r}; it has: {', '.join(recipe.systems)}.")
        aligned = bool(recipe.systems[system].method)
        folder = str(run / "systems" / system) if aligned else recipe.model.path
        place = recipe.model.device if device == "auto" else device
        text = recipe.alignment.condition or DEFAULT_CONDITION
        return Parts(folder, interpreter_folder(run, system), text, aligned, recipe.model.dtype, place)
    if interpreter is None:
        raise GuardError("A guard needs an interpreter. Give --run RUN, or --model DIR with --interpreter DIR.")
    card = model_folder(model) / "lasa.json"
    made = read_json(card) if card.is_file() else {}
    text = made.get("condition", condition)
    return Parts(model, interpreter, text, card.is_file(), dtype, device, made.get("base_fingerprint", ""))


def load_guard(
    *,
    run: Path | None = None,
    system: str = "lasa",
    model: str = "embedded",
    interpreter: Path | None = None,
    policy: Policy | None = None,
    force: bool = False,
    dtype: str = "auto",
    device: str = "auto",
) -> Guard:
    """A guard over a run's system, or over a model with an interpreter.

    Args:
        run: Run folder; its system, interpreter and condition are used.
        system: Name of the run's system.
        model: Model folder, when there is no run.
        interpreter: Interpreter folder, when there is no run.
        policy: Actions; the condition that the model was aligned with is kept.
        force: Also pair the interpreter with a model that it was not trained on.
        dtype: Of the weights, when there is no run; see `load_model`.
        device: Where to compute; a run's recipe says where it is `auto`.

    Raises:
        GuardError: There is no interpreter, or no such system; nothing is served without a guard.
        ArtifactError: The interpreter belongs to another model.
    """
    policy = policy or Policy()
    parts = find_parts(
        run=run,
        system=system,
        model=model,
        interpreter=interpreter,
        condition=policy.condition,
        dtype=dtype,
        device=device,
    )
    network, tokenizer = load_model(parts.model, dtype=parts.dtype, device=parts.device)
    probe = load_interpreter(parts.interpreter)
    probe.check_fits(network, tokenizer, fingerprint=not parts.aligned and not force)
    if parts.base and parts.base != probe.config.base_fingerprint and not force:
        raise ArtifactError(
            f"{parts.model} was aligned from another base model than the one that the interpreter in "
            f"{parts.interpreter} reads. Give the interpreter of its run, or force the pairing."
        )
    return Guard(network, tokenizer, probe, replace(policy, condition=parts.condition))
