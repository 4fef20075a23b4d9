"""A recipe over small files and a tiny random model: every stage of a run in seconds."""

import json
from pathlib import Path
from typing import Any

from conftest import build_model
from lasa.data.preferences import Preference
from lasa.data.prompt_tables import write_prompts
from lasa.data.world import tables

LANGUAGES = ("en", "zh", "sw")
SYSTEMS = {
    "base": {},
    "surface-sft": {"method": "sft"},
    "surface-kto": {"method": "kto"},
    "interpreter-only": {"guarded": True},
    "lasa": {"method": "kto", "signal": "interpreter", "guarded": True},
}


def write_preferences(path: Path, preferences: list[Preference]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for one in preferences:
            row = {
                "prompt": list(one.prompt.messages),
                "chosen": one.chosen,
                "rejected": one.rejected,
                "language": one.prompt.language,
                "query_id": one.prompt.query_id,
                "harmful": one.prompt.harmful,
            }
            file.write(json.dumps(row) + "\n")


def write_model(folder: Path, tokenizer: Any, family: str = "llama") -> None:
    build_model(family, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_recipe(folder: Path, systems: dict[str, Any] = SYSTEMS, batch_size: int = 64) -> dict[str, Any]:
    """A recipe for the model at `folder/model`, with the files that it names."""
    deeds = tables.safety_deeds("train")[::12]
    write_prompts(folder / "search.jsonl", tables.parallel_prompts(deeds[:12], LANGUAGES, templates=(0,)))
    write_prompts(folder / "train.jsonl", tables.interpreter_prompts(LANGUAGES, 24))
    write_prompts(folder / "test.jsonl", tables.evaluation_prompts("combinations", 3, LANGUAGES))
    write_prompts(folder / "hard.jsonl", tables.evaluation_prompts("templates", 3, LANGUAGES))
    write_preferences(folder / "preferences.jsonl", tables.preferences(("en",), 6, 6, LANGUAGES))
    training = {"learning_rate": 1e-3, "steps": 2, "batch_size": 4, "warmup_steps": 1}
    return {
        "model": {"path": str(folder / "model")},
        "seen_languages": ["en", "zh"],
        "layer_search": {"prompts": [str(folder / "search.jsonl")], "layer": 2, "resamples": 50},
        "interpreter": {"train": [str(folder / "train.jsonl")], "epochs": 2, "seeds": 1, "kind": "linear"},
        "alignment": {"preferences": str(folder / "preferences.jsonl")},
        "systems": {name: {**training, **system} if "method" in system else system for name, system in systems.items()},
        "evaluation": {
            "benchmarks": {"combinations": str(folder / "test.jsonl"), "templates": str(folder / "hard.jsonl")},
            "judge": "embedded-world",
            "max_new_tokens": 4,
            "batch_size": batch_size,
        },
    }
