"""Merge an adapter into its base model: a plain checkpoint that any engine serves."""

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig

from lasa.errors import ModelError
from lasa.files.artifacts import disk_errors, seal_folder
from lasa.models.activated import ADAPTER_CONFIG, stored_tokens
from lasa.models.loading import load_model
from lasa.models.origin import model_folder
from lasa.models.soft_condition import SOFT_CONDITION

KEPT = ("lasa.json", "training.json", "drift.json", "perplexity.json", "interpreter")
"""What lies beside an adapter and belongs to the merged model as well."""


def merge_adapter(folder: Path, output: Path) -> None:
    """Write the base model with an adapter in its weights, in the base's own precision; summed in float32.

    Args:
        folder: The adapter.
        output: Where the merged model goes; it appears when it is complete.

    Raises:
        ModelError: The folder holds no adapter, or one that acts at some tokens only; or `output` exists.
    """
    if output.exists():
        raise ModelError(f"{output} exists already. Name another folder for the merged model, or remove it.")
    if not (model_folder(str(folder)) / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds a whole model, not an adapter: there is nothing to merge.")
    if stored_tokens(folder):
        raise ModelError(
            f"The adapter in {folder} acts only behind the condition; merged, it would act everywhere. Serve it as it "
            "is, or align with adapter: everywhere."
        )
    if (folder / SOFT_CONDITION).is_file():
        raise ModelError(
            f"{folder} was aligned with a soft condition, which is no part of the weights. Serve it as it is."
        )
    network, tokenizer = load_model(str(folder), dtype="float32")
    stored = AutoConfig.from_pretrained(network.peft_config[network.active_adapter].base_model_name_or_path).dtype
    try:
        merged = network.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(f"{folder} cannot be merged: {error}. Train the adapter again.") from error
    unfinished = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with disk_errors(unfinished):
        merged.to(stored or torch.float32).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        for name in KEPT:
            if (folder / name).is_dir():
                shutil.copytree(folder / name, unfinished / name)
            elif (folder / name).is_file():
                shutil.copy(folder / name, unfinished / name)
        seal_folder(unfinished)
        unfinished.rename(output)
