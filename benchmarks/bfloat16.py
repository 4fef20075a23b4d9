"""Reading in bfloat16 against float32 on this CPU, on a random model of the size of Qwen2.5-0.5B."""

import torch
from harness import SMOKE, Ratio, Scale, interleaved
from random_model import make_prompts, make_tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from lasa.models.hidden_states import read_hidden_states
from lasa.models.loading import cpu_multiplies_bfloat16


def measure(scale: Scale) -> list[Ratio]:
    tokenizer = make_tokenizer()
    smoke = scale == SMOKE
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64 if smoke else 896,
        intermediate_size=128 if smoke else 4864,
        num_hidden_layers=2 if smoke else 24,
        num_attention_heads=4 if smoke else 14,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    models = {"bfloat16": Qwen2ForCausalLM(config).bfloat16().eval(), "float32": Qwen2ForCausalLM(config).eval()}
    prompts = make_prompts(8 if smoke else 32, 40, 80)
    layers = list(range(config.num_hidden_layers + 1))
    seconds = interleaved(
        {
            name: lambda model=model: read_hidden_states(model, tokenizer, prompts, layers)
            for name, model in models.items()
        },
        1 if smoke else 3,
    )
    native = "" if cpu_multiplies_bfloat16() else "; this CPU has no instructions for it"
    return [
        Ratio(
            "reading a 0.5B model in float32 / in bfloat16",
            seconds["float32"] / seconds["bfloat16"],
            3,
            at_least=True,
            detail=f"{seconds['float32']:.2f} s / {seconds['bfloat16']:.2f} s{native}",
        )
    ]
