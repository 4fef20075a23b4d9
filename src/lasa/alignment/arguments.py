"""What TRL's trainers are told: their arguments, and the adapter that they are to make."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from lasa.alignment.settings import SystemSettings
from lasa.errors import RecipeError
from lasa.launch import launched
from lasa.models.layers import num_parameters
from lasa.models.loading import cpu_multiplies_bfloat16

_NAMES = ("activation_checkpointing", "gradient_checkpointing")
CHECKPOINTING = next(name for name in _NAMES if name in TrainingArguments.__dataclass_fields__)
"""The trainers' argument for it, which later releases of transformers 5 have renamed."""

LARGE = 10**9
"""Parameters above which activations are computed twice, where the settings do not say."""


def trainer_arguments(model: Any, settings: SystemSettings, folder: Path, seed: int) -> dict[str, Any]:
    """The arguments that SFT, KTO and DPO share.

    Args:
        model: What is trained; its type and place decide on the precision.
        settings: The system's.
        folder: For checkpoints.
        seed: The trainer's.
    """
    gpus = torch.cuda.is_available()
    on_cpu = model.device.type == "cpu"
    bfloat16 = model.dtype == torch.bfloat16 and (cpu_multiplies_bfloat16() if on_cpu else gpus)
    stays = on_cpu and gpus and not launched()  # `device: cpu` on a machine with GPUs
    checkpointing = settings.gradient_checkpointing
    return {
        **_optimizer(settings),
        "output_dir": str(folder),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_steps,
        "max_steps": settings.steps or -1,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        CHECKPOINTING: num_parameters(model) > LARGE if checkpointing is None else checkpointing,
        "max_length": settings.max_length,
        "seed": seed,
        "report_to": [],
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": settings.save_steps or 500,
        "save_total_limit": 1,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it logs a loss that is not finite as 0
        "disable_tqdm": True,
        "bf16": bfloat16 and settings.optimizer != "adamw_bfloat16",  # else nothing is left to cast
        "use_cpu": (bfloat16 and on_cpu) or stays,  # without it transformers looks for a GPU
        "weight_decay": settings.weight_decay,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
    }


def _optimizer(settings: SystemSettings) -> dict[str, str]:
    """The trainers' argument for an optimiser that is not their default; see `lasa.alignment.optimizer` for ours.

    Raises:
        RecipeError: It needs bitsandbytes, which is not installed.
    """
    if not settings.optimizer.endswith("8bit"):
        return {}
    if find_spec("bitsandbytes") is None:
        raise RecipeError(
            f"The optimiser {settings.optimizer} needs the package bitsandbytes: `pip install bitsandbytes`. Without "
            "it, adamw_bfloat16 takes as little memory."
        )
    return {"optim": settings.optimizer}


def one_device(config: Any) -> Any:
    """A trainer's configuration, on one device in this process.

    With several GPUs to be seen, transformers would copy the model to each for every batch (`DataParallel`).
    """
    if config.n_gpu > 1:
        config._n_gpu = 1
    return config


def adapter_config(settings: SystemSettings, behind: list[int] | None) -> Any:
    """What a trainer makes its adapter from, or None; its reference is the base with the adapter switched off.

    Args:
        settings: Its rank.
        behind: Token ids of the condition that it acts behind, or None for everywhere.
    """
    if not settings.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_rank,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_targets or "all-linear",
        task_type="CAUSAL_LM",
        alora_invocation_tokens=behind,
    )
