"""What each system of a run is, in plain words, from the recipe."""

from lasa.report.run_folder import Document, Run

_GUARD = (
    "Behind the guard, a small interpreter reads every prompt inside the model; where it finds harm, the answer is "
    "begun with an instruction to refuse."
)

_SIGNALS = {
    "interpreter": "with the interpreter's decisions",
    "soft": "with the interpreter's probability",
    "label": "with the labels of the prompts instead of the interpreter's decisions",
    "sampled": "with a random signal instead of the interpreter's decisions",
    "always": "with the guard's instruction before every answer",
    "none": "without the interpreter",
}


def system_descriptions(run: Run) -> dict[str, str]:
    """A sentence on each measured system, by its name; empty where the recipe does not tell."""
    settings = run.recipe.get("systems")
    if not isinstance(settings, dict):
        return {}
    return {name: _described(settings[name] or {}) for name in run.systems if name in settings}


def guard_explanation(run: Run) -> str:
    """What "behind the guard" means; empty where no system is."""
    return _GUARD if any("behind the guard" in told for told in system_descriptions(run).values()) else ""


def _described(system: Document) -> str:
    method = system.get("method")
    made = "the model as it came"
    if method:
        made = (
            f"trained ({str(method).upper()}) on safety data {_SIGNALS.get(system.get('signal', 'none'), '')}".strip()
        )
    layer = system.get("interpreter_layer")
    where = f", read at another layer on purpose ({layer})" if layer is not None else ""
    guard = ", behind the guard" if system.get("guarded") else ""
    instead = " that gives a fixed refusal instead of an answer" if system.get("action") == "refuse" else ""
    return f"{made}{where}{guard}{instead}."
