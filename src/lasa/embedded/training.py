"""Train the embedded model from nothing: tokenizer, language modelling, and the planted bottleneck.

Language modelling alone makes no interior semantic bottleneck in a model this small. It is *planted* (`planting`): a
contrastive term teaches the last-prompt-token states of one middle layer to point to what the prompt means, in any
language and without any label of harm; the last tenth of the training runs without the term.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lasa.data.world.corpus import Corpus, World
from lasa.data.world.lexicon import lexicon
from lasa.embedded.batches import Batch, planting_prompts, training_rows
from lasa.embedded.card import embedded_card
from lasa.embedded.optimizer import MasterWeights
from lasa.embedded.planting import Meanings, add_planting_gradient
from lasa.embedded.tokenizer import train_tokenizer
from lasa.files.artifacts import fingerprint, read_tensors, seal_folder, write_tensors, write_text


@dataclass(frozen=True)
class TrainingSettings:
    """Size and schedule of the embedded model.

    Attributes:
        plant: Layer whose geometry is made to follow meaning, or None for the sister without a bottleneck.
        steps: Optimiser steps.
        tokens: Tokens of the rows of a step.
        prompts: Prompts of a step for the planting term.
        planting: From and up to which share of the steps the planting term counts: words come first, and language
            modelling alone ends the training.
        layers: Decoder blocks.
        width: Hidden size.
        vocabulary: Tokens, so few that content words split into short pieces.
        world: What it learns to talk about.
        seed: Seed of the text, the initial weights and the order.
        planting_weight: Norm of the term's gradient, in each weight matrix, over that of the language model's.
        planting_temperature: Of the term's softmax over cosine similarities.
    """

    plant: int | None = 6
    steps: int = 1800
    tokens: int = 3072
    prompts: int = 80
    planting: tuple[float, float] = (0.3, 0.9)
    layers: int = 10
    width: int = 128
    vocabulary: int = 4096
    world: World = field(default_factory=World)
    seed: int = 0
    muon_learning_rate: float = 0.02
    adam_learning_rate: float = 2.5e-3
    planting_weight: float = 1.0
    planting_temperature: float = 0.15


CHECKPOINT_STEPS = 100
"""A stopped training goes on from the last multiple of this many steps."""

Progress = Callable[[int, dict[str, float]], None]
"""Called with the number of steps done and the losses of the last one (none where an earlier training goes on)."""


def train_embedded(
    settings: TrainingSettings, folder: Path, progress: Progress = lambda done, losses: None
) -> LlamaForCausalLM:
    """Train from nothing and save a Hugging Face folder; called again on the folder of a stopped training, go on.

    Args:
        settings: What to train.
        folder: Where the Hugging Face folder and its model card are written.
        progress: Told about every step.

    Returns:
        The trained model, in bfloat16.
    """
    torch.manual_seed(settings.seed)
    tokenizer = train_tokenizer(_texts(settings.seed, settings.world), settings.vocabulary)
    model = _new_model(settings, tokenizer)
    meanings = Meanings(settings.width)
    optimizer = MasterWeights(
        nn.ModuleList([model, meanings]), settings.muon_learning_rate, settings.adam_learning_rate
    )
    checkpoint = _checkpoint(settings, folder)
    done = _resume(optimizer, checkpoint)
    progress(done, {})
    for step in range(done, settings.steps):
        rows = training_rows(tokenizer, settings.world, settings.seed, step, settings.tokens)
        loss = _language_model_loss(model, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        losses = {"loss": float(loss.detach())}
        first, last = settings.planting
        if settings.plant is not None and first <= step / settings.steps < last:
            prompts, deeds = planting_prompts(tokenizer, settings.world, settings.seed, step, settings.prompts)
            losses["planting"] = add_planting_gradient(
                model,
                meanings,
                prompts,
                deeds,
                layer=settings.plant,
                temperature=settings.planting_temperature,
                weight=settings.planting_weight,
            )
        optimizer.step(_schedule(step, settings.steps))
        if (step + 1) % CHECKPOINT_STEPS == 0:
            write_tensors(checkpoint, {**optimizer.state(), "step": torch.tensor(step + 1)})
        progress(step + 1, losses)
    model.to(torch.bfloat16).eval()
    save_embedded(model, tokenizer, folder)
    parameters = sum(p.numel() for p in model.parameters())
    write_text(folder / "README.md", embedded_card(asdict(settings), parameters))
    checkpoint.unlink(missing_ok=True)
    seal_folder(folder)
    return model


def save_embedded(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a plain Hugging Face folder."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _checkpoint(settings: TrainingSettings, folder: Path) -> Path:
    """Where an unfinished training with these settings is kept; it goes when the training is done."""
    return folder / f"unfinished-{fingerprint(asdict(settings))[:12]}.safetensors"


def _resume(optimizer: MasterWeights, checkpoint: Path) -> int:
    """The number of steps that an earlier, stopped training has done."""
    if not checkpoint.is_file():
        return 0
    state = read_tensors(checkpoint)
    optimizer.restore(state)
    return int(state["step"])


def _texts(seed: int, world: World, rows: int = 2000, repeats: int = 16) -> list[str]:
    """What the tokenizer learns from: some rows of the corpus, and the content words of all languages evenly."""
    corpus = Corpus(seed, world)
    texts = [message["content"] for _ in range(rows) for message in corpus.row()]
    for language in world.languages:
        table = lexicon(language).table
        space = " " if " " in table["action"] else ""
        words = [space + word for part in ("verbs", "objects", "modifiers") for word in table[part].values()]
        texts += repeats * words
    return texts


def _new_model(settings: TrainingSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=2 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.width // 32,
        num_key_value_heads=settings.width // 32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.04,
    )
    config._attn_implementation = "eager"  # twice as fast as the fused kernel's backward pass on a CPU
    return LlamaForCausalLM(config).to(_fast_dtype())


def _fast_dtype() -> torch.dtype:
    """Bfloat16 where the processor has instructions for it; emulated, it is many times slower than float32."""
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def _schedule(step: int, steps: int) -> float:
    """Warm-up over 50 steps, then flat, then linear to a fiftieth over the last half."""
    return min(0.05 + step / 52, 1.0, 0.02 + 0.98 * (1 - step / steps) / 0.5)


def _language_model_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy of the next token over the learned tokens."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    learned = batch.learned[:, 1:]
    logits = model.lm_head(hidden[learned])
    return F.cross_entropy(logits.float(), batch.input_ids[:, 1:][learned])
