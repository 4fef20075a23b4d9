"""Rows that are answered together while others come and go: a step-level batch over the one-pass guard.

Each step feeds one token of every row through the model. New rows are prefilled on their own (and read there, as in
`lasa.guard`); what they must begin with, the condition above all, follows in one more pass over those rows. Then their
KV cache is laid beside that of the running rows, padded on the left; a row that ends is cut out. A row's tokens do not
depend on its neighbours, beyond rounding. What this is not: paged attention, prefill in pieces (a long prompt delays
one step of everybody), or a static cache. All layers keep their whole past, also those with a sliding window, so any
model whose cache is transformers' `DynamicCache` of keys and values can be served.
"""

import inspect
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lasa.errors import GuardError
from lasa.guard.guard import Guard
from lasa.guard.model import Question
from lasa.guard.reading import BatchReading
from lasa.guard.row import GuardedAnswer, GuardedRow
from lasa.models.activated import acting_in_rows
from lasa.models.detokenization import safe_length
from lasa.models.generation import GenerationSettings, left_pad
from lasa.models.layers import has_recurrent_state, input_device, observe_layers

COLDEST = 1e-6
"""Below this temperature logits would overflow; at it, the likeliest token is drawn."""


@dataclass(frozen=True)
class TokenLogprob:
    """The log probability of one token of an answer, before temperature.

    Attributes:
        token: Its id.
        logprob: Its log probability.
        top: Likeliest tokens and theirs, best first.
        end: Length of the answer's text with this token.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]
    end: int


class ServedAnswer:
    """One answer of the batch; one that is read again stays until its last token was read.

    Args:
        question: What is asked.
        settings: Length, sampling (its own generator where there is a seed) and stop texts.
        top_logprobs: Record log probabilities, with so many alternatives; None records none.
    """

    def __init__(self, question: Question, settings: GenerationSettings, top_logprobs: int | None = None) -> None:
        self.question, self.settings, self.top_logprobs = question, settings, top_logprobs
        self.guarded: GuardedRow | None = None
        self.logprobs: list[TokenLogprob] = []
        self.newest = 0
        self._cleared = 0
        self._lengths: list[int] = []  # of the text with each token
        self._generator = torch.Generator()

    def begin(self, guarded: GuardedRow) -> None:
        """Start the answer, anew where a beginning failed."""
        self.guarded, self.logprobs, self._cleared, self._lengths = guarded, [], 0, []
        if self.settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(self.settings.seed)

    @property
    def tokens(self) -> int:
        """The most tokens that its KV cache may come to hold."""
        return len(self.question.rendered.token_ids) + len(self.question.prefill_ids) + self.settings.max_new_tokens

    @property
    def running(self) -> GuardedRow:
        """The row once its prompt was read.

        Raises:
            GuardError: It was not read.
        """
        if self.guarded is None:
            raise GuardError("The prompt was never read, so it is not answered.")
        return self.guarded

    @property
    def ended(self) -> bool:
        """Whether the answer is complete."""
        return self.running.state.over

    @property
    def released(self) -> str:
        """The part of the answer that may be shown while it is written.

        Held back is what may become a stop text, and what has not been read again where answers are.
        """
        row = self.running
        if row.decision.replaced or row.stopped:
            return row.state.text[: self._cleared]
        if self.ended:
            return row.state.text
        safe = safe_length(row.state.text, self.settings.stop)
        return row.state.text[: min(safe, self._cleared) if row.watched else safe]

    def outcome(self) -> GuardedAnswer:
        """The answer and why."""
        return self.running.outcome()

    def choose(self, logits: Tensor, greedy: int) -> None:
        """Take the next token: the forced one, the likeliest, or one drawn.

        Args:
            logits: `[V]`.
            greedy: Their argmax.
        """
        state = self.running.state
        if state.finish_reason:  # the pass was over its last token, for that to be read
            state.accept(self.newest)
            return
        forced = state.next_forced
        self.newest = forced if forced is not None else self._draw(logits) if self.settings.temperature > 0 else greedy
        accepted = state.accept(self.newest)
        if accepted:
            self._lengths.append(len(state.text))
        if accepted and self.top_logprobs is not None:
            logprobs = logits.float().log_softmax(-1)
            best = logprobs.topk(min(self.top_logprobs, len(logprobs)))
            top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            self.logprobs.append(TokenLogprob(self.newest, float(logprobs[self.newest]), top, len(state.text)))

    def clear(self) -> None:
        """All that is written so far has been read; the tokens whose score is not complete yet stay back."""
        head = self.running.guard.interpreter.config.answers
        seen = len(self._lengths) - (head.window if head else 0)
        self._cleared = self._lengths[seen - 1] if seen > 0 else 0

    def _draw(self, logits: Tensor) -> int:
        scores = logits.float().cpu()[None]
        scores = TemperatureLogitsWarper(max(self.settings.temperature, COLDEST))(None, scores)
        if self.settings.top_k:
            scores = TopKLogitsWarper(min(self.settings.top_k, scores.shape[-1]))(None, scores)
        if self.settings.top_p < 1:
            scores = TopPLogitsWarper(self.settings.top_p)(None, scores)
        return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=self._generator))


class RunningBatch:
    """The rows that are being answered, and their KV cache.

    Args:
        guard: The guard and its model.

    Raises:
        GuardError: The model's cache is not one of keys and values alone.
    """

    def __init__(self, guard: Guard) -> None:
        if has_recurrent_state(guard.model):
            raise GuardError("Its layers keep a recurrent state, and only keys and values can be batched row by row.")
        self.guard, self.rows = guard, list[ServedAnswer]()
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0, dtype=torch.long)
        self._device = input_device(guard.model)
        model: Any = guard.model
        forward = getattr(model, "get_base_model", lambda: model)().forward
        known = inspect.signature(forward).parameters
        self._last_logits = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._cache_argument = "cache" if "cache" in known else "past_key_values"  # renamed in transformers 5.24

    @torch.inference_mode()
    def join(self, rows: Sequence[ServedAnswer]) -> None:
        """Read new rows in one prefill, decide on each, and let those that have something to say join.

        Rows with the same question are read once.

        Raises:
            GuardError: They could not be read; the batch is as before.
        """
        if not rows:
            return
        guard = self.guard
        questions = list({id(row.question): row.question for row in rows}.values())
        places = [next(i for i, one in enumerate(questions) if one is row.question) for row in rows]
        reading = BatchReading(guard, questions)
        ids, mask = left_pad([one.rendered.token_ids for one in questions], guard.ends[0])
        mask, cache = mask.to(self._device), DynamicCache()
        with observe_layers(guard.model, [guard.layer], reading.observe):
            logits = self._forward(ids.to(self._device), mask, cache)
        decisions = reading.decisions()
        for row, place in zip(rows, places, strict=True):
            row.begin(GuardedRow(guard, row.question, decisions[place], row.settings, keep_text=True))
        mask, logits = mask[places], logits[places]
        hidden = [index for index, row in enumerate(rows) if row.running.conditioned]
        if guard.thinking_tail and hidden:
            mask[hidden, -len(guard.thinking_tail) :] = 0
        forced = [row.running.state.take_forced() for row in rows]
        begun = []
        for length in sorted(set(map(len, forced))):
            alike = [index for index, one in enumerate(forced) if len(one) == length]
            beginnings = [(rows[index], forced[index]) for index in alike]
            begun.append(
                self._begin(beginnings, logits[alike], mask[alike], _rows_of(cache, [places[i] for i in alike]))
            )
        before = len(self.rows), self._mask.shape[1]
        try:
            self._merge_all(begun)
        except BaseException:
            self._cut_back(*before)
            raise

    def _merge_all(self, begun: Sequence[tuple[list[ServedAnswer], Tensor, DynamicCache]]) -> None:
        for some, their_mask, their_cache in begun:
            if some:
                self._merge(some, their_mask, their_cache)

    @torch.inference_mode()
    def step(self) -> list[ServedAnswer]:
        """One token for every row; the rows that ended leave and are returned. A step that fails undoes itself."""
        if not self.rows:
            return []
        running = [row.running for row in self.rows]
        due = [row for row in self.rows if row.running.due]
        reread = [self.guard.layer] if any(row.watched for row in running) else []
        ids = torch.tensor([[row.newest] for row in self.rows], device=self._device)
        width = self._mask.shape[1]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], dim=1)
        try:
            with (
                observe_layers(self.guard.model, reread, lambda _, states: self.guard.reread(running, states)),
                acting_in_rows(self.guard.model, [row.conditioned for row in running]),
            ):
                logits = self._forward(ids, self._mask, self._cache)
        except BaseException:
            self._mask = self._mask[:, :width]
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys[:, :, :width], layer.values[:, :, :width]
            raise
        for row in due:
            if not row.running.stopped:
                row.clear()
        self._choose(self.rows, logits)
        ended = [row for row in self.rows if row.ended]
        self.drop(ended)
        return ended

    def drop(self, rows: Sequence[ServedAnswer]) -> None:
        """Cut rows out; what they held is freed."""
        kept = [index for index, row in enumerate(self.rows) if row not in rows]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in kept]
        if not self.rows:
            self._cache, self._mask = DynamicCache(), self._mask[:0, :0]
            return
        self._mask = self._mask[kept]
        unused = int(self._mask.argmax(dim=1).min())  # columns that only rows now gone had used
        self._mask = self._mask[:, unused:]
        for layer in self._cache.layers:  # one after the other, so that memory holds one layer twice at most
            layer.keys, layer.values = (states[kept, :, unused:] for states in (layer.keys, layer.values))

    def _cut_back(self, count: int, width: int) -> None:
        """The first rows and last columns alone, as they were before others were laid beside them."""
        self.rows, self._mask = self.rows[:count], self._mask[:count, self._mask.shape[1] - width :]
        if not count:
            self._cache = DynamicCache()
            return
        for layer in self._cache.layers:
            layer.keys, layer.values = (one[:count, :, one.shape[-2] - width :] for one in (layer.keys, layer.values))

    def _begin(
        self, beginnings: Sequence[tuple[ServedAnswer, list[int]]], logits: Tensor, mask: Tensor, cache: DynamicCache
    ) -> tuple[list[ServedAnswer], Tensor, DynamicCache]:
        """Feed what prefilled rows must begin with, equally many tokens each; those that go on, mask and cache."""
        rows, forced = zip(*beginnings, strict=True)
        if forced[0]:
            mask = torch.cat([mask, mask.new_ones(len(rows), len(forced[0]))], dim=1)
            with acting_in_rows(self.guard.model, [row.running.conditioned for row in rows]):
                logits = self._forward(torch.tensor(forced, device=self._device), mask, cache)
        self._choose(rows, logits)
        kept = [index for index, row in enumerate(rows) if not row.ended]
        return [rows[index] for index in kept], mask[kept], _rows_of(cache, kept)

    def _forward(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """Logits after the newest column, `[rows, V]`."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.guard.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_argument: cache},
            **self._last_logits,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _choose(self, rows: Sequence[ServedAnswer], logits: Tensor) -> None:
        for row, values, greedy in zip(rows, logits, logits.argmax(-1).tolist(), strict=True):
            if not row.ended:
                row.choose(values, greedy)
                row.running.settle()

    def _merge(self, rows: Sequence[ServedAnswer], mask: Tensor, cache: DynamicCache) -> None:
        if not self.rows:
            self.rows, self._mask, self._cache = list(rows), mask, cache
            return
        width = max(mask.shape[1], self._mask.shape[1])
        for old, new in zip(self._cache.layers, cache.layers, strict=True):
            old.keys = torch.cat([_pad(old.keys, width), _pad(new.keys, width)])
            old.values = torch.cat([_pad(old.values, width), _pad(new.values, width)])
        self._mask = torch.cat([torch.nn.functional.pad(one, (width - one.shape[1], 0)) for one in (self._mask, mask)])
        self.rows = [*self.rows, *rows]


def _pad(states: Tensor, width: int) -> Tensor:
    """Keys or values `[rows, heads, time, D]`, padded on the left to a width."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))


def _rows_of(cache: DynamicCache, rows: Sequence[int]) -> DynamicCache:
    """A cache of some of the rows; a row may come more than once."""
    part = DynamicCache()
    for layer in cache.layers:
        chosen = copy(layer)
        chosen.keys, chosen.values = (states[list(rows)] for states in (layer.keys, layer.values))
        part.layers.append(chosen)
    return part
