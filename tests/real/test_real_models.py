"""Real pretrained models: run by `make test-real`, with LASA_MODELS naming the folder that holds them."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lasa.bottleneck.search import find_bottleneck
from lasa.data.sources import load_prompts
from lasa.interpreter.evaluation import decisions_on
from lasa.interpreter.fit import train_interpreter
from lasa.interpreter.settings import TrainingOptions
from lasa.models.hidden_states import read_hidden_states
from lasa.models.layers import num_layers
from lasa.models.loading import load_model

MODELS = Path(os.environ.get("LASA_MODELS", "nowhere"))
QWEN, GEMMA, SMOLLM = "qwen2.5-coder-0.5b-instruct", "gemma-3-270m", "smollm2-135m-instruct"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not MODELS.is_dir(), reason="LASA_MODELS names no folder of pretrained models"),
]


@pytest.fixture(scope="module")
def multijail(shared):
    return load_prompts(f"multijail:{shared / 'multijail' / 'MultiJail.csv'}")


def search(model, tokenizer, prompts):
    layers = range(num_layers(model) + 1)
    return find_bottleneck(read_hidden_states(model, tokenizer, prompts, layers), layers, prompts, num_layers(model))


@pytest.mark.parametrize(("name", "layer", "within"), [(QWEN, 16, (14, 17)), (GEMMA, 13, (12, 14))])
def test_the_bottleneck_of_a_pretrained_model_is_found(name, layer, within, multijail):
    found = search(*load_model(str(MODELS / name)), multijail)
    assert (found.layer, found.strength) == (layer, "weak")
    assert within[0] <= found.layer_interval[0] and found.layer_interval[1] <= within[1]


def test_the_same_model_with_random_weights_has_none(multijail):
    model, tokenizer = load_model(str(MODELS / GEMMA))
    torch.manual_seed(0)
    random = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16).eval()
    some = {prompt.query_id for prompt in multijail[:1000]}
    found = search(random, tokenizer, [prompt for prompt in multijail if prompt.query_id in some])
    assert found.layer is None


def test_a_model_that_knows_english_only_has_none(multijail):
    model, tokenizer = load_model(str(MODELS / SMOLLM))
    found = search(model, tokenizer, [p for p in multijail if p.language in ("zh", "ko", "th", "bn", "ar")])
    assert found.layer is None


def test_decisions_in_bfloat16_are_those_in_float32(shared):
    labelled = load_prompts(str(shared / "real" / "labelled-train.jsonl"))[::8]
    asked = load_prompts(str(shared / "real" / "labelled-development.jsonl"))[::4]
    development = load_prompts(str(shared / "real" / "labelled-development.jsonl"))[1::4]
    model, tokenizer = load_model(str(MODELS / QWEN), dtype="float32")
    training = TrainingOptions(seeds=1)
    probe = train_interpreter(model, tokenizer, labelled, development, layer=16, training=training).interpreter
    exact = decisions_on(probe, read_hidden_states(model, tokenizer, asked, [16])[:, 0], asked)
    model, tokenizer = load_model(str(MODELS / QWEN), dtype="bfloat16")
    rounded = decisions_on(probe, read_hidden_states(model, tokenizer, asked, [16])[:, 0], asked)
    assert sum(a == b for a, b in zip(exact, rounded, strict=True)) >= 0.99 * len(asked)
