"""Forcing the condition's tokens: the logits processor of vLLM's V1 model runner."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from lasa_vllm.decisions import check_request, decisions_of, force_tokens, switched_off
from lasa_vllm.settings import check_engine, prompting, read_settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams


@dataclass
class _Row:
    """A request whose answer so far is the beginning of the condition, or empty.

    Attributes:
        written: The answer's token ids; vLLM appends to this list.
        readable: Whether the prompt ends where the interpreter reads.
        flagged: The decision, on the device. Until there is one, and for a request that comes back after it was
            preempted, the request counts as flagged.
    """

    written: list[int]
    readable: bool
    flagged: Tensor


class ConditionProcessor(LogitsProcessor):  # type: ignore[misc]
    """Lets flagged rows begin with the condition, token by token."""

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        check_engine(vllm_config)
        self.condition, self.tail = (facts := prompting(vllm_config)).condition, facts.tail
        self.opt_out = read_settings(vllm_config).opt_out
        self.decisions = decisions_of(vllm_config)
        self.always = torch.ones((), dtype=torch.bool, device=device)
        self.rows: dict[int, _Row] = {}

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

    def apply(self, logits: Tensor) -> Tensor:
        """Force the next token of the condition where a row is flagged.

        Rows in the midst of their prompt are decided on as well; vLLM throws away what they sample, and the last
        step of the prompt decides.
        """
        for index in [index for index, row in self.rows.items() if not self._open(row)]:
            del self.rows[index]
        if not self.rows:
            return logits
        if any(not row.written for row in self.rows.values()):
            flagged = self.decisions.take(len(logits), logits.device)
            for index, row in self.rows.items():
                if not row.written and row.readable:
                    row.flagged = flagged[index]
        rows, states = torch.tensor(list(self.rows)), list(self.rows.values())
        tokens = torch.tensor([self.condition[len(row.written)] for row in states])
        conditioned = torch.stack([row.flagged for row in states])
        force_tokens(logits, rows.to(logits.device), tokens.to(logits.device), conditioned)
        return logits

    def _enter(self, params: "SamplingParams", prompt: list[int] | None, written: list[int]) -> _Row | None:
        if switched_off(params, self.opt_out):
            return None
        readable = prompt is not None and prompt[-len(self.tail) :] == self.tail
        return _Row(written, readable, self.always)

    def _open(self, row: _Row) -> bool:
        count = len(row.written)
        return count < len(self.condition) and row.written == self.condition[:count]
