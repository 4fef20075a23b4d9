"""The cards of a run's trained models, from what the run recorded and measured."""

from typing import Any

from lasa.conditioning.condition import DEFAULT_CONDITION
from lasa.files.artifacts import read_json, write_text
from lasa.files.cards import model_card
from lasa.report.run_folder import Run, without_folders

EMBEDDED = (
    "The base model is the embedded one, a tiny model in a made-up world whose bottleneck is planted: nothing here is "
    "evidence about large models."
)


def write_model_cards(run: Run) -> None:
    """Write the card of every trained system of a run, `systems/<name>/README.md`, from what the run measured."""
    for folder in sorted((run.folder / "systems").glob("[!.]*")):
        if (folder / "lasa.json").is_file():
            write_text(folder / "README.md", model_card(system_facts(run, folder.name)))


def system_facts(run: Run, name: str) -> dict[str, Any]:
    """What `model_card` states of a trained system of a run."""
    made = read_json(run.folder / "systems" / name / "lasa.json")
    settings = made.get("settings") or {}
    measured = run.systems.get(name) or {}
    drift, choice = measured.get("drift") or {}, measured.get("sweep_choice")
    alignment = run.recipe.get("alignment") or {}
    conditioned = made.get("signal", "none") != "none"
    source = without_folders(str(alignment.get("preferences") or ""))
    graded = (run.interpreter.get("coverage") or {}).get("languages") or {}
    rows = f"{made['rows']:,} rows, {made['conditioned']:,} of them with the condition" if "rows" in made else ""
    return {
        "base_model": run.model_name or made.get("base"),
        "layer": run.interpreter.get("layer") if conditioned else None,
        "languages": run.seen_languages,
        "metrics": measured,
        "data": {"preferences": ", ".join(filter(None, [source, rows]))},
        "method": str(settings.get("method") or "").upper(),
        "condition": (alignment.get("condition") or DEFAULT_CONDITION) if conditioned else None,
        "guarded": settings.get("guarded"),
        "coverage": {code: one["grade"] for code, one in graded.items()} if conditioned else {},
        "limits": [
            *([EMBEDDED] if run.uses_embedded_model else []),
            *([f"Interpreter: {drift['verdict']}"] if drift.get("verdict") else []),
            *([f"Settings: {choice['verdict']}"] if choice else []),
        ],
    }
