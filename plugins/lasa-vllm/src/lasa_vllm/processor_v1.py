"""Forcing the condition's tokens: the logits processor of vLLM's V1 model runner."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.logger import init_logger
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from lasa_vllm.decisions import check_request, decisions_of, force_tokens, switched_off
from lasa_vllm.settings import check_engine, prompting, read_settings

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


class ConditionProcessor(LogitsProcessor):  # type: ignore[misc]
    """Lets flagged rows begin with the condition, token by token."""

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool) -> None:
        check_engine(vllm_config)
        self.facts = prompting(vllm_config)
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
        self._let_go()
        if not self.rows:
            return logits
        if any(not row.written for row in self.rows.values()):
            flagged = self.decisions.take(len(logits), logits.device)
            for index, row in self.rows.items():
                if not row.written and row.readable:
                    row.flagged = flagged[index]
        rows, states = torch.tensor(list(self.rows)), list(self.rows.values())
        condition, end = self.facts.condition, self.facts.end
        tokens = torch.tensor([end if row.astray else condition[len(row.written)] for row in states])
        conditioned = torch.stack([row.flagged for row in states])
        force_tokens(logits, rows.to(logits.device), tokens.to(logits.device), conditioned)
        return logits

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
