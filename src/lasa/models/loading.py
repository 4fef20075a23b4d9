"""Load any Hugging Face causal LM and its tokenizer, with errors a person can act on."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from lasa.errors import ModelError
from lasa.extras import named_extras
from lasa.files.artifacts import check_folder
from lasa.files.settings import check_settings
from lasa.models.activated import ADAPTER_CONFIG, Activation, stored_tokens
from lasa.models.checks import check_readable
from lasa.models.origin import ModelFiles, find_model
from lasa.models.rendering import check_template, check_tokenizer
from lasa.models.settings import ModelSettings
from lasa.models.soft_condition import SOFT_CONDITION, SoftCondition
from lasa.models.template import fix_template

FIRST_ALONE = "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""Variable with which accelerate asks that only the first process hold a model's weights until it is sharded."""


def load_model(model: str | ModelSettings, **settings: Any) -> tuple[Any, Any]:
    """Load a model and its tokenizer, ready to be read and to generate.

    Args:
        model: Its name (see `find_model`), or all its settings. A PEFT adapter loads its base and the adapter.
        settings: Further fields of `ModelSettings` (`dtype`, `device`, ...), where a name is given.

    Raises:
        ModelError: There is no such model, it is no causal LM, its tokenizer has no chat template, its files are
            damaged, or its numbers overflow.
        ArtifactError: The folder was written by lasa, and a file of it was altered since.
        RecipeError: A setting is unknown or out of bounds.
    """
    chosen = model if isinstance(model, ModelSettings) else _settings(model, settings)
    found = find_model(chosen.path, chosen.revision)
    check_folder(found.folder)
    transformers_logging.disable_progress_bar()
    adapter = None
    if (found.folder / ADAPTER_CONFIG).is_file() and not (found.folder / "config.json").is_file():
        adapter, found = found, _base_of(found)
    tokenizer = _load_tokenizer(chosen, found, adapter)
    network = _load_network(chosen, found)
    if adapter is not None:
        network = _put_on(adapter, network, tokenizer)
    if chosen.device != "auto":
        try:
            network = network.to(chosen.device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise ModelError(
                f"The model cannot be moved to the device {chosen.device!r}: {error}. Try `auto`."
            ) from error
    soft = (adapter or found).folder / SOFT_CONDITION
    if soft.is_file():
        SoftCondition.load(network, soft)
    check_readable(network, tokenizer)
    _copy_before_head(network)
    return network.eval(), tokenizer


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 matrices."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest torch
    return bool(able.get("amx_bf16") or able.get("avx512_bf16") or able.get("bf16"))


def _copy_before_head(network: Any) -> None:
    """Lay the states of the last tokens side by side before they reach the head.

    They are a slice of all tokens' states. Of a slice and a *frozen* matrix (the base under an adapter), PyTorch
    makes a batched product, for which a CPU copies the matrix once for every row: 64 rows of a vocabulary of 152,000
    take 17 GB and most of the time of an answer.
    """
    head = network.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda _, given: tuple(part.contiguous() for part in given))


def _base_of(adapter: ModelFiles) -> ModelFiles:
    stored = json.loads((adapter.folder / ADAPTER_CONFIG).read_text("utf-8"))
    base = stored.get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{adapter.name} is an adapter that does not say of which model (base_model_name_or_path).")
    if not (adapter.folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{adapter.name} has no adapter_model.safetensors. Save the adapter as safetensors.")
    return find_model(str(base), stored.get("revision"))


def _load_tokenizer(chosen: ModelSettings, found: ModelFiles, adapter: ModelFiles | None) -> Any:
    own = adapter is not None and (adapter.folder / "tokenizer_config.json").is_file()
    source = adapter if adapter is not None and own else found
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.folder,
            trust_remote_code=chosen.trust_remote_code,
            **source.gguf_option,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise _cannot_be_loaded(source, error) from error
    if chosen.chat_template is None:
        check_tokenizer(tokenizer)
    fix_template(tokenizer, chosen.template_options, chosen.template_date, chosen.chat_template)
    check_tokenizer(tokenizer)
    check_template(tokenizer)
    tokenizer.padding_side = "left"
    return tokenizer


def _load_network(chosen: ModelSettings, found: ModelFiles) -> Any:
    config = _causal_config(chosen, found)
    has_gpu = torch.cuda.is_available()
    dtype: Any = chosen.dtype
    if dtype == "auto" and (chosen.device.startswith("cpu") or (chosen.device == "auto" and not has_gpu)):
        stored = getattr(config.get_text_config(), "dtype", None)
        dtype = torch.bfloat16 if stored == torch.bfloat16 and cpu_multiplies_bfloat16() else torch.float32
    asked = {
        "attn_implementation": chosen.attention,
        # None would undo the quantisation of the folder's own config
        "quantization_config": four_bit_settings() if chosen.four_bit else None,
    }
    try:
        with _in_every_process():
            network, loaded = AutoModelForCausalLM.from_pretrained(
                found.folder,
                use_safetensors=True,  # never a pickle
                output_loading_info=True,
                dtype=dtype,
                device_map=_placement(chosen.device) if has_gpu else None,
                trust_remote_code=chosen.trust_remote_code,
                **found.gguf_option,
                **{name: value for name, value in asked.items() if value is not None},
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise _cannot_be_loaded(found, error) from error
    if loaded["missing_keys"]:  # transformers would go on with random weights
        raise ModelError(
            f"{found.name} lacks weights that its config.json asks for (first: {min(loaded['missing_keys'])}). "
            "Is it complete, and of this architecture? Fetch the model again."
        )
    network.config._name_or_path = network.name_or_path = found.name  # what an adapter will say it belongs to
    return network


@contextmanager
def _in_every_process() -> Iterator[None]:
    """Let each process of a launch have the weights that it loads, whatever the FSDP configuration says.

    With `fsdp_cpu_ram_efficient_loading`, transformers before 5.23 leaves zeros to all processes but the first, for
    FSDP to fill; a model that is read and never sharded would keep them.
    """
    asked = os.environ.pop(FIRST_ALONE, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[FIRST_ALONE] = asked


def _placement(device: str) -> Any:
    """Where the weights go while they are read from their files, on a machine with GPUs.

    Straight to the GPU that was named: on their way they take no main memory, which the processes of a launch would
    all need at once, and bitsandbytes would quantise them on the first GPU for every process.
    """
    if device == "auto":
        return "auto"
    return None if device.startswith("cpu") else {"": device}


def _put_on(adapter: ModelFiles, network: Any, tokenizer: Any) -> Any:
    with named_extras():
        from peft import PeftModel

    missing = len(tokenizer) - network.get_input_embeddings().num_embeddings
    if missing > 0:
        with safe_open(adapter.folder / "adapter_model.safetensors", "pt") as file:
            trained = any("embed" in name for name in file.keys())  # noqa: SIM118 - not a dictionary
        if not trained:
            raise ModelError(
                f"{adapter.name} comes with a tokenizer that has {missing} tokens more than the model that it belongs "
                "to, and with no embeddings for them. Save the adapter with its embeddings (PEFT: "
                "save_embedding_layers=True), or without the added tokens."
            )
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    try:
        # in the model's type, as servers run it: in float32 an answer takes half as long again
        adapted = PeftModel.from_pretrained(network, adapter.folder, autocast_adapter_dtype=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _cannot_be_loaded(adapter, error) from error
    if stored_tokens(adapter.folder):
        Activation(adapted)
    return adapted


def _cannot_be_loaded(found: ModelFiles, error: Exception) -> ModelError:
    if found.gguf and isinstance(error, ImportError):
        return ModelError(f"{found.gguf} is a GGUF file, which needs the package gguf: `pip install gguf`.")
    damaged = (
        "It is of an architecture that transformers does not read as GGUF, or damaged"
        if found.gguf
        else ("If the files are damaged, fetch the model again")
    )
    return ModelError(f"{found.name} cannot be loaded: {error}. {damaged}.")


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


def _causal_config(chosen: ModelSettings, found: ModelFiles) -> Any:
    try:
        config = AutoConfig.from_pretrained(
            found.folder,
            trust_remote_code=chosen.trust_remote_code,
            **found.gguf_option,
        )
    except ImportError as error:
        raise _cannot_be_loaded(found, error) from error
    except (OSError, ValueError, KeyError) as error:
        what = f"{found.gguf} is not a GGUF file" if found.gguf else "config.json is not that"
        raise ModelError(f"{found.name}: {what} of a model transformers knows: {error}") from error
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in getattr(
        config, "auto_map", {}
    )
    if not known or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{found.name} is a {config.model_type!r} model, not a causal language model. "
            "lasa needs a decoder-only model that generates text."
        )
    return config
