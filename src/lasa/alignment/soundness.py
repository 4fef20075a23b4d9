"""A training that is no longer finite ends there, and a model that cannot answer is no system.

Losses that are not numbers hide easily: the trainer's own filter logs them as 0, KTO averages over the rows that are
left, and clipping by a norm that is not finite makes every weight so. Checked are, in each step, the loss and what KTO
makes it from, the norm of the gradients before they are used, and the weights before they can be saved.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from lasa.alignment.rows import TrainingExample
from lasa.conditioning.condition import place_condition
from lasa.errors import TrainingError
from lasa.models.activated import acting_before_labels, acting_in_rows, activation_of
from lasa.models.generation import GenerationSettings, GrowingAnswer, generate, terminators
from lasa.models.layers import input_device
from lasa.models.thinking import thinking_tail
from lasa.progress import say

SHOWN = 8
"""Rows that an error names at most."""


class StayFinite(TrainerCallback):  # type: ignore[misc]
    """Ends a training in the step in which something in it is not finite.

    Args:
        name: Of the system.
        rows: What is trained on.
        longest: Tokens at which a row is cut.
    """

    def __init__(self, name: str, rows: Sequence[TrainingExample], longest: int) -> None:
        self.name = name
        self._asked = {_key(row, longest): f"{row.query_id} ({row.language})" for row in rows}
        self._batches: list[Mapping[str, Any]] = []
        self._step = 0

    def begin(self, inputs: Mapping[str, Any], step: int) -> None:
        """A batch of a step is about to be computed."""
        if step != self._step:
            self._batches, self._step = [], step
        self._batches.append({name: inputs[name] for name in ("input_ids", "attention_mask")})

    def check(self, what: str, values: Iterable[Tensor]) -> None:
        """Something of the batch that was begun last.

        Raises:
            TrainingError: It is not finite.
        """
        if not all(bool(torch.isfinite(one).all()) for one in values):
            self._end(what, self._batches[-1:])

    def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        """The gradients, before they move a weight."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not _norm_is_finite(gradients):
            self._end("the norm of the gradients", self._batches)

    def on_step_end(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
        """The weights, before they can be saved."""
        if not _norm_is_finite([p.detach() for p in model.parameters() if p.requires_grad]):
            self._end("a weight", self._batches)

    def _end(self, what: str, batches: Sequence[Mapping[str, Any]]) -> None:
        rows = [
            self._asked.get(tuple(ids[mask.bool()].tolist()), "?")
            for batch in batches
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        rows = list(dict.fromkeys(rows))
        shown = ", ".join(rows[:SHOWN]) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
        raise TrainingError(
            f"{self.name}: {what} is not finite in step {self._step}, on the rows {shown}. Nothing of this training is "
            "kept as a system; the last checkpoint, if any was asked for (save_steps), stays. Lower learning_rate, or "
            "look at these rows; in bfloat16, try dtype: float32."
        )


def check_answer(
    model: Any, tokenizer: Any, rows: Sequence[TrainingExample], condition: Sequence[int], name: str
) -> None:
    """Ask a trained model one prompt that it was trained on, a conditioned one where there is one.

    An answer that makes no sense (nothing at all, or one token again and again) is a warning.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        rows: What it was trained on; the shortest is asked.
        condition: Token ids of the condition.
        name: Of the system.

    Raises:
        TrainingError: Its predictions are not finite.
    """
    row = min(rows, key=lambda one: (not one.conditioned, len(one.prompt_ids) + len(one.completion_ids)))
    tail, ends = thinking_tail(tokenizer), terminators(model, tokenizer)
    width = len(place_condition(tail, condition, tail)) if activation_of(model) else 0
    read = len(row.prompt_ids) - width
    ids = torch.tensor([row.prompt_ids + row.completion_ids], device=input_device(model))
    labels = ids.clone()
    labels[:, : len(row.prompt_ids)] = -100
    with torch.inference_mode(), acting_before_labels(model, width):
        predicted = model(input_ids=ids, labels=labels).logits
    if not torch.isfinite(predicted).all():
        raise TrainingError(
            f"{name}: asked the training prompt {row.query_id} ({row.language}), the trained model predicts nothing "
            "that is a number, so it is not kept. Lower learning_rate; in bfloat16, try dtype: float32."
        )
    settings = GenerationSettings(max_new_tokens=32)
    with acting_in_rows(model) as act_in:

        def open_rows() -> list[GrowingAnswer]:
            act_in([width > 0])
            forced = row.prompt_ids[read:]
            return [GrowingAnswer(tokenizer, ends, settings.max_new_tokens, forced=forced)]

        [answer] = generate(model, tokenizer, [row.prompt_ids[:read]], settings, open_rows, width)
    if not answer.text.strip():
        say(f"Warning: {name} answers the training prompt {row.query_id} ({row.language}) with nothing.")
    elif len(answer.token_ids) > 7 and len(set(answer.token_ids)) == 1:
        say(
            f"Warning: {name} answers the training prompt {row.query_id} ({row.language}) with one token, "
            f"{len(answer.token_ids)} times: it was trained too hard, or not on this."
        )


def _key(row: TrainingExample, longest: int) -> tuple[int, ...]:
    return tuple((row.prompt_ids + row.completion_ids)[:longest])


def _norm_is_finite(tensors: Sequence[Tensor]) -> bool:
    if not tensors:
        return True
    norm: Any = get_total_norm(tensors)
    whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of a model that is sharded
    return bool(torch.isfinite(whole))
