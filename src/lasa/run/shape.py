"""The shape of a model, from its config alone.

The model is built on torch's `meta` device, where it has shapes and takes no memory, so any decoder-only architecture
that transformers knows is counted exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lasa.errors import ModelError
from lasa.models.layers import decoder_blocks, num_parameters

NEEDED = ("hidden_size", "num_hidden_layers", "intermediate_size")
"""Sizes that a config must give; transformers would fill in those of another model."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder-only transformer with gated MLPs.

    Attributes:
        layers: L, decoder blocks.
        width: H, hidden size.
        inner: Width of the MLP.
        queries: Width of all queries of a token.
        keys: Width of all its keys, and of all its values.
        norms: Width of all outputs of a block's norms.
        scores: Heads whose scores are stored, as in Gemma 2, which caps them; 0 where attention stores none.
        block: Parameters of a block.
        embedding: Parameters of the token embedding.
        tied: Whether the head is the embedding.
        parameters: All parameters, tied ones counted once, those for other inputs than text included.
        maps: Inputs and outputs of all linear maps that an adapter is put onto.
        window: Tokens that each layer's cache holds at most; None for all.
    """

    layers: int
    width: int
    inner: int
    queries: int
    keys: int
    norms: int
    scores: int
    block: int
    embedding: int
    tied: bool
    parameters: int
    maps: int
    window: tuple[int | None, ...]

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "Shape":
        """Read a Hugging Face `config.json`.

        Raises:
            ModelError: A size is missing, transformers does not know the model, or its blocks are not of this kind.
        """
        kind, rest = str(config.get("model_type", "")), {k: v for k, v in config.items() if k != "model_type"}
        sizes = config.get("text_config", config)
        for name in NEEDED:
            if name not in sizes:
                raise ModelError(f"config.json has no {name!r}. Give the config of a causal language model.")
        if any(sizes.get(name) for name in EXPERTS):
            raise ModelError(f"The planner does not know what a mixture of experts such as {kind} computes.")
        try:
            full = AutoConfig.for_model(kind, **rest)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(full)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"A {kind or 'nameless'} model is none that transformers can build: {error}") from error
        text, blocks = full.get_text_config(), decoder_blocks(model)
        head = model.get_output_embeddings()
        linear = [one for one in model.modules() if isinstance(one, nn.Linear) and one is not head]
        heads, width = int(text.num_attention_heads), int(text.hidden_size)
        key_heads = int(getattr(text, "num_key_value_heads", None) or heads)
        size = int(getattr(text, "head_dim", None) or width // heads)
        vectors = [p.numel() for name, p in blocks[0].named_parameters() if p.ndim == 1 and "norm" in name]
        sliding = [kind == "sliding_attention" for kind in getattr(text, "layer_types", None) or [""] * len(blocks)]
        return Shape(
            layers=len(blocks),
            width=width,
            inner=int(text.intermediate_size),
            queries=heads * size,
            keys=key_heads * size,
            norms=sum(width if numbers == width else (heads + key_heads) * size // 2 for numbers in vectors),
            scores=heads if text._attn_implementation == "eager" else 0,
            block=sum(p.numel() for p in blocks.parameters()) // len(blocks),
            embedding=int(model.get_input_embeddings().weight.numel()),
            tied=bool(model.config.get_text_config().tie_word_embeddings),
            parameters=num_parameters(model),
            maps=sum(one.in_features + one.out_features for one in linear),
            window=tuple(text.sliding_window if slides else None for slides in sliding),
        )

    @property
    def computed(self) -> int:
        """Parameters that a token of text is multiplied by: the blocks and the head."""
        return self.layers * self.block + self.embedding

    def lora_parameters(self, rank: int) -> int:
        """Parameters of an adapter of that rank on all linear maps but the head."""
        return rank * self.maps

    def cache(self, tokens: int) -> int:
        """Bytes of the keys and values of so many tokens of a row in bfloat16."""
        return sum(2 * 2 * self.keys * min(tokens, most or tokens) for most in self.window)
