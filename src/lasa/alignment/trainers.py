"""Train on token rows: SFT on the desirable answers, KTO on both, DPO on pairs; all of it, or an adapter.

The reference model of KTO and DPO is never kept beside the trained one: its log-probabilities are computed before
training, or come from the same weights with the adapter switched off.
"""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from lasa.alignment.arguments import adapter_config, trainer_arguments
from lasa.alignment.callbacks import (
    AdvanceProgress,
    CompleteCheckpoints,
    HelpfulnessFloor,
    WatchHelpfulness,
    last_checkpoint,
)
from lasa.alignment.consistency import Consistency
from lasa.alignment.kernels import training_kernels
from lasa.alignment.methods import precomputes_reference, prepare
from lasa.alignment.objectives import TokenizedKTOTrainer
from lasa.alignment.optimizer import StochasticAdamW
from lasa.alignment.processes import check_unsharded, check_wrapper, hand_over, sharding
from lasa.alignment.reference import no_second_model, with_reference
from lasa.alignment.rows import TrainingExample
from lasa.alignment.settings import SystemSettings
from lasa.alignment.soundness import StayFinite
from lasa.conditioning.condition import place_condition
from lasa.errors import RecipeError
from lasa.models.activated import Activation, acting_before_labels
from lasa.models.soft_condition import SOFT_CONDITION, soft_condition_of
from lasa.models.thinking import thinking_tail
from lasa.progress import progress, say

os.environ.setdefault("TRL_TELEMETRY_DISABLED", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        trainer: TRL's trainer, which knows how to save what it has trained.
        model: The trained model (a PEFT model around the base for LoRA).
        wrapper: Class that the model was trained in: its own on one process, else that of the parallel strategy.
        losses: Loss of every optimiser step.
        helpfulness: Step and share of every measurement that was taken while training.
        sharded: Whether each process holds a part of the model only.
    """

    trainer: Any
    model: Any
    wrapper: str
    losses: list[float]
    helpfulness: list[tuple[int, float]]
    sharded: bool


@training_kernels()
def train(
    model: Any,
    tokenizer: Any,
    rows: Sequence[TrainingExample],
    settings: SystemSettings,
    folder: Path,
    name: str,
    consistency: Consistency | None = None,
    floor: HelpfulnessFloor | None = None,
    seed: int = 0,
    condition: Sequence[int] = (),
) -> Trained:
    """Train a model on token rows.

    Args:
        model: The model; it is changed in place.
        tokenizer: Its tokenizer, for padding and checkpoints.
        rows: Shuffled token rows.
        settings: Method, strength and budget.
        folder: For the trainer's own checkpoints; where there are some, training goes on from the last.
        name: Shown with the progress.
        consistency: A multi-lingual term for KTO's loss, or None.
        floor: Watches helpfulness, or None.
        seed: The trainer's.
        condition: The condition's token ids, for an adapter that acts behind it.

    Raises:
        RecipeError: The settings cannot work on these rows, or the parallel strategy that was asked for is not in use.
        TrainingError: A loss, a gradient or a weight is not finite.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = _short_enough(rows, settings.max_length, name)
    behind = list(condition) if settings.adapter == "behind_condition" else None
    if behind is not None:
        rows = _conditioned(rows, name)
    soft = soft_condition_of(model)
    check_unsharded(soft, consistency)
    stored = model.dtype
    if settings.method != "sft":
        say(f"Preparing {name}: reference log-probabilities")
    try:
        trainer = make_trainer(
            model, tokenizer, rows, settings, trainer_arguments(model, settings, folder, seed), behind
        )
    except ValueError as error:
        if not settings.lora_targets or "modules" not in str(error):
            raise
        raise RecipeError(
            f"{name}: no adapter can be put onto lora_targets={settings.lora_targets}: {error}"
        ) from error
    trainer.watch = StayFinite(name, rows, settings.max_length)
    activation = Activation(trainer.model) if behind is not None else None
    tail = thinking_tail(tokenizer)
    width = len(place_condition(tail, condition, tail))
    if isinstance(trainer, TokenizedKTOTrainer):
        trainer.consistency = consistency
    if soft is not None:
        soft.embeddings.requires_grad_(True)  # PEFT freezes whatever is not its own
    total = settings.steps or len(trainer.get_train_dataloader()) // settings.accumulate * round(settings.epochs)
    with (
        progress(f"Aligning {name}", max(total, 1), "steps") as advance,
        acting_before_labels(trainer.model, width),
    ):
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(trainer.watch)
        trainer.add_callback(AdvanceProgress(advance))
        watch = WatchHelpfulness(name, floor)
        trainer.add_callback(watch)
        trainer.add_callback(CompleteCheckpoints(soft, activation))
        trainer.accelerator.wait_for_everyone()
        last = last_checkpoint(folder)
        if last is not None and soft is not None:
            soft.restore(last / SOFT_CONDITION)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    wrapper = check_wrapper(trainer)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trained = trainer.accelerator.unwrap_model(trainer.model).eval()
    if not settings.lora_rank and not sharding():
        trained.to(stored)
    trainer.stored = None if settings.lora_rank else stored
    return Trained(trainer, trained, wrapper, losses, watch.measured, sharding())


def make_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[TrainingExample],
    settings: SystemSettings,
    arguments: dict[str, Any],
    behind: list[int] | None = None,
) -> Any:
    """TRL's trainer of a model, which has everything that the training needs.

    Args:
        model: The model; where it is to be sharded, each process gives up its copy but the first.
        tokenizer: Its tokenizer.
        rows: Token rows.
        settings: Method, strength and budget.
        arguments: See `trainer_arguments`.
        behind: Token ids of the condition that the adapter acts behind, or None.
    """
    kind, config, data = prepare(model, rows, settings, arguments)
    own_reference = sharding() and settings.method != "sft" and precomputes_reference(model, settings)
    if sharding():
        data = with_reference(data, model, settings.max_length) if own_reference else data
        hand_over(model, model.dtype if settings.lora_rank else torch.float32)
    elif not settings.lora_rank:  # an update of 1e-6 is lost in the 8 bits of a bfloat16 weight, if that is rounded
        model.to(torch.bfloat16 if settings.optimizer == "adamw_bfloat16" else torch.float32)
    model.train()
    with no_second_model() if own_reference else nullcontext():
        trainer = kind(
            model=model,
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=adapter_config(settings, behind),
            optimizers=(_bfloat16_optimizer(model, settings), None),
        )
    if own_reference:
        trainer.precompute_ref_logps = True  # it was told otherwise, or it would compute them itself
    if isinstance(trainer, TokenizedKTOTrainer):
        trainer.answer_weight = settings.answer_weight
    return trainer


def _short_enough(rows: Sequence[TrainingExample], longest: int, name: str) -> list[TrainingExample]:
    """The rows that keep at least one token of their answer when they are cut at the longest length."""
    kept = [row for row in rows if len(row.prompt_ids) < longest]
    if not kept:
        raise RecipeError(
            f"{name}: no row has room for an answer; every prompt alone has max_length={longest} tokens or more. "
            "Raise max_length."
        )
    cut = sum(len(row.prompt_ids) + len(row.completion_ids) > longest for row in kept)
    if len(kept) < len(rows) or cut:
        say(
            f"{name}: with max_length={longest}, {len(rows) - len(kept):,} of {len(rows):,} rows have no room for an "
            f"answer and are left out, and {cut:,} answers are cut short."
        )
    return kept


def _conditioned(rows: Sequence[TrainingExample], name: str) -> list[TrainingExample]:
    """The rows in which an adapter behind the condition acts; the others are answered by the base all the same."""
    kept = [row for row in rows if row.conditioned]
    if not kept:
        raise RecipeError(
            f"{name}: the adapter acts behind the condition, and no row has one. Choose another signal (always, say), "
            "or adapter: everywhere."
        )
    if len(kept) < len(rows):
        say(
            f"{name}: {len(rows) - len(kept):,} of {len(rows):,} rows have no condition and are left to the base model."
        )
    return kept


def _bfloat16_optimizer(model: Any, settings: SystemSettings) -> StochasticAdamW | None:
    """The optimiser of our own, if it was chosen.

    Raises:
        RecipeError: The model is to be sharded: its parts are trained in float32.
    """
    if settings.optimizer != "adamw_bfloat16":
        return None
    if sharding():
        raise RecipeError("adamw_bfloat16 is for one GPU: a model that is sharded is trained in float32. Use adamw.")
    return StochasticAdamW(model.parameters(), settings.learning_rate, settings.weight_decay)
