"""Forcing the condition's tokens, and the ends of answers: the logits processor of vLLM's V2 model runner.

The V2 runner keeps what was written on the device, in slots; nothing here waits for the device.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor

from lasa_vllm.decisions import Found, check_request, decisions_of, force_tokens, switched_off
from lasa_vllm.engine import check_engine
from lasa_vllm.listening import AnswerStops, answer_limit
from lasa_vllm.prompting import prompting
from lasa_vllm.settings import read_settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcRequestState

OVERWHELMING = 1e30
"""A logit that no other comes near, and that stays a number at every temperature."""


class ConditionProcessor(LogitsProcessor):  # type: ignore[misc]
    """Lets flagged rows begin with the condition, token by token, and stops answers that turn out harmful."""

    def __init__(self, vllm_config: "VllmConfig", req_states: "LogitsProcRequestState") -> None:
        check_engine(vllm_config)
        facts, device = prompting(vllm_config), req_states.device
        self.opt_out = read_settings(vllm_config).opt_out
        self.decisions = decisions_of(vllm_config)
        self.requests = req_states
        self.condition = torch.tensor(facts.condition, device=device)
        self.tail = torch.tensor(facts.tail, device=device)
        self.end = facts.end
        self.guarded = np.ones(req_states.max_num_reqs, dtype=bool)
        self.flagged = torch.ones(req_states.max_num_reqs, dtype=torch.bool, device=device)
        self.decided = torch.zeros_like(self.flagged)  # by a score: not what a request that comes back is taken for
        self.astray = torch.zeros_like(self.flagged)  # flagged, and wrote something else than the condition
        self.stops: AnswerStops | None = None
        if facts.listening:
            self.context = vllm_config.model_config.max_model_len
            self.stops = AnswerStops(facts.listening, req_states.max_num_reqs, device)
            self.asked: list[int | None] = [None] * req_states.max_num_reqs  # the callers' max_tokens
            self.heard_from = np.zeros(req_states.max_num_reqs, dtype=np.int64)  # answer tokens before the first heard
            self.heard_to = np.full(req_states.max_num_reqs, -1)  # the newest that was heard; -1: not even the prompt

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        """Refuse what would show or reach the model past the guard."""
        check_request(sampling_params)

    def add_request(self, req_idx: int, sampling_params: "SamplingParams") -> bool:
        """A request enters a slot, new or back after it was preempted: flagged until a decision says otherwise."""
        self.guarded[req_idx] = not switched_off(sampling_params, self.opt_out)
        self.flagged[req_idx].fill_(True)
        self.decided[req_idx].fill_(False)
        self.astray[req_idx].fill_(False)
        if self.stops and self.guarded[req_idx]:
            self.stops.enter(req_idx, sampling_params)
            self.asked[req_idx], self.heard_to[req_idx] = sampling_params.max_tokens, -1
        return bool(self.guarded[req_idx])

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """Force the next token of the condition where a row is flagged and has written nothing but the condition.

        A flagged row that wrote something else may only end, and so may one whose answer turns out harmful.
        """
        prompt_lengths = self.requests.prompt_len.np
        written = ctx.seq_lens_upper_bound_np - prompt_lengths[ctx.idx_mapping_np]
        begins = (written >= 0) & (written <= len(self.condition)) & self.guarded[ctx.idx_mapping_np]
        begun = ((written == 0) & begins).any()
        found = self.decisions.take(len(logits), logits.device) if begun or self.stops else None
        if begins.any():
            self._force(logits, ctx, begins.nonzero()[0], written[begins], found if begun else None)
        ends = self.astray[ctx.idx_mapping.long()]
        logits[:, self.end] = torch.where(ends, OVERWHELMING, logits[:, self.end])
        if self.stops and found:
            self._stop(self.stops, logits, ctx, written, found)
        return logits

    def _force(self, logits: Tensor, ctx: LogitsContext, begun: Any, written: Any, found: Found | None) -> None:
        device = logits.device
        rows = torch.from_numpy(begun).to(device, non_blocking=True)
        count = torch.from_numpy(written.astype(np.int64)).to(device, non_blocking=True)
        slots = ctx.idx_mapping[rows].long()
        first = count == 0
        if found:
            decided = found.flagged[rows] | ~self._prompt_ends_in(slots, self.tail)
            self.flagged[slots] = torch.where(first, decided, self.flagged[slots])
            self.decided[slots] |= first
        same = self._answer_begins(slots, count)
        self.astray[slots] |= self.flagged[slots] & self.decided[slots] & ~same
        conditioned = self.flagged[slots] & same & (count < len(self.condition))
        force_tokens(logits, rows, self.condition[count.clamp(max=len(self.condition) - 1)], conditioned)

    def _stop(self, stops: AnswerStops, logits: Tensor, ctx: LogitsContext, written: Any, found: Found) -> None:
        """Stop the answers whose newest window is full, or that are at their limit, and that are over the threshold."""

        def tensor(values: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(logits.device, non_blocking=True)

        slots, guarded = ctx.idx_mapping_np, self.guarded[ctx.idx_mapping_np]
        logits[tensor(guarded.nonzero()[0]), stops.mark] = -torch.inf
        first, heard = (((written == 0) & guarded).nonzero()[0], ((written > 0) & guarded).nonzero()[0])
        if len(first):
            stops.spared[ctx.idx_mapping[tensor(first)].long()] = found.spared[tensor(first)]
            self.heard_from[slots[first]] = self.heard_to[slots[first]] = 0
        if not len(heard):
            return
        slots, written = slots[heard], written[heard].astype(np.int64)
        self._count(stops, slots, written)
        prompts = self.requests.prompt_len.np
        limits = [answer_limit(self.asked[slot], int(prompts[slot]), self.context) for slot in slots]
        full = tensor((written >= stops.window) | (written == np.array(limits)))
        rows, count, since = tensor(heard), tensor(written), tensor(written - self.heard_from[slots])
        device_slots = ctx.idx_mapping[rows].long()
        own = ~self._answer_begins(device_slots, count) & ~stops.spared[device_slots]
        over = stops.hear(device_slots, count, since, found.answers[rows]) & own
        stops.mark_ends(logits, rows, device_slots, over)
        force_tokens(logits, rows, torch.full_like(rows, stops.mark), over & full)

    def _count(self, stops: AnswerStops, slots: Any, written: Any) -> None:
        """Note what is heard now; of an answer that does not go on where it was heard last, nothing was heard yet."""
        anew = written != self.heard_to[slots] + 1
        self.heard_from[slots[anew]] = written[anew] - 1
        self.heard_to[slots] = written
        if anew.any():
            stops.recent[torch.from_numpy(slots[anew]).long().to(stops.recent.device, non_blocking=True)] = 0.0

    def _prompt_ends_in(self, slots: Tensor, tail: Tensor) -> Tensor:
        """Whether the prompts of slots end where the interpreter reads, `[k]` bool."""
        start = self.requests.prompt_len.gpu[slots].long() - len(tail)
        ends: Tensor = (self._tokens(slots, start, len(tail)) == tail).all(dim=1) & (start >= 0)
        return ends

    def _answer_begins(self, slots: Tensor, count: Tensor) -> Tensor:
        """Whether the `count` tokens written so far are the condition's first, `[k]` bool."""
        start = self.requests.prompt_len.gpu[slots].long()
        same = self._tokens(slots, start, len(self.condition)) == self.condition
        return (same | (torch.arange(len(self.condition), device=count.device) >= count[:, None])).all(dim=1)

    def _tokens(self, slots: Tensor, start: Tensor, length: int) -> Tensor:
        history = self.requests.all_token_ids.gpu
        columns = (start[:, None] + torch.arange(length, device=start.device)).clamp(0, history.shape[1] - 1)
        tokens: Tensor = history[slots[:, None], columns]
        return tokens
