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

from lasa.errors import ModelError
from lasa.files.artifacts import check_folder
from lasa.files.settings import check_settings
from lasa.models.activated import ADAPTER_CONFIG, Activation, stored_tokens
from lasa.models.hidden_states import check_readable
from lasa.models.rendering import check_tokenizer
from lasa.models.settings import ModelSettings
from lasa.models.soft_condition import SOFT_CONDITION, SoftCondition

SHIPPED = {"embedded": "planted", "embedded-sister": "sister"}
"""Models inside the package; the sister was trained in the same way, without a planted bottleneck."""


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
    if not (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{name} holds no model: config.json is missing.")
    return folder


def load_model(model: str | ModelSettings, **settings: Any) -> tuple[Any, Any]:
    """Load a model and its tokenizer, ready to be read and to generate.

    Args:
        model: Folder, or a shipped model; or all its settings. A PEFT adapter folder loads its base and the adapter.
        settings: Further fields of `ModelSettings` (`dtype`, `device`, ...), where a name is given.

    Raises:
        ModelError: The folder is no causal LM, its tokenizer has no chat template, or the files are damaged.
        ArtifactError: The folder was written by lasa, and a file of it was altered since.
        RecipeError: A setting is unknown or out of bounds.
    """
    chosen = model if isinstance(model, ModelSettings) else _settings(model, settings)
    name, device, trust_remote_code = chosen.path, chosen.device, chosen.trust_remote_code
    folder = model_folder(name)
    check_folder(folder)
    transformers_logging.disable_progress_bar()
    adapter = folder / ADAPTER_CONFIG
    base = folder
    if adapter.is_file() and not (folder / "config.json").is_file():
        base = model_folder(str(json.loads(adapter.read_text("utf-8")).get("base_model_name_or_path")))
    _check_causal(base, trust_remote_code)
    has_gpu = torch.cuda.is_available()
    on_cpu = device.startswith("cpu") or (device == "auto" and not has_gpu)
    dtype = torch.float32 if chosen.dtype == "auto" and on_cpu else chosen.dtype
    # None would undo the quantisation of the folder's own config
    quantisation = {"quantization_config": four_bit_settings()} if chosen.four_bit else {}
    try:
        network, loaded = AutoModelForCausalLM.from_pretrained(
            base,
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
            dtype=dtype,
            device_map="auto" if has_gpu and device == "auto" else None,
            trust_remote_code=trust_remote_code,
            **quantisation,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder if (folder / "tokenizer_config.json").is_file() else base, trust_remote_code=trust_remote_code
        )
        if base != folder:
            from peft import PeftModel

            if not (folder / "adapter_model.safetensors").is_file():
                raise ModelError(f"{name} has no adapter_model.safetensors. Save the adapter as safetensors.")
            network = PeftModel.from_pretrained(network, folder)
            if stored_tokens(folder):
                Activation(network)
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
            network = network.to(device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise ModelError(f"The model cannot be moved to the device {device!r}: {error}. Try `auto`.") from error
    if (folder / SOFT_CONDITION).is_file():
        SoftCondition.load(network, folder / SOFT_CONDITION)
    check_tokenizer(tokenizer)
    tokenizer.padding_side = "left"
    check_readable(network)
    return network.eval(), tokenizer


def _settings(name: str, settings: dict[str, Any]) -> ModelSettings:
    return check_settings(ModelSettings, {"path": name, **settings}, "load_model")


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
