"""Batched generation through transformers' own loop, with tokens that a row must begin with.

Forced tokens are how the guard's condition and a caller's prefill enter a row: they are decoded like any other
token, on the same KV cache, and do not count against the length of the answer. Everything else (sampling, cache,
sliding windows, streaming) is `model.generate`. What a model folder adds on its own (beams, repetition penalties) is
off, so that an answer depends on the settings alone.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from lasa.models.detokenization import GrowingText, cut_at_stop
from lasa.models.layers import input_device
from lasa.models.padding import left_pad
from lasa.models.rendering import turn_end_ids

FinishReason = Literal["stop", "length", "content_filter"]
"""`stop` at a terminator or stop text, `length` at the limit, `content_filter` where the guard ended the answer."""


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are drawn.

    Attributes:
        max_new_tokens: Length limit of an answer, forced tokens not counted.
        temperature: 0 for greedy decoding.
        top_p: Nucleus.
        top_k: Draw from so many of the likeliest tokens; 0: from all.
        stop: Texts that end an answer; they are not part of it.
        seed: Of the sampling; None leaves the global generator alone.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
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
    finish_reason: FinishReason


class GrowingAnswer:
    """One row while it is decoded: the tokens it must still take, its own tokens, and whether it has ended.

    Args:
        tokenizer: Turns its tokens into text.
        ends: Token ids that end an answer.
        limit: Number of own tokens after which it ends.
        stop: Texts that end an answer.
        forced: Token ids it begins with.
        inserted: Token ids to force right after the row's first occurrence of one of `insert_after`, own or forced.
        insert_after: Token id sequences.
        keep_text: Keep `text` also without stop texts, for streaming.
        read_to_end: The row is over only once the model has taken in the last token of its answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        ends: Sequence[int],
        limit: int,
        stop: Sequence[str] = (),
        forced: Sequence[int] = (),
        *,
        inserted: Sequence[int] = (),
        insert_after: Sequence[Sequence[int]] = (),
        keep_text: bool = False,
        read_to_end: bool = False,
    ) -> None:
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = "length" if limit < 1 else None
        self._text = ""
        self._tokenizer, self._ends, self._limit, self._stop = tokenizer, frozenset(ends), limit, tuple(stop)
        self._forced = deque(forced)
        self._inserted, self._insert_after = list(inserted), [list(one) for one in insert_after]
        self._taken: list[int] = []  # forced tokens and its own
        self._all_taken_in = limit < 1 or not read_to_end
        self._growing = GrowingText(tokenizer) if stop or keep_text else None

    @property
    def text(self) -> str:
        """The answer so far as text, where it is kept: whole characters only, without stop text."""
        if self._growing:
            self._text += self._growing.new()
        return self._text

    @property
    def over(self) -> bool:
        """Whether nothing more is to be done about the row."""
        return self.finish_reason is not None and self._all_taken_in

    @property
    def next_forced(self) -> int | None:
        """The token that must come next, if one must."""
        return self._forced[0] if self._forced and not self.finish_reason else None

    def take_forced(self) -> list[int]:
        """Accept every token that must come now, and return them."""
        taken = []
        while (token := self.next_forced) is not None:
            self.accept(token)
            taken.append(token)
        return taken

    def accept(self, token: int) -> bool:
        """Take the next token; whether it became part of the answer."""
        if self.finish_reason:
            self._all_taken_in = True
            return False
        forced = bool(self._forced)
        if forced:
            self._forced.popleft()
        elif token in self._ends:
            self._all_taken_in = True
            self.finish("stop")
            return False
        else:
            self.token_ids.append(token)
        self._taken.append(token)
        if self._inserted and any(self._taken[-len(one) :] == one for one in self._insert_after):
            self._forced.extendleft(reversed(self._inserted))
            self._inserted = []
        if forced:
            return False
        if self._growing:
            self._growing.add(token)
            if self._stop and cut_at_stop(self.text, self._stop) is not None:
                self.finish("stop")
        if len(self.token_ids) >= self._limit:
            self.finish("length")
        return True

    def finish(self, reason: FinishReason) -> None:
        """End the row, unless it has ended."""
        if self.finish_reason is None:
            self.finish_reason = reason
            if self._growing:
                whole = self.text + self._growing.rest()
                cut = cut_at_stop(whole, self._stop)
                self._text = whole if cut is None else cut

    def generated(self) -> Generated:
        """The outcome."""
        text = self._tokenizer.decode(self.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cut = cut_at_stop(text, self._stop)
        if cut is not None and self.finish_reason != "content_filter":
            return Generated(self.token_ids, cut, "stop")
        return Generated(self.token_ids, text, self.finish_reason or "length")


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    open_rows: Callable[[], Sequence[GrowingAnswer]] | None = None,
    longest_forced: int = 0,
    streamer: Any = None,
) -> list[Generated]:
    """Generate one answer per prompt.

    Args:
        model: Any Hugging Face causal LM.
        tokenizer: Its tokenizer.
        prompts: Rendered prompts as token ids.
        settings: Length, sampling, stop texts.
        open_rows: Called once, after the prefill; gives the rows with what they are forced to begin with. Without it
            rows are free.
        longest_forced: An upper bound of the number of forced tokens of any row.
        streamer: A transformers streamer; it also sees the forced tokens.
    """
    if not prompts:
        return []
    if settings.max_new_tokens < 1 and open_rows is None:
        return [Generated([], "", "length") for _ in prompts]
    ends = terminators(model, tokenizer)
    if open_rows is None:

        def open_rows() -> Sequence[GrowingAnswer]:
            return [GrowingAnswer(tokenizer, ends, settings.max_new_tokens, settings.stop) for _ in prompts]

    rows = _OpenedAnswers(open_rows)
    input_ids, mask = left_pad(prompts, ends[0])
    device = input_device(model)
    if settings.seed is not None:
        torch.manual_seed(settings.seed)
    with torch.inference_mode():
        model.generate(  # type: ignore[operator]
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            generation_config=_generation_config(tokenizer, ends, settings, longest_forced),
            logits_processor=LogitsProcessorList([_ForcedTokens(rows)]),
            stopping_criteria=StoppingCriteriaList([_RowEnds(rows)]),
            streamer=streamer,
        )
    return [row.generated() for row in rows.states]


def terminators(model: nn.Module, tokenizer: Any) -> list[int]:
    """Token ids that end an answer: the model's own and the chat template's."""
    configured: Any = model.generation_config.eos_token_id  # type: ignore[union-attr]
    ids = [configured] if isinstance(configured, int) else list(configured or [])
    specials = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ids += [token for token in turn_end_ids(tokenizer) if token in specials]
    return list(dict.fromkeys(ids))


def _generation_config(
    tokenizer: Any, ends: Sequence[int], settings: GenerationSettings, longest_forced: int
) -> GenerationConfig:
    sampling = settings.temperature > 0
    return GenerationConfig(
        max_new_tokens=max(settings.max_new_tokens, 1) + longest_forced,
        do_sample=sampling,
        temperature=settings.temperature if sampling else None,
        top_p=settings.top_p if sampling else None,
        top_k=settings.top_k if sampling else None,
        min_p=0.0 if sampling else None,
        typical_p=1.0 if sampling else None,
        num_beams=1,
        num_return_sequences=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        disable_compile=True,  # a compiled step may pass by the layers' observers
        eos_token_id=list(ends),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0],
    )


class _OpenedAnswers:
    """The rows of a batch, opened on first use: at the first decoding step, when the prompt has been read."""

    def __init__(self, open_rows: Callable[[], Sequence[GrowingAnswer]]) -> None:
        self._open_rows = open_rows

    @cached_property
    def states(self) -> Sequence[GrowingAnswer]:
        return self._open_rows()


class _ForcedTokens(LogitsProcessor):  # type: ignore[misc]
    """Allows only the forced token while a row has one coming."""

    def __init__(self, rows: _OpenedAnswers) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = {row: token for row, s in enumerate(self.rows.states) if (token := s.next_forced) is not None}
        missing = max(forced.values(), default=0) + 1 - scores.shape[1]
        if missing > 0:  # virtual tokens have ids beyond the vocabulary
            scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
        for row, token in forced.items():
            scores[row] = -torch.inf
            scores[row, token] = 0.0
        return scores


class _RowEnds(StoppingCriteria):  # type: ignore[misc]
    """Hands every row its next token and ends the rows that are through."""

    def __init__(self, rows: _OpenedAnswers) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        for state, token in zip(self.rows.states, input_ids[:, -1].tolist(), strict=True):
            state.accept(token)
        return torch.tensor([state.over for state in self.rows.states], device=input_ids.device)
