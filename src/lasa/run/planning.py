"""What a model needs: memory and time of each stage on a machine, from the model's config alone.

Arithmetic on a model's shape, to be read as an estimate (allocators and kernels add 10-20 %, which `OVERHEAD` covers).
Sources: bytes per parameter of mixed-precision AdamW from ZeRO (Rajbhandari et al., 2020, section 3.1); activations
counted as Korthikanti et al. do (2022, "Reducing Activation Recomputation", section 4), for blocks as transformers has
them; 2 FLOPs per parameter and token forward, twice that backward (Kaplan et al., 2020, section 2.1); NF4 at half a
byte and its constants from QLoRA (Dettmers et al., 2023, section 3).
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal, get_args

from lasa.models.hidden_states import DEFAULT_TOKEN_BUDGET
from lasa.models.memory import CACHE_SHARE, MOST_TOKENS
from lasa.run.settings import Machine, Work
from lasa.run.shape import Shape

GIB = 2**30
OVERHEAD = 1.15
"""CUDA context, workspaces and fragmentation, as a factor."""

Adaptation = Literal["full", "full, adamw_8bit", "full, adamw_bfloat16", "lora", "qlora"]
Sharding = Literal["one GPU", "DDP", "FSDP2 / ZeRO-3"]


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
    return _stage(
        "1, 2  read hidden states", weights + inside_block(shape, DEFAULT_TOKEN_BUDGET), flops / one_at_a_time, machine
    )


def inside_block(shape: Shape, tokens: int) -> float:
    """Bytes of so many tokens inside one block in bfloat16, where nothing is kept for a way back.

    Most is there in the MLP: three tensors of its width (four where one map makes two of them, as in Phi 3), its input,
    the residual stream before and after attention, and the embeddings.
    """
    return 2.0 * tokens * (3 * shape.inner + 5 * shape.width)


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
        held = max(held, 2.0 * shape.parameters + inside_block(shape, DEFAULT_TOKEN_BUDGET))
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

    A batch has 64 rows, or as many as the cache has half of the memory beside the weights for, up to a number of tokens
    (`lasa.models.memory`). It holds most while its prompts are read, in one pass, or at its last token.
    """
    weights, judge = 2.0 * shape.parameters, 2.0 * work.judge * 1e9
    tokens = work.prompt_tokens + work.answer_tokens
    row = shape.cache(tokens)
    room = CACHE_SHARE * (machine.gpus * machine.memory * GIB / OVERHEAD - weights - judge)
    batch = max(1, min(64, int(room / row), MOST_TOKENS // tokens))
    steps = ceil(work.answers / batch) * work.answer_tokens
    seconds = steps * (weights + batch * row) / (machine.bandwidth * 1e9 * 0.5)
    at_first = batch * shape.cache(work.prompt_tokens) / machine.gpus + inside_block(shape, batch * work.prompt_tokens)
    held = (weights + judge) / machine.gpus + max(at_first, batch * row / machine.gpus)
    return _stage(f"4  answer, guarded, {batch} at a time", held, seconds, machine)


def _stage(name: str, held: float, seconds: float, machine: Machine) -> Stage:
    memory = held * OVERHEAD / GIB
    return Stage(name, memory, seconds / 3600, memory <= machine.memory)
