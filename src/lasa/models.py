"""Load any local Hugging Face causal LM and its tokenizer, with errors a person can act on."""

import json
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from lasa.artifacts import check_folder
from lasa.errors import ModelError
from lasa.hidden_states import check_readable
from lasa.rendering import check_tokenizer
from lasa.soft_condition import SOFT_CONDITION, SoftCondition

SHIPPED = {"embedded": "planted", "embedded-sister": "sister"}
"""Models inside the package; the sister was trained in the same way, without a planted bottleneck."""


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
    name: str, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False, four_bit: bool = False
) -> tuple[Any, Any]:
    """Load a model and its tokenizer, ready to be read and to generate.

    Args:
        name: Folder, or a shipped model. A PEFT adapter folder loads its base and the adapter.
        dtype: One of `DTYPES`; `auto` is as stored, and float32 on a CPU.
        device: `auto` (every GPU there is, else the CPU) or a torch device.
        trust_remote_code: Run code that the model folder brings along.
        four_bit: Hold the weights in 4 bits (NF4), to train an adapter on top; needs bitsandbytes and a GPU.

    Raises:
        ModelError: The folder is no causal LM, its tokenizer has no chat template, or the files are damaged.
        ArtifactError: The folder was written by lasa, and a file of it was altered since.
    """
    if dtype not in DTYPES:
        raise ModelError(f"Unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}.")
    folder = model_folder(name)
    check_folder(folder)
    transformers_logging.disable_progress_bar()
    adapter = folder / "adapter_config.json"
    base = folder
    if adapter.is_file() and not (folder / "config.json").is_file():
        base = model_folder(str(json.loads(adapter.read_text("utf-8")).get("base_model_name_or_path")))
    _check_causal(base, trust_remote_code)
    has_gpu = torch.cuda.is_available()
    on_cpu = device.startswith("cpu") or (device == "auto" and not has_gpu)
    chosen = torch.float32 if dtype == "auto" and on_cpu else dtype
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            base,
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
            dtype=chosen,
            device_map="auto" if has_gpu and device == "auto" else None,
            trust_remote_code=trust_remote_code,
            **({"quantization_config": four_bit_settings()} if four_bit else {}),  # None would undo the folder's own
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder if (folder / "tokenizer_config.json").is_file() else base, trust_remote_code=trust_remote_code
        )
        if base != folder:
            from peft import PeftModel

            if not (folder / "adapter_model.safetensors").is_file():
                raise ModelError(f"{name} has no adapter_model.safetensors. Save the adapter as safetensors.")
            model = PeftModel.from_pretrained(model, folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{name} cannot be loaded: {error}. If the files are damaged, fetch the model again."
        ) from error
    if loaded["missing_keys"]:  # transformers would go on with random weights
        raise ModelError(
            f"{name} lacks weights that its config.json asks for (first: {min(loaded['missing_keys'])}). "
            "Is it complete, and of this architecture? Fetch the model again."
        )
    if device != "auto":
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise ModelError(f"The model cannot be moved to the device {device!r}: {error}. Try `auto`.") from error
    if (folder / SOFT_CONDITION).is_file():
        SoftCondition.load(model, folder / SOFT_CONDITION)
    check_tokenizer(tokenizer)
    tokenizer.padding_side = "left"
    check_readable(model)
    return model.eval(), tokenizer


def four_bit_settings() -> Any:
    """How QLoRA holds the base model (Dettmers et al., 2023): NF4 with double quantisation, computing in bfloat16.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            "A base model in 4 bits (four_bit) needs the package bitsandbytes: `pip install bitsandbytes`. "
            "Without it, train an adapter on the model as it is stored (four_bit: false)."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


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
