"""What a method is trained with: TRL's trainer, its configuration, and the rows as it takes them."""

from collections.abc import Sequence
from typing import Any

from trl import DPOConfig, KTOConfig, SFTConfig

from lasa.alignment.arguments import one_device
from lasa.alignment.objectives import TokenizedDPOTrainer, TokenizedKTOTrainer, TokenizedSFTTrainer
from lasa.alignment.processes import sharding, shared_rows
from lasa.alignment.rows import TrainingExample, kl_partners, separate_partners
from lasa.alignment.settings import SystemSettings
from lasa.errors import RecipeError
from lasa.models.soft_condition import soft_condition_of

Prepared = tuple[Any, Any, Any]
"""The trainer's class, its configuration, and its rows."""


def prepare(
    model: Any, rows: Sequence[TrainingExample], settings: SystemSettings, arguments: dict[str, Any]
) -> Prepared:
    """What the settings' method is trained with.

    Args:
        model: The model, in which a soft condition may be.
        rows: Token rows, shuffled.
        settings: Method, strength and budget.
        arguments: See `trainer_arguments`.

    Raises:
        RecipeError: The method cannot work on these rows, or in batches of this size.
    """
    assert settings.method is not None
    return _METHODS[settings.method](model, rows, settings, arguments)


def precomputes_reference(model: Any, settings: SystemSettings) -> bool:
    """Whether the reference cannot be had by switching an adapter off: a soft condition is trained beside it."""
    return not settings.lora_rank or soft_condition_of(model) is not None


def _sft(model: Any, rows: Sequence[TrainingExample], settings: SystemSettings, arguments: dict[str, Any]) -> Prepared:
    good = [row for row in rows if row.desirable]
    if not good:
        raise RecipeError("Supervised fine-tuning needs desirable answers ('chosen'); the preferences have none.")
    config = one_device(SFTConfig(**arguments, packing=False))
    data = shared_rows(
        [
            {
                "input_ids": (row.prompt_ids + row.completion_ids)[: settings.max_length],
                "labels": ([-100] * len(row.prompt_ids) + row.completion_ids)[: settings.max_length],
            }
            for row in good
        ],
        config,
    )
    return TokenizedSFTTrainer, config, data


def _kto(model: Any, rows: Sequence[TrainingExample], settings: SystemSettings, arguments: dict[str, Any]) -> Prepared:
    if settings.batch_size < 2:
        raise RecipeError("KTO pairs each row with another of its batch: batch_size must be at least 2.")
    config = one_device(
        KTOConfig(
            **arguments,
            beta=settings.beta,
            desirable_weight=settings.desirable_weight,
            undesirable_weight=settings.undesirable_weight,
            precompute_ref_log_probs=precomputes_reference(model, settings) and not sharding(),
        )
    )
    kept = _within_budget(separate_partners(rows, settings.batch_size), config)
    data = shared_rows(
        [
            {
                "prompt_ids": row.prompt_ids,
                "completion_ids": row.completion_ids,
                "KL_completion_ids": partner,
                "label": row.desirable,
            }
            for row, partner in zip(kept, kl_partners(kept, settings.batch_size), strict=True)
        ],
        config,
    )
    return TokenizedKTOTrainer, config, data


def _dpo(model: Any, rows: Sequence[TrainingExample], settings: SystemSettings, arguments: dict[str, Any]) -> Prepared:
    by_prompt: dict[tuple[int, ...], dict[bool, list[TrainingExample]]] = {}
    for row in rows:
        by_prompt.setdefault(tuple(row.prompt_ids), {True: [], False: []})[row.desirable].append(row)
    pairs = [(good, bad) for sides in by_prompt.values() for good in sides[True] for bad in sides[False]]
    if not pairs:
        raise RecipeError("DPO needs paired preferences ('chosen' and 'rejected' for the same prompt); there are none.")
    precompute = precomputes_reference(model, settings) and not sharding()
    config = one_device(DPOConfig(**arguments, beta=settings.beta, precompute_ref_log_probs=precompute))
    data = shared_rows(
        [
            {
                "prompt_ids": good.prompt_ids,
                "chosen_ids": good.completion_ids,
                "rejected_ids": bad.completion_ids,
            }
            for good, bad in _within_budget(pairs, config)
        ],
        config,
    )
    return TokenizedDPOTrainer, config, data


def _within_budget(shuffled: Sequence[Any], config: Any) -> Sequence[Any]:
    """As many rows or pairs as the steps can use: no reference log-probability is computed in vain."""
    if config.max_steps < 0:
        return shuffled
    batch = config.train_batch_size * config.world_size  # all devices of all processes
    return shuffled[: config.max_steps * config.gradient_accumulation_steps * batch]


_METHODS = {"sft": _sft, "kto": _kto, "dpo": _dpo}
