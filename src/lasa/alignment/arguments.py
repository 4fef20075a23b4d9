"""What TRL's trainers are told: their arguments, and the adapter that they are to make."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from lasa.alignment.settings import SystemSettings
from lasa.models.loading import cpu_multiplies_bfloat16

_NAMES = ("activation_checkpointing", "gradient_checkpointing")
CHECKPOINTING = next(name for name in _NAMES if name in TrainingArguments.__dataclass_fields__)
"""The trainers' argument for it, which later releases of transformers 5 have renamed."""


def trainer_arguments(model: Any, settings: SystemSettings, folder: Path, seed: int) -> dict[str, Any]:
    """The arguments that SFT, KTO and DPO share.

    Args:
        model: What is trained; its type and place decide on the precision.
        settings: The system's.
        folder: For checkpoints.
        seed: The trainer's.
    """
    on_cpu = not torch.cuda.is_available() and model.device.type == "cpu"
    bfloat16 = model.dtype == torch.bfloat16 and (torch.cuda.is_available() or (on_cpu and cpu_multiplies_bfloat16()))
    return {
        "output_dir": str(folder),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_steps,
        "max_steps": settings.steps or -1,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        CHECKPOINTING: settings.gradient_checkpointing,
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
        "bf16": bfloat16,
        "use_cpu": bfloat16 and on_cpu,  # without it transformers looks for a GPU
        "weight_decay": settings.weight_decay,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
    }


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
