"""The folder of a training: what it was started with, its checkpoints, and what is left when it is finished."""

import shutil
from pathlib import Path
from typing import Any

from lasa.alignment.processes import ROWS
from lasa.alignment.settings import SystemSettings
from lasa.alignment.trainers import Trained
from lasa.errors import ArtifactError
from lasa.files.artifacts import disk_errors, read_json, write_json
from lasa.files.settings import resources
from lasa.launch import is_first
from lasa.models.activated import activation_of
from lasa.models.soft_condition import SOFT_CONDITION, soft_condition_of

STARTED = "training-started.json"
"""What an unfinished training is of: another one never goes on from its checkpoints."""


def unfinished_folder(folder: Path, started: dict[str, Any]) -> Path:
    """The folder of an unfinished training, with its checkpoints if it was started with all the same."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        same = _deciding(read_json(unfinished / STARTED)) == _deciding(started)
    except (ArtifactError, KeyError, TypeError):  # none, or none that this version wrote
        same = False
    if not same and is_first():
        shutil.rmtree(unfinished, ignore_errors=True)
        write_json(unfinished / STARTED, started)
    return unfinished


def _deciding(started: dict[str, Any]) -> dict[str, Any]:
    """What decides the result of a training that was started; settings that an older version had not are at default."""
    system = SystemSettings()
    settings = {**system.model_dump(), **started["settings"]}
    return {**started, "settings": {k: v for k, v in settings.items() if k not in resources(system)}}


def save_trained(trained: Trained, tokenizer: Any, folder: Path) -> None:
    """Write what was trained; the trainer knows how to gather a model that is spread over processes."""
    soft = soft_condition_of(trained.model)
    main = trained.trainer.is_world_process_zero()
    with disk_errors(folder):
        if soft is None:
            trained.trainer.save_model(str(folder))
            activation = activation_of(trained.model)
            if main and activation is not None:
                activation.complete(folder)
        elif main:
            weights = {k: v for k, v in trained.model.state_dict().items() if not k.endswith("soft_condition")}
            trained.model.save_pretrained(folder, state_dict=weights)
            soft.save(folder / SOFT_CONDITION)
    if main:
        tokenizer.save_pretrained(folder)
    if main and trained.sharded and trained.trainer.stored is not None:  # not the type it was trained in
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", {**config, "dtype": str(trained.trainer.stored).removeprefix("torch.")})
    trained.trainer.accelerator.wait_for_everyone()


def clean_up(folder: Path) -> None:
    """Remove what the trainer left in the folder of a finished training."""
    for name in (STARTED, "training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)
    for leftover in (folder / ROWS, *folder.glob("checkpoint-*")):
        shutil.rmtree(leftover, ignore_errors=True)
