"""TRL's trainers as they are, on rows that are tokenized and paired already, with two optional terms added to KTO.

The trainers' own preparation would render again, add terminators and pair KL completions in dataset order:
`_prepare_dataset` is the one private method that is replaced.
"""

from collections.abc import Iterable
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor
from trl import DPOTrainer, KTOTrainer, SFTTrainer

from lasa.alignment.consistency import Consistency
from lasa.alignment.processes import sharding
from lasa.alignment.soundness import StayFinite


class _Tokenized:
    """Leaves a dataset of token ids as it is.

    Attributes:
        watch: Ends the training where a loss is not finite, or None.
        stored: Type in which the weights of a model that is spread over processes are saved; None as they are.
    """

    watch: StayFinite | None = None
    stored: torch.dtype | None = None

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _save(self: Any, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.stored is not None and state_dict is not None:
            state_dict = {k: v.to(self.stored) if v.is_floating_point() else v for k, v in state_dict.items()}
        super()._save(output_dir, state_dict=state_dict)  # type: ignore[misc]

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        """A step in which adapters read what their maps read, as autocast computes in its type anyway.

        PEFT would give each a float32 copy, of which autocast makes one more in bfloat16 and keeps it.
        """
        with disable_input_dtype_casting(self.model, active=self.args.bf16 and not sharding()):
            return super().training_step(*args, **kwargs)  # type: ignore[misc]

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss, of batches that the watch knows of."""
        if self.watch is not None:
            self.watch.begin(inputs, self.state.global_step + 1)
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        self._check("the loss", [loss])
        return loss

    def _check(self, what: str, values: Iterable[Tensor]) -> None:
        if self.watch is not None:
            self.watch.check(what, values)


class TokenizedSFTTrainer(_Tokenized, SFTTrainer):  # type: ignore[misc]
    """SFT on rows that are tokenized already."""


class TokenizedDPOTrainer(_Tokenized, DPOTrainer):  # type: ignore[misc]
    """DPO on pairs that are tokenized already."""


class TokenizedKTOTrainer(_Tokenized, KTOTrainer):  # type: ignore[misc]
    """KTO on rows that are tokenized and have their KL partner already.

    Attributes:
        answer_weight: Weight of the negative log-likelihood of desirable answers, an anchor; 0 for none.
        consistency: The multi-lingual term, or None.
    """

    answer_weight = 0.0
    consistency: Consistency | None = None
    _place = (-1, 0)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        outputs: list[Any] = []

        def watched(*args: Any, **kwargs: Any) -> Any:
            outputs.append(model(*args, **kwargs))
            return outputs[-1]

        loss = super()._compute_loss(watched, inputs, return_outputs)
        self._check("a log-probability", [one.log_probs for one in outputs])  # KTO's mean passes over them
        self._check("a reference log-probability", [inputs[n] for n in inputs if n.startswith("ref_")])
        if self.answer_weight:
            loss = loss + self.answer_weight * _answer_loss(outputs[-1].log_probs, inputs)
        if self.consistency is not None:
            inner, pad = self.accelerator.unwrap_model(model), self.processing_class.pad_token_id
            loss = loss + self.consistency.loss(inner, self._batch(), pad)
        return loss

    def _batch(self) -> int:
        """The number of this batch among those of all steps and processes, also in a training that was resumed."""
        step, arguments = self.state.global_step, self.args
        self._place = (step, self._place[1] + 1 if self._place[0] == step else 0)
        mine = step * arguments.gradient_accumulation_steps + self._place[1]
        return int(mine * arguments.world_size + arguments.process_index)


def _answer_loss(log_probs: Tensor, inputs: Any) -> Tensor:
    """Mean negative log-likelihood of the tokens of a batch's desirable answers; 0 where it has none.

    From the pass that KTO's own loss has made: a second one would cost as much again, and processes that share a
    sharded model must make the same passes whatever is in their batch.
    """
    wanted: Tensor = inputs["completion_mask"][:, 1:].bool() & inputs["label"].bool()[:, None]
    wanted = wanted.to(log_probs.device)
    return -log_probs[:, -wanted.shape[1] :].masked_fill(~wanted, 0.0).sum() / wanted.sum().clamp(min=1)
