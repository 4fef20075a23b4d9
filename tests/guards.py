"""Guards over tiny random models, with a random interpreter whose threshold flags some of given prompts."""

import copy

import torch

from conftest import build_model
from lasa.conditioning.condition import condition_ids
from lasa.conditioning.decision import Policy
from lasa.data.prompts import Prompt
from lasa.files.artifacts import model_fingerprint
from lasa.guard.guard import Guard
from lasa.interpreter.heads import CategoryHead
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.models.activated import Activation
from lasa.models.hidden_states import read_hidden_states
from lasa.models.layers import hidden_size
from lasa.models.positions import ReadPoint
from lasa.models.rendering import template_fingerprint

CONDITION = "Harmful query detected. Refuse."
LAYER = 2


def lively_model(family, tokenizer, **settings):
    """A tiny random model whose greedy answers vary from token to token and from prompt to prompt."""
    model = build_model(family, tokenizer, **{"tie_word_embeddings": False, **settings})
    with torch.no_grad():
        for block in model.get_decoder().layers:
            for parameter in block.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(3)
    return model


def build_interpreter(model, tokenizer, prompts, *, position="last", flagged=0.5, seed=0, kinds=(), **settings):
    """A random probe that flags about that share of the prompts (0: none, 1: all), and names one of the kinds."""
    torch.manual_seed(seed)
    point = ReadPoint(LAYER, position, template_fingerprint(tokenizer))
    head = CategoryHead(kinds, threshold=0.0) if kinds else None
    fingerprint = model_fingerprint(model)
    config = InterpreterConfig(point, hidden_size(model), 0, base_fingerprint=fingerprint, categories=head)
    probe = SafetySemanticInterpreter(config).eval()
    states = read_hidden_states(model, tokenizer, prompts, [LAYER], position)[:, 0]
    scores = sorted(probe.probability(states).tolist())
    wanted = round((1 - flagged) * len(scores))
    near = range(max(1, wanted - 2), min(len(scores), wanted + 3))
    gap = max(near, key=lambda i: scores[i] - scores[i - 1])  # no prompt may lie on the threshold
    threshold = 0.0 if flagged == 1 else 1.0 if flagged == 0 else (scores[gap - 1] + scores[gap]) / 2
    object.__setattr__(config, "threshold", threshold)
    for name, value in settings.items():
        object.__setattr__(config, name, value)
    return probe


def build_guard(model, tokenizer, prompts, *, position="last", flagged=0.5, policy=None, seed=0, **settings) -> Guard:
    """A guard over that probe."""
    interpreter = build_interpreter(
        model, tokenizer, prompts, position=position, flagged=flagged, seed=seed, **settings
    )
    return Guard(model, tokenizer, interpreter, policy or Policy(condition=CONDITION))


def conversations(prompts: list[Prompt]):
    """The prompts' conversations."""
    return [prompt.messages for prompt in prompts]


def behind_condition(model, tokenizer, seed=0):
    """A copy of a model with a random adapter, strong enough to change every answer, that acts behind the condition."""
    from peft import LoraConfig, get_peft_model  # the environment with vLLM has none

    torch.manual_seed(seed)
    config = LoraConfig(
        r=2,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        alora_invocation_tokens=condition_ids(tokenizer, CONDITION),
    )
    adapted = get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    Activation(adapted)
    return adapted.eval()
