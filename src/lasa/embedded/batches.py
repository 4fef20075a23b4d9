"""What one training step of the embedded model sees: a pure function of seed and step, so that a stop costs nothing.

A step has rows of every kind, of similar length, to learn language from; and prompts about deeds that are easily taken
for each other, of which only the hidden states are looked at.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lasa.data.world.corpus import SYSTEM_SHARE, Conversation, Corpus, World
from lasa.data.world.deeds import Deed
from lasa.embedded.tokenizer import BOS, ROLES

PROMPT_SHARE = 0.25
"""Share of the tokens not said by the assistant that count in the loss."""

STEPS_PER_BLOCK = 16
"""Rows of this many steps are drawn together, sorted by length and cut into batches."""


@dataclass(frozen=True)
class Batch:
    """Right-padded rows.

    Attributes:
        input_ids: `[rows, time]`.
        attention_mask: `[rows, time]`, 1 for tokens and 0 for padding.
        learned: `[rows, time]`, whether predicting the token counts in the loss.
        read_positions: `[rows]`, the last prompt token of each row's first turn (0 in a row without a chat).
    """

    input_ids: Tensor
    attention_mask: Tensor
    learned: Tensor
    read_positions: Tensor


def planting_prompts(
    tokenizer: PreTrainedTokenizerFast, world: World, seed: int, step: int, count: int
) -> tuple[Batch, list[Deed]]:
    """Prompts about `count` different deeds, each in any language, and the deeds; nothing of them is learned."""
    draws = random.Random(f"{seed}/planting/{step}")
    corpus = Corpus(draws, world)
    system = draws.random() < SYSTEM_SHARE  # in all or none, for rows of similar length
    deeds = [corpus.in_some_circumstance(deed) for deed in corpus.confusable_deeds(count)]
    rows = []
    for deed in deeds:
        prompt = (*corpus.prompt(deed, system=system), {"role": "note", "content": ""})
        ids, _ = tokenize_conversation(tokenizer, prompt, draws)
        rows.append((ids, [False] * len(ids)))
    return _batch(tokenizer, rows), deeds


def training_rows(tokenizer: PreTrainedTokenizerFast, world: World, seed: int, step: int, tokens: int) -> Batch:
    """Rows of every kind, about `tokens` of them with their padding."""
    rows = list(_block(tokenizer, world, seed, step // STEPS_PER_BLOCK, tokens))[step % STEPS_PER_BLOCK]
    return _batch(tokenizer, rows)


TokenizedRow = tuple[list[int], list[bool]]


@lru_cache(maxsize=1)
def _block(
    tokenizer: PreTrainedTokenizerFast, world: World, seed: int, number: int, tokens: int
) -> Sequence[Sequence[TokenizedRow]]:
    draws = random.Random(f"{seed}/rows/{number}")
    corpus = Corpus(draws, world)
    rows: list[TokenizedRow] = []
    while sum(len(ids) for ids, _ in rows) < tokens * STEPS_PER_BLOCK:
        rows += [tokenize_conversation(tokenizer, corpus.row(), draws) for _ in range(32)]
    rows.sort(key=lambda row: len(row[0]))
    total = sum(len(ids) for ids, _ in rows)
    batches: list[list[TokenizedRow]] = [[] for _ in range(STEPS_PER_BLOCK)]
    done = 0
    for row in rows:
        batches[min(done * STEPS_PER_BLOCK // total, STEPS_PER_BLOCK - 1)].append(row)
        done += len(row[0])
    draws.shuffle(batches)
    return batches


def tokenize_conversation(
    tokenizer: PreTrainedTokenizerFast, row: Conversation, draws: random.Random
) -> tuple[list[int], list[bool]]:
    """Token ids of a training row and which of them are learned; a note is tokenized on its own.

    What the assistant says is learned in full, of what it is told a random `PROMPT_SHARE`.
    """
    if row[0]["role"] == "text":
        pieces = [(BOS, False), (row[0]["content"] + tokenizer.eos_token, True)]
    else:
        pieces = [(BOS, False)]
        for position, message in enumerate(row):
            if message["role"] == "note":
                pieces += [(ROLES["assistant"], False), (message["content"], False)]
            elif message["role"] == "assistant":
                if row[position - 1]["role"] != "note":
                    pieces.append((ROLES["assistant"], False))
                pieces.append((message["content"] + tokenizer.eos_token, True))
            else:
                pieces.append((ROLES[message["role"]] + message["content"] + tokenizer.eos_token, False))
    ids, learned = [], []
    for text, said in pieces:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        ids += tokens
        learned += [said or draws.random() < PROMPT_SHARE for _ in tokens]
    return ids, learned


def _batch(tokenizer: PreTrainedTokenizerFast, rows: Sequence[TokenizedRow]) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    pad, speaker = tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids(ROLES["assistant"])
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    return Batch(
        input_ids=torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]),
        attention_mask=(torch.arange(width) < lengths[:, None]).long(),
        learned=torch.tensor([learned + [False] * (width - len(learned)) for _, learned in rows]),
        read_positions=torch.tensor([ids.index(speaker) if speaker in ids else 0 for ids, _ in rows]),
    )
