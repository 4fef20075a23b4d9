"""TRL's trainers over token rows: SFT on the desirable answers, KTO on both, DPO on pairs.

The rows arrive tokenized, so the trainers' own preparation (which would render, add terminators and pair KL
completions in dataset order) is left out: `_prepare_dataset` is the one private method that is replaced.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from lasa.alignment.rows import TokenRow, kl_partners, separate_partners
from lasa.errors import RecipeError
from lasa.progress import Advance, progress, say

os.environ.setdefault("TRL_TELEMETRY_DISABLED", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

Method = Literal["sft", "kto", "dpo"]


@dataclass(frozen=True)
class TrainingSettings:
    """Budget and strength of an alignment; the defaults are those of the paper's public code.

    Attributes:
        method: `sft` learns the desirable answers, `kto` and `dpo` also what to avoid.
        learning_rate: Peak rate, reached after the warm-up, then a cosine.
        beta: How tightly KTO and DPO hold to the reference model.
        steps: Optimiser steps; None for `epochs` passes.
        epochs: Passes over the rows.
        batch_size: Rows per device and forward pass; KTO needs at least 2.
        accumulate: Batches per optimiser step.
        warmup_steps: Of the learning rate.
        max_length: Longest row in tokens.
        answer_weight: Weight of the likelihood of desirable answers added to KTO's loss (an anchor); 0 for none.
        lora_rank: Train a LoRA adapter of this rank instead of all weights; 0 for all.
        gradient_checkpointing: Trade time for memory.
        seed: Of the trainer.
    """

    method: Method = "kto"
    learning_rate: float = 1e-6
    beta: float = 0.1
    steps: int | None = None
    epochs: float = 3.0
    batch_size: int = 16
    accumulate: int = 1
    warmup_steps: int = 100
    max_length: int = 512
    answer_weight: float = 0.0
    lora_rank: int = 0
    gradient_checkpointing: bool = False
    seed: int = 0


def train(
    model: Any, tokenizer: Any, rows: Sequence[TokenRow], settings: TrainingSettings, folder: Path, name: str
) -> Any:
    """Train a model on token rows and return it.

    Args:
        model: The model; it is changed in place (a PEFT model around it is returned for LoRA).
        tokenizer: Its tokenizer, for padding and checkpoints.
        rows: Shuffled token rows.
        settings: Method, strength and budget.
        folder: For the trainer's own checkpoints; an interrupted training goes on from the last one.
        name: Shown with the progress.

    Raises:
        RecipeError: The settings cannot work on these rows.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    builders = {"sft": _sft, "kto": _kto, "dpo": _dpo}
    common: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_steps,
        "max_steps": settings.steps or -1,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "activation_checkpointing": settings.gradient_checkpointing,
        "max_length": settings.max_length,
        "seed": settings.seed,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "bf16": model.dtype == torch.bfloat16 and torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
    }
    if settings.lora_rank:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model,
            LoraConfig(
                r=settings.lora_rank,
                lora_alpha=2 * settings.lora_rank,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )
    model.train()
    if settings.method != "sft":
        say(f"Preparing {name}: reference log-probabilities of {len(rows):,} rows")
    trainer = builders[settings.method](model, tokenizer, rows, settings, common)
    total = settings.steps or len(trainer.get_train_dataloader()) // settings.accumulate * round(settings.epochs)
    with progress(f"Aligning {name}", max(total, 1), "steps") as advance:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Advance(advance))
        trainer.train()
    trained = trainer.accelerator.unwrap_model(trainer.model).eval()
    return trained


def _sft(
    model: Any, tokenizer: Any, rows: Sequence[TokenRow], settings: TrainingSettings, common: dict[str, Any]
) -> Any:
    good = [row for row in rows if row.desirable]
    if not good:
        raise RecipeError("Supervised fine-tuning needs desirable answers ('chosen'); the preferences have none.")
    data = Dataset.from_list(
        [
            {
                "input_ids": row.prompt_ids + row.completion_ids,
                "labels": [-100] * len(row.prompt_ids) + row.completion_ids,
            }
            for row in good
        ]
    )
    config = SFTConfig(**common, packing=False)
    return SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)


def _kto(
    model: Any, tokenizer: Any, rows: Sequence[TokenRow], settings: TrainingSettings, common: dict[str, Any]
) -> Any:
    if settings.batch_size < 2:
        raise RecipeError("KTO pairs each row with another of its batch: batch_size must be at least 2.")
    kept = separate_partners(rows, settings.batch_size)
    data = Dataset.from_list(
        [
            {
                "prompt_ids": row.prompt_ids,
                "completion_ids": row.completion_ids,
                "KL_completion_ids": partner,
                "label": row.desirable,
            }
            for row, partner in zip(kept, kl_partners(kept, settings.batch_size), strict=True)
        ]
    )
    config = KTOConfig(**common, beta=settings.beta, precompute_ref_log_probs=not settings.lora_rank)
    trainer = _TokenizedKTOTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.answer_weight = settings.answer_weight
    return trainer


def _dpo(
    model: Any, tokenizer: Any, rows: Sequence[TokenRow], settings: TrainingSettings, common: dict[str, Any]
) -> Any:
    by_prompt: dict[tuple[int, ...], dict[bool, TokenRow]] = {}
    for row in rows:
        by_prompt.setdefault(tuple(row.prompt_ids), {})[row.desirable] = row
    pairs = [sides for sides in by_prompt.values() if len(sides) == 2]
    if not pairs:
        raise RecipeError("DPO needs paired preferences ('chosen' and 'rejected' for the same prompt); there are none.")
    data = Dataset.from_list(
        [
            {
                "prompt_ids": sides[True].prompt_ids,
                "chosen_ids": sides[True].completion_ids,
                "rejected_ids": sides[False].completion_ids,
            }
            for sides in pairs
        ]
    )
    config = DPOConfig(**common, beta=settings.beta, precompute_ref_log_probs=not settings.lora_rank)
    return _TokenizedDPOTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)


class _TokenizedKTOTrainer(KTOTrainer):  # type: ignore[misc]
    """KTO on rows that are tokenized and paired already, with an optional likelihood anchor."""

    answer_weight = 0.0

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        loss = super()._compute_loss(model, inputs, return_outputs)
        if not self.answer_weight:
            return loss
        desirable = inputs["label"].bool()
        if not desirable.any():
            return loss
        ids, mask = inputs["input_ids"][desirable], inputs["completion_mask"][desirable]
        labels = ids.masked_fill(mask == 0, -100)
        anchor = model(input_ids=ids, attention_mask=inputs["attention_mask"][desirable], labels=labels).loss
        if return_outputs:
            return loss[0] + self.answer_weight * anchor, loss[1]
        return loss + self.answer_weight * anchor


class _TokenizedDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """DPO on pairs that are tokenized already."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class _Advance(TrainerCallback):  # type: ignore[misc]
    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.advance(1)
