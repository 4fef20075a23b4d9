"""Multi-lingual consistency: translations of one prompt should point in one direction (after MLC, arXiv 2602.16660).

The hidden states of a prompt's translations, each of length one, form a matrix of rank one exactly where they agree.
The loss takes its singular values as logits and asks for the first: no language is the anchor, and no answer in the
other languages is needed. A baseline here, to compare the condition with; the paper adds it to monolingual alignment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lasa.data.prompts import Prompt
from lasa.errors import RecipeError
from lasa.models.layers import forward_to_layers, input_device
from lasa.models.padding import right_pad
from lasa.models.rendering import render

TEMPERATURE = 1.0
"""Of the softmax over singular values, which lie between 0 and the root of the number of languages."""


@dataclass(frozen=True)
class Consistency:
    """The term that is added to an alignment's loss.

    Attributes:
        weight: Of the term.
        layer: Where the hidden states are read, at the last token.
        queries: For each query its translations, as rendered prompts in token ids.
        per_step: Queries that are read at every batch.
    """

    weight: float
    layer: int
    queries: list[list[list[int]]]
    per_step: int = 2

    def loss(self, model: Any, batch: int, pad: int) -> Tensor:
        """The term on the queries of a batch, which come round in order.

        Args:
            model: The model in training.
            batch: Counts the batches of all steps and processes.
            pad: Padding token id.
        """
        first = batch * self.per_step
        chosen = [self.queries[(first + offset) % len(self.queries)] for offset in range(self.per_step)]
        flat = [ids for query in chosen for ids in query]
        ids, mask = right_pad(flat, pad)
        device = input_device(model)
        read: list[Tensor] = []
        forward_to_layers(
            model,
            [self.layer],
            lambda _, states: read.append(states),
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
        )
        last = torch.tensor([len(row) - 1 for row in flat], device=read[0].device)  # not where the tokens go in
        states = read[0][torch.arange(len(flat), device=last.device), last]
        terms = [rank_one_loss(part) for part in torch.split(states, [len(query) for query in chosen])]
        return self.weight * torch.stack(terms).mean()


def rank_one_loss(states: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """How far the directions of several hidden states are from a single one; 0 only in the limit of a low temperature.

    Args:
        states: `[languages, H]`.
        temperature: Of the softmax over singular values.
    """
    values = torch.linalg.svdvals(torch.nn.functional.normalize(states.float(), dim=-1))
    return -torch.log_softmax(values / temperature, dim=0)[0]


def translations(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[list[int]]]:
    """Rendered prompts by query, for the queries that are there in at least two languages.

    Raises:
        RecipeError: There is none.
    """
    by_query: dict[tuple[str, str], list[list[int]]] = {}
    for prompt in prompts:
        rendered = render(tokenizer, prompt.messages).token_ids
        by_query.setdefault(prompt.question, []).append(rendered)
    found = [query for query in by_query.values() if len(query) > 1]
    if not found:
        raise RecipeError("A consistency term needs parallel prompts; there is no query in two languages.")
    return found
