"""Batched generation through transformers' own loop, with tokens that a row must begin with.

Forced tokens are how the guard's condition and a caller's prefill enter a row: they are decoded like any other
token, on the same KV cache, and do not count against the length of the answer. Everything else (sampling, cache,
sliding windows, streaming) is `model.generate`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from lasa.layers import input_device
from lasa.rendering import turn_end_ids


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are drawn.

    Attributes:
        max_new_tokens: Length limit of an answer, forced tokens not counted.
        temperature: 0 for greedy decoding.
        top_p: Nucleus.
        stop: Texts that end an answer; they are not part of it.
        seed: Of the sampling; None leaves the global generator alone.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Generated:
    """One row's outcome.

    Attributes:
        token_ids: The answer, without forced tokens and terminator.
        text: The answer as text.
        finish_reason: `stop` at a terminator or stop text, `length` at the limit.
    """

    token_ids: list[int]
    text: str
    finish_reason: Literal["stop", "length"]


class RowPlan:
    """Per row: the tokens it begins with, and how many of its own may follow. Filled once the prompt was read.

    Args:
        plan: Called at the first decoding step; returns one `(forced token ids, answer limit)` per row.
    """

    def __init__(self, plan: Callable[[], list[tuple[list[int], int]]]) -> None:
        self._plan = plan
        self._rows: list[tuple[list[int], int]] | None = None

    @property
    def rows(self) -> list[tuple[list[int], int]]:
        """The plan, made on first use."""
        if self._rows is None:
            self._rows = self._plan()
        return self._rows


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    plan: RowPlan | None = None,
    longest_forced: int = 0,
    streamer: Any = None,
) -> list[Generated]:
    """Generate one answer per prompt.

    Args:
        model: Any Hugging Face causal LM.
        tokenizer: Its tokenizer.
        prompts: Rendered prompts as token ids.
        settings: Length, sampling, stop texts.
        plan: Forced tokens and limits per row; without it rows are free.
        longest_forced: An upper bound of the number of forced tokens of any row.
        streamer: A transformers streamer; it also sees the forced tokens.
    """
    if settings.max_new_tokens < 1:
        return [Generated([], "", "length") for _ in prompts]
    plan = plan or RowPlan(lambda: [([], settings.max_new_tokens)] * len(prompts))
    ends = terminators(model, tokenizer)
    input_ids, mask = left_pad(prompts, ends[0])
    device, width = input_device(model), input_ids.shape[1]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens + longest_forced,
        do_sample=settings.temperature > 0,
        temperature=settings.temperature if settings.temperature > 0 else None,
        top_p=settings.top_p if settings.temperature > 0 else None,
        top_k=0 if settings.temperature > 0 else None,
        eos_token_id=ends,
        pad_token_id=pad,
    )
    limits = _RowLimits(plan, width, tokenizer, settings.stop)
    if settings.seed is not None:
        torch.manual_seed(settings.seed)
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([_ForcedTokens(plan, width)]),
            stopping_criteria=StoppingCriteriaList([limits]),
            streamer=streamer,
        )
    rows = output[:, width:].tolist()
    return [
        _answer(tokenizer, row, len(forced), limit, ends, settings.stop)
        for row, (forced, limit) in zip(rows, plan.rows, strict=True)
    ]


def terminators(model: nn.Module, tokenizer: Any) -> list[int]:
    """Token ids that end an answer: the model's own and the chat template's."""
    configured: Any = model.generation_config.eos_token_id  # type: ignore[union-attr]
    ids = [configured] if isinstance(configured, int) else list(configured or [])
    specials = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ids += [token for token in turn_end_ids(tokenizer) if token in specials]
    return list(dict.fromkeys(ids))


def left_pad(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Prompts padded on the left, and the attention mask: `[rows, width]` each."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


class _ForcedTokens(LogitsProcessor):  # type: ignore[misc]
    """Allows only the planned token while a row is at its forced beginning."""

    def __init__(self, plan: RowPlan, width: int) -> None:
        self.plan, self.width = plan, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.width
        for row, (forced, _) in enumerate(self.plan.rows):
            if step < len(forced):
                scores[row] = -torch.inf
                scores[row, forced[step]] = 0.0
        return scores


class _RowLimits(StoppingCriteria):  # type: ignore[misc]
    """Ends each row after its own number of answer tokens, or at a stop text inside the answer."""

    def __init__(self, plan: RowPlan, width: int, tokenizer: Any, stop: Sequence[str]) -> None:
        self.plan, self.width, self.tokenizer, self.stop = plan, width, tokenizer, stop

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        count = input_ids.shape[1] - self.width
        done = [count >= len(forced) + limit for forced, limit in self.plan.rows]
        if self.stop:
            for row, (forced, _) in enumerate(self.plan.rows):
                if not done[row] and count > len(forced):
                    text = self.tokenizer.decode(input_ids[row, self.width + len(forced) :], skip_special_tokens=True)
                    done[row] = any(stop in text for stop in self.stop)
        return torch.tensor(done, device=input_ids.device)


def _answer(
    tokenizer: Any, row: list[int], forced: int, limit: int, ends: Sequence[int], stop: Sequence[str]
) -> Generated:
    tokens, reason = row[forced : forced + limit], "length"
    for position, token in enumerate(tokens):
        if token in ends:
            tokens, reason = tokens[:position], "stop"
            break
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    cuts = [text.index(s) for s in stop if s in text]
    if cuts:
        text, reason = text[: min(cuts)], "stop"
    return Generated(tokens, text, reason)  # type: ignore[arg-type]
