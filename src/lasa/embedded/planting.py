"""Plant a semantic bottleneck: the states of one layer learn to point to what their prompt means, in any language.

A prompt's state must find the vector of its own meaning among those of the other prompts, as an image finds its caption
(Radford et al. 2021, "CLIP"). The vector of a meaning is the sum of learned vectors, one for each concept: so what is
alike in meaning lies close together, and what a prompt is about can be read from its state part by part.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from lasa.data.world.deeds import CONCEPTS, Deed
from lasa.embedded.batches import Batch
from lasa.models.layers import blocks_between, forward_to_layers

SIZES = (1.0, 1.0, 0.7, 1.5, 1.5)
"""Lengths of the vectors of `Deed.concepts`: that a verb is one of theft counts for more than which one it is."""


class Meanings(nn.Module):
    """The vectors of meanings; they are thrown away with the training.

    Args:
        width: Size of a vector, that of the hidden states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.index = {concept: number for number, concept in enumerate(CONCEPTS.names)}
        self.embedding = nn.Embedding(len(self.index), width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def forward(self, deeds: Sequence[Deed]) -> Tensor:
        """The sum of the vectors of each deed's concepts, which have the lengths `SIZES`, `[deeds, width]`."""
        ids = [[self.index[concept] for concept in deed.concepts] for deed in deeds]
        directions = F.normalize(self.embedding(torch.tensor(ids)).float(), dim=-1)
        return torch.tensor(SIZES) @ directions


def add_planting_gradient(
    model: LlamaForCausalLM,
    meanings: Meanings,
    prompts: Batch,
    deeds: Sequence[Deed],
    *,
    layer: int,
    temperature: float,
    weight: float,
) -> float:
    """Add the gradient of the planting term to that of language modelling, below the planted layer.

    In each weight its norm is set in proportion to the language model's: left alone it is up to a hundred times as
    large, and under Muon that is all that would count.

    Args:
        model: Has the gradient of language modelling.
        meanings: Get the gradient as it is.
        prompts: Prompts, one per deed.
        deeds: What they mean.
        layer: The layer to plant at.
        temperature: Of the softmax over cosine similarities.
        weight: Norm of the gradient in each weight of the model, over that of language modelling.

    Returns:
        The term's value.
    """
    states: dict[int, Tensor] = {}
    inputs = {"input_ids": prompts.input_ids, "attention_mask": prompts.attention_mask}
    forward_to_layers(model, [layer], states.__setitem__, **inputs)
    read = states[layer][torch.arange(len(deeds)), prompts.read_positions]
    loss = planting_loss(read, meanings(deeds), temperature)
    below = [model.get_input_embeddings(), *blocks_between(model, 0, layer)]
    weights = [parameter for module in below for parameter in module.parameters()]
    vectors = meanings.embedding.weight
    *gradients, vectors.grad = torch.autograd.grad(loss, [*weights, vectors])
    for parameter, gradient in zip(weights, gradients, strict=True):
        assert parameter.grad is not None
        parameter.grad.add_(weight * parameter.grad.norm() / gradient.norm().clamp(min=1e-12) * gradient)
    return float(loss.detach())


def planting_loss(states: Tensor, meanings: Tensor, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, eq. 4): each state must find its own meaning among all of the batch.

    Both are centred first: what all states share, most of their length, would leave no gradient to the rest.

    Args:
        states: `[prompts, H]` of the planted layer at the last prompt token.
        meanings: `[prompts, H]`, row i the meaning of prompt i.
        temperature: Of the softmax over cosine similarities.
    """
    similarities = _directions(states) @ _directions(meanings).T
    return F.cross_entropy(similarities / temperature, torch.arange(len(states)))


def _directions(vectors: Tensor) -> Tensor:
    vectors = vectors.float()
    return F.normalize(vectors - vectors.mean(0), dim=-1)
