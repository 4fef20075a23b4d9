"""The same guard twice: over transformers, and inside vLLM."""

import gc
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lasa_vllm.engine import PROCESSORS, SCHEDULER
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

from guards import CONDITION, build_interpreter, lively_model
from lasa.conditioning.condition import DEFAULT_CONDITION
from lasa.conditioning.decision import Policy
from lasa.data.prompts import user_prompt
from lasa.data.world import tables
from lasa.files.artifacts import model_fingerprint
from lasa.guard.guard import Guard
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.models.generation import GenerationSettings
from lasa.models.hidden_states import read_hidden_states
from lasa.models.layers import hidden_size
from lasa.models.loading import load_model
from lasa.models.origin import model_folder
from lasa.models.positions import ReadPoint
from lasa.models.rendering import template_fingerprint

PLANTED_LAYER = 6
ANSWER_LENGTH = 24
FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2},
    "phi3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 32, "tie_word_embeddings": True},  # vLLM has no head for it
    "gemma3_text": {"query_pre_attn_scalar": 32},
}
"""Model types of transformers, and what a tiny one needs."""


@dataclass(frozen=True)
class Case:
    """A guard over transformers, the folders of its model and interpreter, and 100 prompts of which it flags some."""

    guard: Guard
    model: Path
    interpreter: Path
    conversations: list

    @property
    def lasa(self) -> dict:
        """The plugin's settings."""
        return {"interpreter": str(self.interpreter), "condition": self.guard.policy.condition}


@dataclass(frozen=True)
class Answer:
    """What a caller gets; the text of broken characters is the one thing in which detokenizers may differ."""

    token_ids: list[int]
    text: str = field(compare=False)
    finish_reason: str


def tiny_prompts(count=100):
    """Prompts of very different lengths."""
    words = [
        "how",
        "do",
        "I",
        "water",
        "the",
        "plant",
        "paint",
        "house",
        "cook",
        "rice",
        "read",
        "a",
        "very",
        "long",
        "letter",
        "from",
        "museum",
        "and",
        "run",
    ]
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (count,), generator=draw).tolist()
    texts = [" ".join(words[i] for i in torch.randint(len(words), (n,), generator=draw)) for n in lengths]
    return [user_prompt(str(number), "en", f"{number} {text}") for number, text in enumerate(texts)]


def tiny_case(family, tokenizer, folder) -> Case:
    """A random model and a random probe that flags half of the prompts."""
    sizes = {"hidden_size": 128, "head_dim": 32}  # the smallest head vLLM has on a CPU
    model = lively_model(family, tokenizer, **sizes, **FAMILIES[family])
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id]
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    attention = "eager" if family == "gemma2" else None  # sdpa leaves out its cap
    model, tokenizer = load_model(str(folder / "model"), attention=attention)
    prompts = tiny_prompts()
    return save(model, tokenizer, build_interpreter(model, tokenizer, prompts), CONDITION, prompts, folder)


def embedded_case(folder) -> Case:
    """The embedded model, and a linear probe fitted on a part of its training prompts."""
    shutil.copytree(model_folder("embedded"), folder / "model")
    model, tokenizer = load_model("embedded", dtype="float32")  # as in vLLM; it is stored in bfloat16
    prompts = tables.PROMPT_TABLES["interpreter"]()[::3]
    states = read_hidden_states(model, tokenizer, prompts, [PLANTED_LAYER])[:, 0]
    labels = torch.tensor([float(p.harmful) for p in prompts])
    torch.manual_seed(0)
    point = ReadPoint(PLANTED_LAYER, "last", template_fingerprint(tokenizer))
    probe = SafetySemanticInterpreter(InterpreterConfig(point, hidden_size(model), 0))
    optimizer = torch.optim.AdamW(probe.parameters(), 0.05, weight_decay=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(probe(states), labels).backward()
        optimizer.step()
    asked = tables.evaluation_prompts("combinations", 5)
    return save(model, tokenizer, probe.eval(), DEFAULT_CONDITION, asked, folder)


def save(model, tokenizer, probe, condition, prompts, folder) -> Case:
    """Store the interpreter beside its model."""
    probe.config = replace(probe.config, base_fingerprint=model_fingerprint(model))
    probe.save_pretrained(folder / "interpreter")
    guard = Guard(model, tokenizer, probe, Policy(condition=condition))
    return Case(guard, folder / "model", folder / "interpreter", [list(p.messages) for p in prompts])


def engine_arguments(case, **lasa) -> dict:
    """Arguments of a small guarded engine."""
    return {
        "model": str(case.model),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 64,
        "kv_cache_memory_bytes": 64 << 20,
        "additional_config": {"lasa": {**case.lasa, **lasa}},
        "logits_processors": [PROCESSORS[int(os.environ["VLLM_USE_V2_MODEL_RUNNER"])]],
        "tensor_parallel_size": int(os.environ.get("LASA_VLLM_TENSOR_PARALLEL", "1")),
        "scheduler_cls": SCHEDULER,
    }


@contextmanager
def engine(case, *, lasa=None, **arguments):
    """vLLM with the plugin."""
    llm = LLM(**{**engine_arguments(case, **(lasa or {})), **arguments})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def ask(llm, conversations, limit=ANSWER_LENGTH, **params) -> list[Answer]:
    """Greedy answers of vLLM."""
    wanted = SamplingParams(**{"temperature": 0.0, "max_tokens": limit, **params})
    answers = []
    for output in llm.chat(conversations, wanted, use_tqdm=False):
        one = output.outputs[0]
        ids = list(one.token_ids)
        if one.finish_reason == "stop":  # the terminator is not part of the answer
            ids = ids[:-1]
        answers.append(Answer(ids, one.text, one.finish_reason))
    return answers


def expect(case, conversations=None, limit=ANSWER_LENGTH) -> tuple[list[Answer], list[bool]]:
    """Greedy answers of the transformers guard, and what it flagged."""
    answered = case.guard.generate(conversations or case.conversations, GenerationSettings(limit))
    answers = [Answer(one.answer.token_ids, one.answer.text, one.answer.finish_reason) for one in answered]
    return answers, [one.decision.flagged for one in answered]
