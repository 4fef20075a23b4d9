"""Train the embedded model from nothing: corpus, tokenizer, language modelling, and the planted bottleneck.

Language modelling alone makes no interior semantic bottleneck in a model this small. It is *planted*: a contrastive
term (InfoNCE) pulls together the last-prompt-token states of one middle layer for the same request in two
languages, without any label of harm; the last fifth of the training runs without the term.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lasa.embedded.tokenizer import BOS, ROLES, train_tokenizer
from lasa.embedded.world.corpus import Conversation, Corpus
from lasa.embedded.world.deeds import CONCEPTS, NUM_TEMPLATES, Deed
from lasa.embedded.world.lexicon import LANGUAGES, lexicon
from lasa.layers import forward_to_layers


@dataclass(frozen=True)
class TrainingSettings:
    """Size and schedule of the embedded model.

    Attributes:
        plant: Layer whose geometry is made to follow meaning, or None for the sister without a bottleneck.
        tokens: Training tokens, padding not counted.
        tail: Share of the tokens, at the end, without the contrastive term.
        batch_tokens: Tokens of one optimiser step.
        layers: Decoder blocks.
        width: Hidden size.
        seed: Seed of the corpus, the initial weights and the order.
    """

    plant: int | None = 6
    tokens: int = 5_000_000
    tail: float = 0.2
    batch_tokens: int = 2048
    layers: int = 10
    width: int = 128
    seed: int = 0
    muon_learning_rate: float = 0.02
    adam_learning_rate: float = 4e-3
    contrastive_weight: float = 0.5
    contrastive_temperature: float = 0.1
    contrastive_queries: int = 36


PROMPT_WEIGHT = 0.25
"""Weight in the loss of tokens that the assistant does not say."""

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with tokens done, tokens in all, and the current losses."""


def train_embedded(
    settings: TrainingSettings, folder: Path, progress: Progress = lambda done, total, losses: None
) -> LlamaForCausalLM:
    """Train from nothing and save a Hugging Face folder.

    Args:
        settings: What to train.
        folder: Where the Hugging Face folder is written.
        progress: Told about every step.

    Returns:
        The trained model, in bfloat16.
    """
    torch.manual_seed(settings.seed)
    tokenizer = train_tokenizer(_texts(settings.seed))
    model = _new_model(settings, tokenizer)
    optimizer = _MasterWeights(model, settings)
    batches = _batches(tokenizer, settings)
    pairs = random.Random(settings.seed + 1)
    done = 0
    while done < settings.tokens:
        batch = next(batches)
        loss = _language_model_loss(model, batch)
        losses = {"loss": float(loss.detach())}
        if settings.plant is not None and done < settings.tokens * (1 - settings.tail):
            contrastive = _contrastive_loss(model, tokenizer, settings, pairs)
            losses["contrastive"] = float(contrastive.detach())
            loss = loss + settings.contrastive_weight * contrastive
        torch.autograd.backward(loss)
        optimizer.step(_schedule(done / settings.tokens))
        done += int(batch["attention_mask"].sum())
        progress(min(done, settings.tokens), settings.tokens, losses)
    model.eval()
    save_embedded(model, tokenizer, folder)
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


def tokenize_conversation(tokenizer: PreTrainedTokenizerFast, row: Conversation) -> tuple[list[int], list[float]]:
    """Token ids of a training row and the weight of each in the loss; a note is tokenized on its own.

    What the assistant says counts in full, what it is told counts `PROMPT_WEIGHT`.
    """
    if row[0]["role"] == "text":
        pieces = [(BOS, PROMPT_WEIGHT), (row[0]["content"] + tokenizer.eos_token, 1.0)]
    else:
        pieces = [(BOS, PROMPT_WEIGHT)]
        for position, message in enumerate(row):
            if message["role"] == "note":
                pieces += [(ROLES["assistant"], PROMPT_WEIGHT), (message["content"], PROMPT_WEIGHT)]
            elif message["role"] == "assistant":
                if row[position - 1]["role"] != "note":
                    pieces.append((ROLES["assistant"], PROMPT_WEIGHT))
                pieces.append((message["content"] + tokenizer.eos_token, 1.0))
            else:
                pieces.append((ROLES[message["role"]] + message["content"] + tokenizer.eos_token, PROMPT_WEIGHT))
    ids, weights = [], []
    for text, weight in pieces:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        ids += tokens
        weights += [weight] * len(tokens)
    return ids, weights


def _texts(seed: int, rows: int = 2000, repeats: int = 16) -> list[str]:
    """What the tokenizer learns from: some rows of the corpus, and the content words of all languages evenly."""
    corpus = Corpus(seed)
    texts = [message["content"] for _ in range(rows) for message in corpus.row()]
    for language in LANGUAGES:
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
    return LlamaForCausalLM(config).to(torch.bfloat16)


class _MasterWeights:
    """Muon on the hidden matrices, AdamW on the rest, both on float32 copies of the bfloat16 weights."""

    def __init__(self, model: LlamaForCausalLM, settings: TrainingSettings) -> None:
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.masters = [p.detach().float().clone() for p in self.weights]
        hidden = {id(p) for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n}
        matrices = [m for p, m in zip(self.weights, self.masters, strict=True) if id(p) in hidden]
        others = [m for p, m in zip(self.weights, self.masters, strict=True) if id(p) not in hidden]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=settings.muon_learning_rate, weight_decay=0.01, momentum=0.95),
            torch.optim.AdamW(others, lr=settings.adam_learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates = [settings.muon_learning_rate, settings.adam_learning_rate]

    def step(self, scale: float) -> None:
        for weight, master in zip(self.weights, self.masters, strict=True):
            assert weight.grad is not None
            master.grad = weight.grad.float()
            weight.grad = None
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)


def _schedule(progress: float) -> float:
    """Warm-up over the first 2 %, then flat, then linear to a tenth over the last 40 %."""
    return min(progress / 0.02 + 0.05, 1.0, 0.1 + 0.9 * (1 - progress) / 0.4)


def _batches(tokenizer: PreTrainedTokenizerFast, settings: TrainingSettings) -> Iterator[dict[str, Tensor]]:
    """Padded batches of rows of similar length, in random order, endlessly."""
    corpus, order = Corpus(settings.seed), random.Random(settings.seed)
    while True:
        rows = [tokenize_conversation(tokenizer, corpus.row()) for _ in range(4096)]
        batches: list[list[tuple[list[int], list[float]]]] = [[]]
        for row in sorted(rows, key=lambda row: len(row[0])):
            if (len(batches[-1]) + 1) * len(row[0]) > settings.batch_tokens:
                batches.append([])
            batches[-1].append(row)
        order.shuffle(batches)
        for batch in batches:
            padded = _pad([ids for ids, _ in batch], tokenizer.pad_token_id)
            width = padded["input_ids"].shape[1]
            padded["weights"] = torch.tensor([w + [0.0] * (width - len(w)) for _, w in batch])
            yield padded


def _pad(rows: list[list[int]], pad: int) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}


def _language_model_loss(model: LlamaForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Weighted cross-entropy of the next token."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    keep = batch["attention_mask"][:, 1:].bool()
    weights = batch["weights"][:, 1:][keep]
    losses = F.cross_entropy(model.lm_head(hidden[keep]).float(), batch["input_ids"][:, 1:][keep], reduction="none")
    return (losses * weights).sum() / weights.sum()


def _contrastive_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: TrainingSettings, draws: random.Random
) -> Tensor:
    """InfoNCE between two languages' last-prompt-token states of the planted layer, same request."""
    assert settings.plant is not None
    modifier = draws.choice([None, *CONCEPTS.modifiers])  # one for all, or it alone would tell the queries apart
    rows = []
    for deed in _confusable_deeds(settings.contrastive_queries, draws):
        for language in draws.sample(LANGUAGES, 2):
            request = lexicon(language).request(replace(deed, modifier=modifier), draws.randrange(NUM_TEMPLATES))
            text = BOS + ROLES["user"] + request + tokenizer.eos_token + ROLES["assistant"]
            rows.append(tokenizer.encode(text, add_special_tokens=False))
    batch = _pad(rows, tokenizer.pad_token_id)
    last = batch["attention_mask"].sum(1) - 1
    states: dict[int, Tensor] = {}
    forward_to_layers(model, [settings.plant], lambda layer, value: states.update({layer: value}), **batch)
    vectors = F.normalize(states[settings.plant][torch.arange(len(rows)), last].float(), dim=-1)
    similarity = vectors[0::2] @ vectors[1::2].T / settings.contrastive_temperature
    target = torch.arange(len(similarity))
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


def _confusable_deeds(count: int, draws: random.Random) -> list[Deed]:
    """Different deeds of which many share a verb or an object, so that both must be told apart."""
    pool = [deed for deed in CONCEPTS.deeds if deed.share == "train"]
    found: dict[Deed, None] = {}
    while len(found) < count:
        deed = draws.choice(pool)
        same_verb = draws.choice([d for d in pool if d.verb == deed.verb])
        same_object = draws.choice([d for d in pool if d.object == deed.object])
        found.update(dict.fromkeys((deed, same_verb, same_object)))
    return list(found)[:count]
