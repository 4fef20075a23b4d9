"""What a model needs: memory and time of each stage on a machine, from the model's config alone.

The model is built on torch's `meta` device, where it has shapes and takes no memory, so any decoder-only architecture
that transformers knows is counted exactly. The rest is arithmetic on shapes, to be read as an estimate (allocators and
kernels add 10-20 %, which `OVERHEAD` covers). Sources: bytes per parameter of mixed-precision AdamW from ZeRO
(Rajbhandari et al., 2020, section 3.1); activations counted as Korthikanti et al. do (2022, "Reducing Activation
Recomputation", section 4), for blocks as transformers has them; 2 FLOPs per parameter and token forward, twice that
backward (Kaplan et al., 2020, section 2.1); NF4 at half a byte and its constants from QLoRA (Dettmers et al., 2023,
section 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, get_args

from pydantic import Field

from lasa.errors import ModelError
from lasa.files.settings import Settings

GIB = 2**30
OVERHEAD = 1.15
"""CUDA context, workspaces and fragmentation, as a factor."""

Adaptation = Literal["full", "full, adamw_8bit", "full, adamw_bfloat16", "lora", "qlora"]
Sharding = Literal["one GPU", "DDP", "FSDP2 / ZeRO-3"]

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
        import torch
        from torch import nn
        from transformers import AutoConfig, AutoModelForCausalLM

        from lasa.models.layers import decoder_blocks, num_parameters

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


class Machine(Settings):
    """GPUs of one kind in one machine."""

    gpus: int = Field(1, ge=1, le=1024, description="GPUs of the machine")
    memory: float = Field(80.0, ge=1, description="GiB of each GPU")
    teraflops: float = Field(989.0, ge=1, description="Dense bfloat16 peak of each GPU; the default is an H100's")
    use: float = Field(0.35, gt=0, le=1, description="Share of the peak that training and prefill reach")
    bandwidth: float = Field(3350.0, ge=1, description="Memory bandwidth of each GPU in GB/s")


class Work(Settings):
    """What a run is to do."""

    prompts: int = Field(20_000, ge=1, description="Prompts to read, for layer search and interpreter")
    prompt_tokens: int = Field(128, ge=1, description="Tokens of a prompt")
    rows: int = Field(22_000, ge=1, description="Rows of preferences")
    epochs: float = Field(3.0, gt=0, description="Passes over them")
    row_tokens: int = Field(512, ge=1, description="Longest row in tokens")
    batch: int = Field(4, ge=1, description="Rows per GPU and forward pass")
    answers: int = Field(3150, ge=1, description="Answers to generate in the evaluation")
    answer_tokens: int = Field(256, ge=1, description="Tokens of an answer")
    lora_rank: int = Field(16, ge=1, description="Rank of adapters")
    judge: float = Field(0.0, ge=0, description="Billions of parameters of a local classifier that judges the answers")


@dataclass(frozen=True)
class Stage:
    """What one stage, or one way to do it, needs.

    Attributes:
        name: Which.
        memory: GiB on the fullest GPU.
        hours: Of wall-clock time.
        fits: Whether a GPU has that memory.
    """

    name: str
    memory: float
    hours: float
    fits: bool


def plan(shape: Shape, machine: Machine, work: Work) -> list[Stage]:
    """Every stage, and every way to align, on a machine."""
    stages = [reading(shape, machine, work)]
    for adaptation in get_args(Adaptation):
        for sharding in shardings(machine, adaptation):
            for checkpointing in (False, True):
                stages.append(aligning(shape, machine, work, adaptation, sharding, checkpointing))
    return [*stages, answering(shape, machine, work)]


def shardings(machine: Machine, adaptation: Adaptation) -> list[Sharding]:
    """The ways to spread a training over the GPUs; weights in 4 bits are not sharded, nor are those of 8 bytes."""
    if machine.gpus == 1:
        return ["one GPU"]
    return ["DDP", "FSDP2 / ZeRO-3"] if adaptation in ("full", "lora") else ["DDP"]


def reading(shape: Shape, machine: Machine, work: Work) -> Stage:
    """Stages 1 and 2: the hidden states of all layers, one forward pass without the head, layers over the GPUs.

    The whole model is loaded, its head and what it has for other inputs than text included.
    """
    blocks = shape.layers * shape.block
    weights = 2 * shape.parameters / machine.gpus
    flops = 2 * blocks * work.prompts * work.prompt_tokens
    one_at_a_time = machine.teraflops * 1e12 * machine.use  # a model whose layers are spread computes on one at a time
    return _stage("1, 2  read hidden states", weights + reading_batch(shape), flops / one_at_a_time, machine)


def reading_batch(shape: Shape) -> float:
    """Bytes of a batch of 8,192 tokens inside one block in bfloat16, and of the states that are read in float32."""
    return 8192 * ((2 * shape.inner + 4 * shape.width) * 2 + shape.width * 4)


def aligning(
    shape: Shape, machine: Machine, work: Work, adaptation: Adaptation, sharding: Sharding, checkpointing: bool
) -> Stage:
    """Stage 3 in one way: the larger of the training and of what is read before it.

    The reference model costs no memory: an adapter is switched off, or it is computed before. What is read before a
    model is sharded (scores, references, perplexity) is read on the whole model in bfloat16 on each GPU.
    """
    shards = machine.gpus if sharding == "FSDP2 / ZeRO-3" else 1
    full, blocks = adaptation.startswith("full"), shape.layers * shape.block
    frozen = {
        "lora": 2.0 * shape.parameters,
        "qlora": QUANTISED * blocks + 2.0 * (shape.parameters - blocks),
    }.get(adaptation, 0.0)
    trained = shape.parameters if full else shape.lora_parameters(work.lora_rank)
    wide = 6 * shape.embedding if adaptation == "full, adamw_8bit" else 0  # its moments stay in float32
    held = (frozen + TRAINED_BYTES.get(adaptation, 16) * trained + wide) / shards
    gathered = 2 * 2 * shape.block if shards > 1 else 0  # one block in use and the next one on its way, in bfloat16
    held += gathered + activations(shape, work, adaptation, checkpointing)
    if shards > 1:
        held = max(held, 2.0 * shape.parameters + reading_batch(shape))
    passes = 3.0 if full else 2.0  # forward, backward for activations, and for weights that learn
    passes += 1 if checkpointing else 0  # forward again
    passes += 1  # the KL completions, forward only
    passes += 2 / work.epochs if full else 2  # the reference: once before, or at every step
    tokens = work.rows * work.epochs * work.row_tokens
    flops = 2 * shape.computed * tokens * passes
    speed = machine.gpus * machine.teraflops * 1e12 * machine.use
    name = f"3  {adaptation}, {sharding}{', checkpointing' if checkpointing else ''}"
    return _stage(name, held, flops / speed, machine)


QUANTISED = 0.5 + 0.127 / 8
"""Bytes of an NF4 weight with double quantisation: 4 bits and 0.127 bits of constants."""

TRAINED_BYTES = {"full, adamw_8bit": 4 + 4 + 2, "full, adamw_bfloat16": 2 + 2 + 4}
"""Bytes of a trained parameter: weight, gradient, and AdamW's two moments; else all in float32, 4 + 4 + 8.

In 8 bits are all moments but the token embedding's: transformers' trainer asks bitsandbytes to leave those alone.
"""


SCORE_BYTES = 8
"""Bytes that a model which caps its scores of attention keeps of each: capped, in float32, and as weights."""


def activations(shape: Shape, work: Work, adaptation: Adaptation, checkpointing: bool) -> float:
    """Bytes of what a forward pass keeps for the backward pass on one GPU, with rows of different lengths in a batch.

    A block keeps what goes into its norms in float32, and where they learn what their gains multiply; the inputs of its
    maps; queries, keys and values (repeated for all queries), attention's output and its mask; and four tensors of the
    MLP's width. With checkpointing it keeps its input alone, and one block at a time is there in full. Weights in
    float32 make a residual stream in float32, which autocast copies for each map. The head's logits are computed in
    chunks and never held.
    """
    tokens, stays = work.batch * work.row_tokens, not adaptation.startswith("full")
    stream, inputs = (4, 5) if adaptation in ("full", "full, adamw_8bit") else (2, 2)
    kept = (4 if stays else 8) * shape.norms
    kept += 2 * (inputs * shape.width + 4 * shape.queries + 4 * shape.inner)
    kept += (2 + SCORE_BYTES * shape.scores) * work.row_tokens
    if checkpointing:
        return float(tokens * (shape.layers * stream * shape.width + kept))
    return float(tokens * shape.layers * kept)


def answering(shape: Shape, machine: Machine, work: Work) -> Stage:
    """Stage 4: guarded generation, layers over the GPUs, a judge beside it; bound by reading weights at every token.

    A batch has 64 rows, or as many as the cache has half of the memory beside the weights for (`lasa.models.memory`).
    """
    weights, judge = 2.0 * shape.parameters, 2.0 * work.judge * 1e9
    row = shape.cache(work.prompt_tokens + work.answer_tokens)
    room = (machine.gpus * machine.memory * GIB / OVERHEAD - weights - judge) / 2
    batch = max(1, min(64, int(room / row)))
    cache = batch * row
    steps = ceil(work.answers / batch) * work.answer_tokens
    seconds = steps * (weights + cache) / (machine.bandwidth * 1e9 * 0.5)
    held = (weights + judge + cache) / machine.gpus
    return _stage(f"4  answer, guarded, {batch} at a time", held, seconds, machine)


def _stage(name: str, held: float, seconds: float, machine: Machine) -> Stage:
    memory = held * OVERHEAD / GIB
    return Stage(name, memory, seconds / 3600, memory <= machine.memory)
