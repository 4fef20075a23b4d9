"""Rows that are answered together while others come and go: a step-level batch over the one-pass guard.

Each step feeds one token of every row through the model. New rows are prefilled on their own (and read there, as in
`lasa.guard`); what they must begin with, the condition above all, follows in one more pass over those rows. Then their
keys and values are put beside those of the running rows (`lasa.serving.cache`). A row's tokens do not depend on its
neighbours, beyond rounding. What this is not: paged attention. All layers keep their whole past, also those with a
sliding window, so any model whose cache is transformers' `DynamicCache` of keys and values can be served.
"""

import inspect
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lasa.errors import GuardError
from lasa.guard.guard import Guard
from lasa.guard.model import with_prefill
from lasa.guard.reading import BatchReading, PromptReadings
from lasa.guard.row import GuardedRow
from lasa.interpreter.heads import Reading
from lasa.models.activated import acting_in_rows
from lasa.models.layers import forward_to_layers, has_recurrent_state, input_device, observe_layers
from lasa.models.padding import left_pad
from lasa.models.rendering import Rendered, render
from lasa.serving.cache import RowsCache, rows_of
from lasa.serving.sampling import Alternatives, alternatives, next_tokens
from lasa.serving.served import ServedAnswer

PASS_TOKENS = 2048
"""Tokens of prompts that are read in one pass, so that nobody who writes waits for longer."""


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
        self._cache = RowsCache()
        self._device = input_device(guard.model)
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=self._device)
        model: Any = guard.model
        forward = getattr(model, "get_base_model", lambda: model)().forward
        known = inspect.signature(forward).parameters
        self._last_logits = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._cache_argument = "cache" if "cache" in known else "past_key_values"  # renamed in transformers 5.24

    def join(self, rows: Sequence[ServedAnswer]) -> None:
        """Let new rows join at once; see `joining`."""
        for _ in self.joining(rows):
            pass

    @torch.inference_mode()
    def joining(self, rows: Sequence[ServedAnswer], tokens: int = PASS_TOKENS) -> Iterator[None]:
        """Read new rows in one prefill, decide on each, and let those that have something to say join.

        Rows with the same question are read once.

        Args:
            rows: They join together.
            tokens: Of one pass over their prompts, padding counted.

        Yields:
            Before every such pass; the others may go on meanwhile.

        Raises:
            GuardError: They could not be read; the batch is as before.
        """
        if not rows:
            return
        guard = self.guard
        questions = list({id(row.question): row.question for row in rows}.values())
        places = [next(i for i, one in enumerate(questions) if one is row.question) for row in rows]
        of_prefills: list[Reading | None] = []
        for one in questions:
            prefilled = render(guard.tokenizer, with_prefill(one)) if one.prefill.strip() else None
            of_prefills.append((yield from self.reading(prefilled, tokens)) if prefilled else None)
        reading = BatchReading(guard, questions, of_prefills)
        ids, mask = left_pad([one.rendered.token_ids for one in questions], guard.ends[0])
        mask, cache = mask.to(self._device), DynamicCache()
        for columns, seen in _pieces(ids.to(self._device), mask, tokens):
            yield
            with observe_layers(guard.model, [guard.layer], reading.observe):
                logits = self._forward(columns, seen, cache)
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
                self._begin(beginnings, logits[alike], mask[alike], rows_of(cache, [places[i] for i in alike]))
            )
        self._merge(begun)

    @torch.inference_mode()
    def reading(self, prompt: Rendered, tokens: int = PASS_TOKENS) -> Generator[None, None, Reading]:
        """What is read in a prompt alone, in passes of so many tokens at most.

        Yields:
            Before every pass.

        Raises:
            GuardError: It could not be read.
        """
        read, cache = PromptReadings(self.guard, [prompt]), DynamicCache()
        ids = torch.tensor([prompt.token_ids], device=self._device)
        for columns, seen in _pieces(ids, torch.ones_like(ids), tokens):
            yield
            forward_to_layers(self.guard.model, [self.guard.layer], read.observe, **self._inputs(columns, seen, cache))
        (found,) = read.readings
        return found

    @torch.inference_mode()
    def step(self) -> list[ServedAnswer]:
        """One token for every row; the rows that ended leave and are returned. A step that fails undoes itself."""
        if not self.rows:
            return []
        running = [row.running for row in self.rows]
        due = [row for row in self.rows if row.running.due]
        reread = [self.guard.layer] if any(row.watched for row in running) else []
        ids = torch.tensor([[row.newest] for row in self.rows], device=self._device)
        mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], dim=1)
        try:
            with (
                observe_layers(self.guard.model, reread, lambda _, states: self.guard.reread(running, states)),
                acting_in_rows(self.guard.model, [row.conditioned for row in running]),
            ):
                logits = self._forward(ids, mask, self._cache)
            drawn = _drawn(self.rows, logits)
        except BaseException:
            self._cache.take_back(self._mask.shape[1])
            raise
        self._mask = mask
        for row in due:
            if not row.running.stopped:
                row.clear()
        _take(self.rows, drawn)
        ended = [row for row in self.rows if row.ended]
        self.drop(ended)
        return ended

    @torch.inference_mode()
    def drop(self, rows: Sequence[ServedAnswer]) -> None:
        """Cut rows out; the last ones take their places, and what they held is freed."""
        going = [row in rows for row in self.rows]
        left = going.count(False)
        free = [place for place in range(left) if going[place]]
        moves = list(zip([place for place in range(left, len(going)) if not going[place]], free, strict=True))
        if left == len(self.rows):
            return
        order = list(range(left))
        for source, target in moves:
            order[target] = source
        self.rows = [self.rows[place] for place in order]
        self._mask = self._mask[order]
        unused = int(self._mask.argmax(dim=1).min()) if left else self._mask.shape[1]  # columns of rows now gone
        self._mask = self._mask[:, unused:]
        self._cache.keep(moves, left, self._mask.shape[1])

    def _begin(
        self, beginnings: Sequence[tuple[ServedAnswer, list[int]]], logits: Tensor, mask: Tensor, cache: DynamicCache
    ) -> tuple[list[ServedAnswer], Tensor, DynamicCache]:
        """Feed what prefilled rows must begin with, equally many tokens each; those that go on, mask and cache."""
        rows, forced = zip(*beginnings, strict=True)
        if forced[0]:
            mask = torch.cat([mask, mask.new_ones(len(rows), len(forced[0]))], dim=1)
            with acting_in_rows(self.guard.model, [row.running.conditioned for row in rows]):
                logits = self._forward(torch.tensor(forced, device=self._device), mask, cache)
        _take(rows, _drawn(rows, logits))
        kept = [index for index, row in enumerate(rows) if not row.ended]
        return [rows[index] for index in kept], mask[kept], rows_of(cache, kept)

    def _forward(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """Logits after the newest column, `[rows, V]`."""
        output = self.guard.model(**self._inputs(ids, mask, cache), **self._last_logits)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _inputs(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> dict[str, Any]:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": True}
        return {**given, self._cache_argument: cache}

    def _merge(self, begun: Sequence[tuple[list[ServedAnswer], Tensor, DynamicCache]]) -> None:
        masks = [self._mask, *(mask for rows, mask, _ in begun if rows)]
        width = max(mask.shape[1] for mask in masks)
        together = torch.cat([torch.nn.functional.pad(mask, (width - mask.shape[1], 0)) for mask in masks])
        self._cache.join([cache for rows, _, cache in begun if rows])
        self._mask, self.rows = together, [*self.rows, *(row for rows, _, _ in begun for row in rows)]


def _pieces(ids: Tensor, mask: Tensor, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The columns of prompts `[rows, width]` in passes of so many tokens, and the mask up to the end of each."""
    columns = max(1, tokens // len(ids))
    for start in range(0, ids.shape[1], columns):
        yield ids[:, start : start + columns], mask[:, : start + columns]


def _drawn(rows: Sequence[ServedAnswer], logits: Tensor) -> list[tuple[int, Alternatives | None]]:
    tokens = next_tokens(logits, [row.draws for row in rows], [row.number for row in rows])
    return list(zip(tokens, alternatives(logits, tokens, [row.top_logprobs for row in rows]), strict=True))


def _take(rows: Sequence[ServedAnswer], drawn: Sequence[tuple[int, Alternatives | None]]) -> None:
    for row, one in zip(rows, drawn, strict=True):
        if not row.ended:
            row.take(*one)
            row.running.settle()
