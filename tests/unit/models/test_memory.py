"""Batches follow from what memory holds, halves of them do where it runs out, and what is let go of is given back."""

import platform
import subprocess
import sys

import pytest
import torch

from conftest import build_model
from guards import lively_model
from lasa.data.prompts import user_prompt
from lasa.evaluation.answering import LocalModel
from lasa.models import memory, perplexity
from lasa.models.generation import GenerationSettings
from lasa.models.memory import MOST_TOKENS, cache_bytes_per_token, in_halves, token_budget
from lasa.models.perplexity import conversation_losses, language_losses, token_losses
from meter import LargestTensor

FREED = """
import torch
from lasa.models.memory import release_memory

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

blocks, between = [], []
for _ in range(6400):  # 64 KiB each: too small for glibc to map one by one
    blocks.append(torch.ones(2**14))
    between.append(torch.ones(2**8))
held = resident()
del blocks
freed = resident()
release_memory()
print(held, freed, resident())
"""


class Small:
    """Work that has memory for so many rows at once."""

    def __init__(self, most: int, message: str = "CUDA out of memory") -> None:
        self.most, self.message, self.batches = most, message, []

    def __call__(self, rows):
        self.batches.append(len(rows))
        if len(rows) > self.most:
            raise RuntimeError(self.message)
        return [row * 2 for row in rows]


def test_where_memory_runs_out_the_batch_is_halved_and_the_order_kept():
    work = Small(3)
    assert in_halves(range(10), work) == [row * 2 for row in range(10)]
    assert work.batches == [10, 5, 3, 2, 5, 3, 2]


def test_a_row_that_does_not_fit_alone_and_any_other_error_end_the_work():
    with pytest.raises(RuntimeError, match="out of memory"):
        in_halves([1, 2], Small(0))
    with pytest.raises(RuntimeError, match="another"):
        in_halves([1, 2], Small(1, "another error"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc keeps what is freed, other libraries do not")
def test_what_was_freed_between_blocks_that_are_in_use_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    held, freed, released = map(float, done.stdout.split())
    assert held - freed < 100  # of 400 MiB: else the next line could not fail
    assert held - released > 350


def test_answers_of_a_batch_that_was_halved_are_those_of_the_whole(tokenizer, prompts, monkeypatch):
    model = lively_model("llama", tokenizer)
    system = LocalModel(model, tokenizer, None, GenerationSettings(max_new_tokens=6))
    whole = system(prompts[:8])
    generate = model.generate

    def limited(input_ids, **kwargs):
        if len(input_ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model, "generate", limited)
    assert system(prompts[:8]) == whole


def test_a_token_of_the_cache_takes_keys_and_values_of_all_layers(any_model):
    config = any_model.config
    expected = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert cache_bytes_per_token(any_model) == expected


def test_the_budget_is_what_the_cache_has_room_for_beside_the_weights(tokenizer, monkeypatch):
    model = build_model("llama", tokenizer)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    monkeypatch.setattr(memory, "_memory", lambda device: weights + 1000 * 2 * cache_bytes_per_token(model))
    assert token_budget(model) == 1000
    monkeypatch.setattr(memory, "_memory", lambda device: 2**50)
    assert token_budget(model) == MOST_TOKENS
    monkeypatch.setattr(memory, "_memory", lambda device: 0)
    assert token_budget(model) == 1


@pytest.fixture
def talk(tokenizer):
    """Conversations, most of them short and one long."""
    words = ["paint", "water the plant", "read a letter", "cook " * 60]
    return [user_prompt(str(n), code, f"{text} {n}") for n in range(8) for text in words for code in ("en", "sw")]


def test_losses_are_those_of_each_row_alone(tokenizer, talk):
    model = build_model("llama", tokenizer)
    together = conversation_losses(model, tokenizer, talk)
    for prompt, (loss, count) in list(zip(talk, together, strict=True))[::7]:
        [(alone, tokens)] = conversation_losses(model, tokenizer, [prompt])
        assert (loss, count) == (pytest.approx(alone, rel=1e-5), tokens)
    sums = language_losses(talk, together)
    assert sums["en"][1] == sum(n for p, (_, n) in zip(talk, together, strict=True) if p.language == "en")


def test_losses_of_a_batch_that_was_halved_are_those_of_the_whole(tokenizer, talk, monkeypatch):
    model = build_model("llama", tokenizer)
    whole, batch_losses = conversation_losses(model, tokenizer, talk), perplexity._batch_losses

    def limited(model, rows):
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch_losses(model, rows)

    monkeypatch.setattr(perplexity, "_batch_losses", limited)
    halved = conversation_losses(model, tokenizer, talk)
    assert [count for _, count in halved] == [count for _, count in whole]
    assert [loss for loss, _ in halved] == pytest.approx([loss for loss, _ in whole], rel=1e-4)


def test_logits_are_held_by_tokens_and_never_as_float32_at_once(tokenizer, talk, monkeypatch):
    """Sixteen rows of any length, with full float32 logits, take 50 GB at 2,000 tokens of Qwen's vocabulary."""
    model = build_model("llama", tokenizer, vocab_size=2000).to(torch.bfloat16)
    rows = [tokenizer(prompt.text)["input_ids"] for prompt in talk]
    monkeypatch.setattr(perplexity, "LOGIT_BYTES", 400 * 2000 * 2)
    monkeypatch.setattr(perplexity, "FLOAT_TOKENS", 64)
    with LargestTensor(torch.bfloat16) as stored, LargestTensor(torch.float32) as floats:
        token_losses(model, rows)
    assert 200 * 2000 * 2 < stored.bytes <= 400 * 2000 * 2
    assert floats.bytes <= 64 * 2000 * 4
