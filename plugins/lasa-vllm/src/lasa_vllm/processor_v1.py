"""Forcing the condition's tokens, and the ends of answers: the logits processor of vLLM's V1 model runner."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.logger import init_logger
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from lasa_vllm.decisions import Found, check_request, decisions_of, force_tokens, switched_off
from lasa_vllm.engine import check_engine
from lasa_vllm.listening import AnswerStops, answer_limit
from lasa_vllm.prompting import prompting
from lasa_vllm.settings import read_settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams

logger = init_logger(__name__)


@dataclass
class _Row:
    """A request whose answer so far is the beginning of the condition, or empty; or that must not go on.

    Attributes:
        written: The answer's token ids; vLLM appends to this list.
        readable: Whether the prompt ends where the interpreter reads.
        flagged: The decision, on the device. Until there is one, and for a request that comes back after it was
            preempted, the request counts as flagged.
        astray: Whether it was flagged and wrote something else than the condition: it may only end.
    """

    written: list[int]
    readable: bool
    flagged: Tensor
    astray: bool = False


@dataclass
class _Heard:
    """A request whose answer is read again.

    Attributes:
        written: The answer's token ids; vLLM appends to this list.
        slot: Where its scores are kept.
        limit: Its longest answer.
        came_with: The tokens that it had written when it was first seen, of which the last is still to be read.
        own: Whether it is known to have departed from the condition.
    """

    written: list[int]
    slot: int
    limit: int
    came_with: int
    own: bool = False


class ConditionProcessor(LogitsProcessor):  # type: ignore[misc]
    """Lets flagged rows begin with the condition, token by token, and stops answers that turn out harmful."""

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        check_engine(vllm_config)
        self.facts = prompting(vllm_config)
        self.opt_out = read_settings(vllm_config).opt_out
        self.decisions = decisions_of(vllm_config)
        self.always = torch.ones((), dtype=torch.bool, device=device)
        self.rows: dict[int, _Row] = {}
        self.heard: dict[int, _Heard] = {}
        self.known: dict[int, _Heard] = {}  # by their answers' lists, also where they sit out a step
        self.stops: AnswerStops | None = None
        if self.facts.listening:
            slots, self.context = 3 * vllm_config.scheduler_config.max_num_seqs, vllm_config.model_config.max_model_len
            self.stops = AnswerStops(self.facts.listening, slots, device)

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        """Refuse what would show or reach the model past the guard."""
        check_request(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """A forced token need not be the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as they enter, leave and change places."""
        process_dict_updates(self.rows, batch_update, self._enter)
        if self.stops:
            process_dict_updates(self.heard, batch_update, self._listen)

    def apply(self, logits: Tensor) -> Tensor:
        """Force the next token of the condition where a row is flagged.

        Rows in the midst of their prompt are decided on as well; vLLM throws away what they sample, and the last
        step of the prompt decides.
        """
        self._let_go()
        begun = any(not row.written for row in self.rows.values())
        found = self.decisions.take(len(logits), logits.device) if begun or self.heard else None
        if self.rows:
            self._force(logits, found if begun else None)
        if self.stops and found and self.heard:
            self._stop(self.stops, logits, found)
        return logits

    def _force(self, logits: Tensor, found: Found | None) -> None:
        """Force the next token of the condition, of rows that were flagged, or are by what was just found."""
        if found:
            for index, row in self.rows.items():
                if not row.written and row.readable:
                    row.flagged = found.flagged[index]
        rows, states = torch.tensor(list(self.rows)), list(self.rows.values())
        condition, end = self.facts.condition, self.facts.end
        tokens = torch.tensor([end if row.astray else condition[len(row.written)] for row in states])
        conditioned = torch.stack([row.flagged for row in states])
        force_tokens(logits, rows.to(logits.device), tokens.to(logits.device), conditioned)

    def _stop(self, stops: AnswerStops, logits: Tensor, found: Found) -> None:
        """Stop the answers whose newest window is full, or that are at their limit, and that are over the threshold."""

        def tensor(values: Iterable[int | bool]) -> Tensor:
            return torch.tensor(list(values), device=logits.device)

        logits[tensor(self.heard), stops.mark] = -torch.inf
        begun = [index for index, one in self.heard.items() if not one.written]
        if begun:
            slots = tensor(self.heard[index].slot for index in begun)
            stops.spared[slots] = found.spared[tensor(begun)]
        heard = {index: one for index, one in self.heard.items() if one.written}
        if not heard:
            return
        for one in heard.values():
            one.own = one.own or not self._conditioned(one.written)
        rows, slots = tensor(heard), tensor(one.slot for one in heard.values())
        written = tensor(len(one.written) for one in heard.values())
        since = tensor(len(one.written) - max(0, one.came_with - 1) for one in heard.values())
        own = tensor(one.own for one in heard.values()) & ~stops.spared[slots]
        over = stops.hear(slots, written, since, found.answers[rows]) & own
        stops.mark_ends(logits, rows, slots, over)
        full = tensor(len(one.written) >= stops.window or len(one.written) == one.limit for one in heard.values())
        stopped = rows[over & full]
        if len(stopped):
            force_tokens(logits, stopped, torch.full_like(stopped, stops.mark), torch.ones_like(stopped).bool())

    def _listen(self, params: "SamplingParams", prompt: list[int] | None, written: list[int]) -> _Heard | None:
        if self.stops is None or switched_off(params, self.opt_out):
            return None
        known = self.known.pop(id(written), None)
        if known is None or known.written is not written:
            slot = self._free_slot(len(self.stops.recent))
            self.stops.enter(slot, params)
            limit = answer_limit(params.max_tokens, len(prompt or ()), self.context)
            known = _Heard(written, slot, limit, came_with=len(written))
        self.known[id(written)] = known
        return known

    def _free_slot(self, slots: int) -> int:
        """One that is not taken; where all are, that of the request that was seen last the longest time ago."""
        if len(self.known) == slots:
            here = {one.slot for one in self.heard.values()}
            del self.known[next(key for key, one in self.known.items() if one.slot not in here)]
        taken = {one.slot for one in self.known.values()}
        return next(number for number in range(slots) if number not in taken)

    def _conditioned(self, written: list[int]) -> bool:
        return written[: len(self.facts.condition)] == self.facts.condition[: len(written)]

    def _enter(self, params: "SamplingParams", prompt: list[int] | None, written: list[int]) -> _Row | None:
        if switched_off(params, self.opt_out) or not self._begins(written):
            return None
        tail = self.facts.tail
        return _Row(written, prompt is not None and prompt[-len(tail) :] == tail, self.always)

    def _let_go(self) -> None:
        """Rows that have written the condition, or were not flagged, are none of the guard's any more.

        Their decisions were made a step ago, and vLLM has waited for the tokens of that step: nothing waits here.
        """
        astray = {i: row for i, row in self.rows.items() if not (row.astray or self._begins(row.written))}
        if astray:
            flagged = torch.stack([row.flagged for row in astray.values()]).tolist()
            for (index, row), departs in zip(astray.items(), flagged, strict=True):
                row.astray = departs
                if departs:
                    logger.error("A flagged answer departed from the condition (token %s); it ends.", row.written[-1])
                else:
                    del self.rows[index]
        for index in [i for i, row in self.rows.items() if not row.astray and row.written == self.facts.condition]:
            del self.rows[index]

    def _begins(self, written: list[int]) -> bool:
        return written == self.facts.condition[: len(written)]
