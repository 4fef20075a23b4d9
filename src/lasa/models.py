"""Load any local Hugging Face causal LM and its tokenizer, with errors a person can act on."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from lasa.errors import ModelError
from lasa.hidden_states import check_readable
from lasa.rendering import check_tokenizer

SHIPPED = {"embedded": "planted"}
"""Models inside the package."""


DTYPES = ("auto", "float32", "bfloat16", "float16")


def model_folder(name: str) -> Path:
    """The folder of a model: a path, or one of the shipped models.

    Raises:
        ModelError: There is no such folder, or it holds no model.
    """
    if name in SHIPPED:
        return Path(str(files("lasa.embedded").joinpath("weights", SHIPPED[name])))
    folder = Path(name)
    if not folder.is_dir():
        raise ModelError(
            f"No such model folder: {name}. Give the path of a local Hugging Face model "
            f"(config.json, weights, tokenizer), or one of: {', '.join(SHIPPED)}."
        )
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{name} holds no model: config.json is missing.")
    return folder


def load_model(
    name: str, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Load a model and its tokenizer, ready to be read and to generate.

    Args:
        name: Folder, or a shipped model. A PEFT adapter folder loads its base and the adapter.
        dtype: One of `DTYPES`; `auto` is as stored, and float32 on a CPU.
        device: `auto` (every GPU there is, else the CPU) or a torch device.
        trust_remote_code: Run code that the model folder brings along.

    Raises:
        ModelError: The folder is no causal LM, its tokenizer has no chat template, or the files are damaged.
    """
    if dtype not in DTYPES:
        raise ModelError(f"Unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
    folder = model_folder(name)
    transformers_logging.disable_progress_bar()
    adapter = folder / "adapter_config.json"
    base = folder
    if adapter.is_file() and not (folder / "config.json").is_file():
        base = model_folder(str(json.loads(adapter.read_text("utf-8")).get("base_model_name_or_path")))
    _check_causal(base, trust_remote_code)
    has_gpu = torch.cuda.is_available()
    chosen = torch.float32 if dtype == "auto" and not (has_gpu and device in ("auto", "cuda")) else dtype
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=chosen,
            device_map="auto" if has_gpu and device == "auto" else None,
            trust_remote_code=trust_remote_code,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder if (folder / "tokenizer_config.json").is_file() else base, trust_remote_code=trust_remote_code
        )
        if base != folder:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{name} cannot be loaded: {error}. If the files are damaged, fetch the model again."
        ) from error
    if device != "auto":
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise ModelError(f"The model cannot be moved to the device {device!r}: {error}. Try `auto`.") from error
    check_tokenizer(tokenizer)
    tokenizer.padding_side = "left"
    check_readable(model)
    return model.eval(), tokenizer


def num_parameters(model: Any) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())


def _check_causal(folder: Path, trust_remote_code: bool) -> None:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: config.json is not that of a model transformers knows: {error}") from error
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in getattr(
        config, "auto_map", {}
    )
    if not known or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{folder} is a {config.model_type!r} model, not a causal language model. "
            "lasa needs a decoder-only model that generates text."
        )
