"""Guarded decoding that reads every token of the answer, and names kinds of harm, against plain generation.

The answer dominates here: what the head for answers costs is one more matrix multiplication for each of its tokens,
and the wait for a number on the CPU.
"""

import torch
from harness import Ratio, Scale, interleaved
from random_model import make_model, make_prompts, make_tokenizer

from lasa.conditioning.decision import Policy
from lasa.files.artifacts import model_fingerprint
from lasa.guard.guard import Guard
from lasa.interpreter.heads import AnswerHead, CategoryHead
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.models.generation import GenerationSettings, terminators
from lasa.models.padding import left_pad
from lasa.models.positions import ReadPoint
from lasa.models.rendering import render, template_fingerprint

PROMPTS, TOKENS = 8, 128


def measure(scale: Scale) -> list[Ratio]:
    model, tokenizer = make_model(scale), make_tokenizer()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.get_output_embeddings().weight[terminators(model, tokenizer)] = 0  # no answer ends early
    width = min(64, scale.generation_prompt)
    conversations = [p.messages for p in make_prompts(PROMPTS, width, width)]
    point = ReadPoint(scale.layers // 2, "last", template_fingerprint(tokenizer))
    heads = {"categories": CategoryHead(("hate", "crime", "violence")), "answers": AnswerHead(8, threshold=1.0)}
    config = InterpreterConfig(
        point, scale.width, 32, base_fingerprint=model_fingerprint(model), threshold=1.0, **heads
    )
    guard = Guard(model, tokenizer, SafetySemanticInterpreter(config).eval(), Policy(reread_every=1))
    settings = GenerationSettings(max_new_tokens=TOKENS)

    @torch.inference_mode()
    def plain() -> None:
        ids, mask = left_pad([render(tokenizer, messages).token_ids for messages in conversations], 0)
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None
        )
        for answer in output[:, ids.shape[1] :].tolist():
            tokenizer.decode(answer, skip_special_tokens=True)

    def guarded() -> None:
        answers = guard.generate(conversations, settings)
        assert not any(answer.stopped or answer.decision.flagged for answer in answers)
        assert all(len(answer.answer.token_ids) == TOKENS for answer in answers)

    seconds = interleaved({"plain": plain, "guarded": guarded}, 2 * scale.repeats)
    return [
        Ratio(
            f"guarded with every token read / plain generation, {PROMPTS} x {width} + {TOKENS} tokens",
            seconds["guarded"] / seconds["plain"],
            1.03,
            detail=f"{seconds['guarded']:.2f} s / {seconds['plain']:.2f} s",
        )
    ]
