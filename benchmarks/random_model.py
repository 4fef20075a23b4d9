"""A random Llama, a tokenizer of whole words and prompts of known lengths: speed does not depend on the weights."""

import random

import torch
from harness import Scale
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lasa.data.prompts import Prompt, user_prompt

SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|end|>", "<|assistant|>"]
WORDS = [f"w{number}" for number in range(4090)]
FRAME = 4
"""Tokens that the chat template adds: BOS, user, end, assistant."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[3:],
        padding_side="left",
        chat_template=(
            "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
        ),
    )


def make_model(scale: Scale) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=scale.width,
        intermediate_size=scale.width * 11 // 4,
        num_hidden_layers=scale.layers,
        num_attention_heads=max(8, scale.width // 128),
        num_key_value_heads=8,
        max_position_embeddings=2048,
        dtype="bfloat16" if scale.device == "cuda" else "float32",
    )
    with torch.device(scale.device):
        model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    return model


def make_prompts(count: int, shortest: int, longest: int, seed: int = 0) -> list[Prompt]:
    """Prompts whose rendered lengths are spread evenly over a range of tokens."""
    draw = random.Random(seed)
    return [
        user_prompt(str(number), "en", " ".join(draw.choices(WORDS, k=draw.randint(shortest, longest) - FRAME)))
        for number in range(count)
    ]
