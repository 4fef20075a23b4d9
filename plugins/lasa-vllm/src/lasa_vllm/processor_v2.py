"""Forcing the condition's tokens: the logits processor of vLLM's V2 model runner.

The V2 runner keeps what was written on the device, in slots; nothing here waits for the device.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor

from lasa_vllm.decisions import check_request, decisions_of, force_tokens, switched_off
from lasa_vllm.settings import check_engine, prompting, read_settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcRequestState

OVERWHELMING = 1e30
"""A logit that no other comes near, and that stays a number at every temperature."""


class ConditionProcessor(LogitsProcessor):  # type: ignore[misc]
    """Lets flagged rows begin with the condition, token by token."""

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
        return bool(self.guarded[req_idx])

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """Force the next token of the condition where a row is flagged and has written nothing but the condition.

        A flagged row that wrote something else may only end.
        """
        prompt_lengths = self.requests.prompt_len.np
        written = ctx.seq_lens_upper_bound_np - prompt_lengths[ctx.idx_mapping_np]
        begins = (written >= 0) & (written <= len(self.condition)) & self.guarded[ctx.idx_mapping_np]
        if begins.any():
            self._force(logits, ctx, begins.nonzero()[0], written[begins])
        ends = self.astray[ctx.idx_mapping.long()]
        logits[:, self.end] = torch.where(ends, OVERWHELMING, logits[:, self.end])
        return logits

    def _force(self, logits: Tensor, ctx: LogitsContext, begun: Any, written: Any) -> None:
        device = logits.device
        rows = torch.from_numpy(begun).to(device, non_blocking=True)
        count = torch.from_numpy(written.astype(np.int64)).to(device, non_blocking=True)
        slots = ctx.idx_mapping[rows].long()
        first = count == 0
        if (written == 0).any():
            decided = self.decisions.take(len(logits), device)[rows] | ~self._prompt_ends_in(slots, self.tail)
            self.flagged[slots] = torch.where(first, decided, self.flagged[slots])
            self.decided[slots] |= first
        same = self._answer_begins(slots, count)
        self.astray[slots] |= self.flagged[slots] & self.decided[slots] & ~same
        conditioned = self.flagged[slots] & same & (count < len(self.condition))
        force_tokens(logits, rows, self.condition[count.clamp(max=len(self.condition) - 1)], conditioned)

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
