"""TRL's trainers as they are, on rows that are tokenized and paired already, with two optional terms added to KTO.

The trainers' own preparation would render again, add terminators and pair KL completions in dataset order:
`_prepare_dataset` is the one private method that is replaced.
"""

from typing import Any

from trl import DPOTrainer, KTOTrainer, SFTTrainer

from lasa.alignment.consistency import Consistency


class _Tokenized:
    """Leaves a dataset of token ids as it is."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class TokenizedSFTTrainer(_Tokenized, SFTTrainer):  # type: ignore[misc]
    """SFT on rows that are tokenized already."""


class TokenizedDPOTrainer(_Tokenized, DPOTrainer):  # type: ignore[misc]
    """DPO on pairs that are tokenized already."""


class TokenizedKTOTrainer(_Tokenized, KTOTrainer):  # type: ignore[misc]
    """KTO on rows that are tokenized and have their KL partner already.

    Attributes:
        answer_weight: Weight of the likelihood of desirable answers, an anchor; 0 for none.
        consistency: The multi-lingual term, or None.
    """

    answer_weight = 0.0
    consistency: Consistency | None = None

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        loss = super()._compute_loss(model, inputs, return_outputs)
        desirable = inputs["label"].bool()
        if self.answer_weight and desirable.any():
            ids, mask = inputs["input_ids"][desirable], inputs["completion_mask"][desirable]
            labels = ids.masked_fill(mask == 0, -100)
            anchor = model(input_ids=ids, attention_mask=inputs["attention_mask"][desirable], labels=labels).loss
            loss = loss + self.answer_weight * anchor
        if self.consistency is not None:
            inner, pad = self.accelerator.unwrap_model(model), self.processing_class.pad_token_id
            loss = loss + self.consistency.loss(inner, self.state.global_step, pad)
        return loss
