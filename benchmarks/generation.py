"""GuardedAnswer generation against plain generation, and against reading first and generating afterwards.

The workload is dominated by the prompt, as classifying a document or answering from retrieved text is: 8 prompts of
512 tokens, answers of 8 tokens. That is where a second pass over the prompt costs most. Nothing is flagged, so all
sides write the same tokens. "Read, then generate" is what the first public implementation does: a full forward pass
of the same model for the hidden state, then an ordinary `generate` that reads the prompt again.
"""

from dataclasses import replace

import torch
from harness import Ratio, Scale, interleaved
from random_model import make_model, make_prompts, make_tokenizer

from lasa.files.artifacts import model_fingerprint
from lasa.guard.guard import Guard
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.models.generation import GenerationSettings
from lasa.models.padding import left_pad
from lasa.models.positions import ReadPoint
from lasa.models.rendering import render, template_fingerprint

PROMPTS = 8
SHORT, LONG = 8, 64
"""New tokens of an answer: where the prompt dominates, and where the answer does."""

ROWS, QUESTION = (1, 32), 32
"""Rows that are decoded together, and tokens of their prompts, where decoding is all that takes time."""


def measure(scale: Scale) -> list[Ratio]:
    model, tokenizer = make_model(scale), make_tokenizer()
    model.generation_config.eos_token_id = None
    long_prompts = [p.messages for p in make_prompts(PROMPTS, scale.generation_prompt, scale.generation_prompt)]
    questions = [p.messages for p in make_prompts(max(ROWS), QUESTION, QUESTION)]
    layer = scale.layers // 2
    point = ReadPoint(layer, "last", template_fingerprint(tokenizer))
    interpreter = SafetySemanticInterpreter(
        InterpreterConfig(point, scale.width, 32, base_fingerprint=model_fingerprint(model), threshold=1.0)
    ).eval()
    guard = Guard(model, tokenizer, interpreter)

    def prompts(conversations) -> dict[str, torch.Tensor]:
        ids, mask = left_pad([render(tokenizer, messages).token_ids for messages in conversations], 0)
        return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}

    @torch.inference_mode()
    def plain(new_tokens: int, conversations=long_prompts) -> list[str]:
        batch = prompts(conversations)
        output = model.generate(**batch, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None)
        answers = output[:, batch["input_ids"].shape[1] :].tolist()
        return [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]

    def guarded(new_tokens: int, conversations=long_prompts) -> list[str]:
        answers = guard.generate(conversations, GenerationSettings(max_new_tokens=new_tokens))
        assert not any(answer.decision.action == "condition" for answer in answers)
        return [answer.answer.text for answer in answers]

    @torch.inference_mode()
    def read_then_generate(new_tokens: int) -> list[str]:
        states = model.model(**prompts(long_prompts), use_cache=False, output_hidden_states=True).hidden_states[layer][
            :, -1
        ]
        interpreter.probability(states)
        return plain(new_tokens)

    seconds = interleaved(
        {
            "plain": lambda: plain(SHORT),
            "guarded": lambda: guarded(SHORT),
            "read first": lambda: read_then_generate(SHORT),
            "plain, long": lambda: plain(LONG),
            "guarded, long": lambda: guarded(LONG),
        },
        3 * scale.repeats,  # single times scatter by more than the overhead that is looked for
    )
    decoding = interleaved(
        {
            f"{name}, {rows}": lambda side=side, rows=rows: side(LONG, questions[:rows])
            for name, side in (("plain", plain), ("guarded", guarded))
            for rows in ROWS
        },
        3 * scale.repeats,
    )
    workload = f"{PROMPTS} x {scale.generation_prompt}"
    overhead = Ratio("", 0, 1.02)
    return [
        replace(
            overhead,
            name=f"guarded / plain generation, {workload} + {SHORT} tokens",
            value=seconds["guarded"] / seconds["plain"],
            detail=f"{seconds['guarded']:.2f} s / {seconds['plain']:.2f} s",
        ),
        replace(
            overhead,
            name=f"guarded / plain generation, {workload} + {LONG} tokens",
            value=seconds["guarded, long"] / seconds["plain, long"],
            detail=f"{seconds['guarded, long']:.2f} s / {seconds['plain, long']:.2f} s",
        ),
        Ratio(
            f"read-then-generate / guarded generation, {workload} + {SHORT} tokens",
            seconds["read first"] / seconds["guarded"],
            1.7,
            at_least=True,
            detail=f"{seconds['read first']:.2f} s / {seconds['guarded']:.2f} s",
        ),
        *(
            replace(
                overhead,
                name=f"guarded / plain decoding, {rows} x {QUESTION} + {LONG} tokens",
                value=decoding[f"guarded, {rows}"] / decoding[f"plain, {rows}"],
                detail=f"{decoding[f'guarded, {rows}']:.2f} s / {decoding[f'plain, {rows}']:.2f} s",
            )
            for rows in ROWS
        ),
    ]
