"""The reference of KTO and DPO for a model that is to be sharded: log-probabilities from the one model that is there.

TRL would load a second model, by name, into every process. Here each process computes its share of the
log-probabilities on the whole model that it has read the prompts with, before that is sharded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datasets import Dataset
from trl.trainer import dpo_trainer, kto_trainer

from lasa.alignment.processes import shared
from lasa.models.perplexity import token_losses

COLUMNS = {
    "completion_ids": "ref_logps",
    "KL_completion_ids": "ref_KL_logps",
    "chosen_ids": "ref_chosen_logps",
    "rejected_ids": "ref_rejected_logps",
}
"""Where the trainers look for the log-probability of the tokens in a column."""


def with_reference(data: Dataset, model: Any, longest: int) -> Dataset:
    """The rows with the log-probabilities of their answers.

    Args:
        data: Token rows of KTO or DPO.
        model: The base model.
        longest: Tokens at which a row is cut.
    """
    prompts = data["prompt_ids"]
    for answers, name in COLUMNS.items():
        if answers in data.column_names:
            rows = [(prompt, answer) for prompt, answer in zip(prompts, data[answers], strict=True)]
            data = data.add_column(name, shared(rows, lambda some: _log_probs(model, some, longest)))
    return data


def _log_probs(model: Any, rows: Any, longest: int) -> list[float]:
    losses = token_losses(model, [(prompt + answer)[:longest] for prompt, answer in rows])
    return [-sum(loss[len(prompt) - 1 :]) for loss, (prompt, _) in zip(losses, rows, strict=True)]


@contextmanager
def no_second_model() -> Iterator[None]:
    """Keeps a trainer that is made within from loading a reference model."""
    modules: tuple[Any, ...] = (kto_trainer, dpo_trainer)
    known = [module.create_model_from_path for module in modules]
    for module in modules:
        module.create_model_from_path = lambda *args, **kwargs: None
    try:
        yield
    finally:
        for module, one in zip(modules, known, strict=True):
            module.create_model_from_path = one
