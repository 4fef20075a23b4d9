"""What a model needs: memory and time of each stage on a machine, from the model's config alone.

Everything is arithmetic on shapes, to be read as an estimate (allocators and kernels add 10-20 %, which `OVERHEAD`
covers). Sources: bytes per parameter of mixed-precision AdamW from ZeRO (Rajbhandari et al., 2020, section 3.1);
activations of a transformer block from Korthikanti et al. (2022, "Reducing Activation Recomputation", eq. 2, with
attention that never stores its scores); 2 FLOPs per parameter and token forward, twice that backward (Kaplan et al.,
2020, section 2.1); NF4 at half a byte and its constants from QLoRA (Dettmers et al., 2023, section 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from pydantic import Field

from lasa.errors import ModelError
from lasa.files.settings import Settings

GIB = 2**30
OVERHEAD = 1.15
"""CUDA context, workspaces and fragmentation, as a factor."""

Adaptation = Literal["full", "lora", "qlora"]
Sharding = Literal["one GPU", "DDP", "FSDP2 / ZeRO-3"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder-only transformer with gated MLPs.

    Attributes:
        layers: L, decoder blocks.
        width: H, hidden size.
        inner: Width of the MLP.
        heads: Attention heads.
        kv_heads: Key and value heads.
        head: Width of a head.
        vocabulary: V.
        tied: Whether the head is the embedding.
        attention_bias: Whether query, key and value maps have a bias.
        output_bias: Whether the attention's output map has one.
        mlp_bias: Whether the MLP's maps have one.
        head_norm: Whether queries and keys have a norm of their own (Qwen3).
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_norm: bool

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "Shape":
        """Read a Hugging Face `config.json`.

        Raises:
            ModelError: A size is missing, or the model is none whose parameters are known here (experts, encoders).
        """
        config = config.get("text_config", config)
        kind = str(config.get("model_type", ""))
        if kind not in KNOWN:
            raise ModelError(
                f"The parameters of a {kind or 'nameless'} model are not known to the planner; it knows "
                f"{', '.join(KNOWN)}."
            )
        try:
            heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
            return Shape(
                layers=int(config["num_hidden_layers"]),
                width=width,
                inner=int(config["intermediate_size"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head=int(config.get("head_dim") or width // heads),
                vocabulary=int(config["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings", False)),
                attention_bias=kind == "qwen2" or bool(config.get("attention_bias", False)),
                output_bias=kind != "qwen2" and bool(config.get("attention_bias", False)),
                mlp_bias=bool(config.get("mlp_bias", False)),
                head_norm=kind == "qwen3",
            )
        except KeyError as error:
            raise ModelError(
                f"config.json has no {error.args[0]!r}. Give the config of a causal language model."
            ) from None

    @property
    def block(self) -> int:
        """Parameters of one block."""
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        attention = self.width * (queries + 2 * keys) + queries * self.width
        attention += (queries + 2 * keys) * self.attention_bias + self.width * self.output_bias
        attention += 2 * self.head * self.head_norm
        mlp = 3 * self.width * self.inner + (2 * self.inner + self.width) * self.mlp_bias
        return attention + mlp + 2 * self.width

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All parameters, tied ones counted once."""
        return self.layers * self.block + self.embedding * (1 if self.tied else 2) + self.width

    def lora_parameters(self, rank: int) -> int:
        """Parameters of an adapter of that rank on all linear maps of the blocks."""
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        maps = 2 * (self.width + queries) + 2 * (self.width + keys) + 3 * (self.width + self.inner)
        return self.layers * rank * maps

    @property
    def cache_per_token(self) -> int:
        """Bytes of one token's keys and values in bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head * 2


KNOWN = ("llama", "mistral", "qwen2", "qwen3")
"""Families with this block: RMSNorm, grouped-query attention, gated MLP."""


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
    for adaptation in ("full", "lora", "qlora"):
        for sharding in shardings(machine, adaptation):
            for checkpointing in (False, True):
                stages.append(aligning(shape, machine, work, adaptation, sharding, checkpointing))
    return [*stages, answering(shape, machine, work)]


def shardings(machine: Machine, adaptation: Adaptation) -> list[Sharding]:
    """The ways to spread a training over the GPUs; weights in 4 bits are not sharded."""
    if machine.gpus == 1:
        return ["one GPU"]
    return ["DDP"] if adaptation == "qlora" else ["DDP", "FSDP2 / ZeRO-3"]


def reading(shape: Shape, machine: Machine, work: Work) -> Stage:
    """Stages 1 and 2: the hidden states of all layers, one forward pass without the head, layers over the GPUs."""
    blocks = shape.layers * shape.block
    weights = 2 * (blocks + shape.embedding) / machine.gpus
    batch = 8192 * (2 * shape.inner + 4 * shape.width) * 2  # a batch of 8,192 tokens inside one block
    states = 8192 * shape.width * 4
    flops = 2 * blocks * work.prompts * work.prompt_tokens
    one_at_a_time = machine.teraflops * 1e12 * machine.use  # a model whose layers are spread computes on one at a time
    return _stage("1, 2  read hidden states", weights + batch + states, flops / one_at_a_time, machine)


def aligning(
    shape: Shape, machine: Machine, work: Work, adaptation: Adaptation, sharding: Sharding, checkpointing: bool
) -> Stage:
    """Stage 3 in one way. The reference model costs no memory: an adapter is switched off, or it is computed before."""
    shards = machine.gpus if sharding == "FSDP2 / ZeRO-3" else 1
    frozen, trained = {
        "full": (0.0, shape.parameters),
        "lora": (2.0 * shape.parameters, shape.lora_parameters(work.lora_rank)),
        "qlora": (
            QUANTISED * shape.layers * shape.block + 2.0 * (shape.parameters - shape.layers * shape.block),
            shape.lora_parameters(work.lora_rank),
        ),
    }[adaptation]
    held = (frozen + TRAINED_BYTES * trained) / shards
    gathered = 2 * 2 * shape.block if shards > 1 else 0  # one block in use and the next one on its way, in bfloat16
    held += gathered + activations(shape, work, checkpointing)
    passes = 3.0 if adaptation == "full" else 2.0  # forward, backward for activations, and for weights that learn
    passes += 1 if checkpointing else 0  # forward again
    passes += 1  # the KL completions, forward only
    passes += 2 / work.epochs if adaptation == "full" else 2  # the reference: once before, or at every step
    tokens = work.rows * work.epochs * work.row_tokens
    flops = 2 * shape.parameters * tokens * passes
    speed = machine.gpus * machine.teraflops * 1e12 * machine.use
    name = f"3  {adaptation}, {sharding}{', checkpointing' if checkpointing else ''}"
    return _stage(name, held, flops / speed, machine)


QUANTISED = 0.5 + 0.127 / 8
"""Bytes of an NF4 weight with double quantisation: 4 bits and 0.127 bits of constants."""

TRAINED_BYTES = 4 + 4 + 8
"""Bytes of a trained parameter: float32 weight, gradient, and AdamW's two moments."""


def activations(shape: Shape, work: Work, checkpointing: bool) -> float:
    """Bytes of what a forward pass keeps for the backward pass on one GPU, in bfloat16.

    A block keeps its two inputs and two normed inputs, queries, keys, values and attention's output, and four tensors
    of the MLP's width; with checkpointing its input alone, and one block at a time in full. The head's logits are
    computed in chunks and never held.
    """
    tokens = work.batch * work.row_tokens
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    block = 2.0 * tokens * (4 * shape.width + 2 * queries + 2 * keys + 4 * shape.inner)
    if checkpointing:
        return shape.layers * 2.0 * tokens * shape.width + block
    return shape.layers * block


def answering(shape: Shape, machine: Machine, work: Work) -> Stage:
    """Stage 4: guarded generation in batches of 64, layers over the GPUs; bound by reading weights at every token."""
    batch = 64
    weights = 2.0 * shape.parameters
    cache = batch * (work.prompt_tokens + work.answer_tokens) * shape.cache_per_token
    steps = ceil(work.answers / batch) * work.answer_tokens
    seconds = steps * (weights + cache) / (machine.bandwidth * 1e9 * 0.5)
    return _stage("4  answer, guarded", (weights + cache) / machine.gpus, seconds, machine)


def _stage(name: str, held: float, seconds: float, machine: Machine) -> Stage:
    memory = held * OVERHEAD / GIB
    return Stage(name, memory, seconds / 3600, memory <= machine.memory)
