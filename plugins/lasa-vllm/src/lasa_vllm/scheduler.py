"""What the caller gets of the tokens that are written: the answer without the condition, and as far as it was read.

The scheduler sees tokens, not decisions. An answer that begins with the whole condition was conditioned, which does not
count as its length; one that departs from it was not, and the tokens that were held back until then are its own. An
answer that must follow a grammar (a JSON schema, say) follows it behind the condition, which is never shown in it. An
answer that is read again ends at the mark (see `lasa_vllm.listening`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import SchedulerInterface
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from lasa_vllm.decisions import switched_off
from lasa_vllm.listening import Listening, answer_limit
from lasa_vllm.prompting import prompting
from lasa_vllm.settings import read_settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig


STOPPED = "content_filter"
"""The stop reason of an answer that was found harmful; vLLM's finish reasons have no word for it."""


@dataclass
class _Unread:
    """An answer that is read again.

    Attributes:
        wanted: The caller's limit.
        limit: The answer's longest length.
        held: Tokens that the caller has not got yet.
    """

    wanted: int
    limit: int
    held: list[int]


class _ConditionAside:
    """Wraps vLLM's handling of new tokens."""

    def __init__(self, vllm_config: "VllmConfig", **rest: Any) -> None:
        super().__init__(vllm_config=vllm_config, **rest)  # type: ignore[call-arg]
        self.condition = prompting(vllm_config).condition
        self.hide = read_settings(vllm_config).hide_condition
        self.own_limit: WeakKeyDictionary[Request, int] = WeakKeyDictionary()
        """The caller's limits, of requests that have written nothing but the condition so far."""
        self.off_grammar: WeakSet[Request] = WeakSet()
        """Those of them whose grammar would not have it, so that it is the condition indeed."""

    def add_request(self, request: Request) -> None:
        self._open(request)
        super().add_request(request)  # type: ignore[misc]

    def _update_request_as_session(self, session: Request, update: Any) -> None:
        super()._update_request_as_session(session, update)  # type: ignore[misc]
        self._open(session)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], **rest: Any
    ) -> tuple[list[int], bool]:
        held = request.num_output_tokens if request in self.own_limit else None
        departs = held is not None and new_token_ids != self.condition[held : held + len(new_token_ids)]
        if departs:
            request.max_tokens = self.own_limit.pop(request)
        new_token_ids, stopped = super()._update_request_with_output(  # type: ignore[misc]
            request, new_token_ids, **rest
        )
        if request.num_output_tokens >= len(self.condition):
            self.own_limit.pop(request, None)
        if departs and request.num_output_tokens > request.max_tokens:  # it was through before it departed
            request.status, request.stop_reason, stopped = RequestStatus.FINISHED_LENGTH_CAPPED, None, True
        if held is None:
            return new_token_ids, stopped
        if request.use_structured_output:
            self._follow_grammar(request, new_token_ids)
        elif not self.hide:
            return new_token_ids, stopped
        return (list(request.output_token_ids)[: request.max_tokens] if departs else []), stopped

    def _open(self, request: Request) -> None:
        self.own_limit[request] = request.max_tokens
        request.max_tokens += len(self.condition)

    def _follow_grammar(self, request: Request, new_token_ids: list[int]) -> None:
        """Keep the grammar at the answer, of which the condition is no part, so that what follows is valid.

        Tokens that are held back may yet be the answer's own, where the grammar allows them: it is taken along, for the
        next of them, and taken back where vLLM then hands it the answer (it departed), or the answer begins.
        """
        structured = request.structured_output_request
        if structured.reasoning_ended is False:  # the grammar begins later
            return
        grammar = structured.grammar
        if request not in self.own_limit:
            grammar.reset()
            self.off_grammar.discard(request)
            return
        for token in new_token_ids:
            if request not in self.off_grammar and self._allows(grammar, token):
                grammar.accept_tokens(request.request_id, [token])
            else:
                self.off_grammar.add(request)

    def _allows(self, grammar: Any, token: int) -> bool:
        bits = self.structured_output_manager.backend.allocate_token_bitmask(1)  # type: ignore[attr-defined]
        grammar.fill_bitmask(bits, 0)
        return bool(int(bits[0, token // 32]) >> token % 32 & 1)


class _AnswersRead(_ConditionAside):
    """Holds back the newest tokens of answers that are read again, and ends those that are stopped.

    What was let go is never taken back. An answer may write one token more than the caller wants, so that its last one
    is read as well.
    """

    def __init__(self, vllm_config: "VllmConfig", **rest: Any) -> None:
        super().__init__(vllm_config=vllm_config, **rest)
        self.listening = prompting(vllm_config).listening
        self.opt_out = read_settings(vllm_config).opt_out
        self.unread: WeakKeyDictionary[Request, _Unread] = WeakKeyDictionary()
        """Requests whose answers are not conditioned, or not known to be."""
        if self.listening:
            self._accept = self.structured_output_manager.accept_tokens  # type: ignore[has-type]
            self.structured_output_manager.accept_tokens = lambda request, tokens: (  # they were, when written
                request in self.unread or self._accept(request, tokens)
            )

    def _open(self, request: Request) -> None:
        if self.listening and not switched_off(request.sampling_params, self.opt_out):
            limit = answer_limit(request.max_tokens, request.num_prompt_tokens, self.max_model_len)  # type: ignore[attr-defined]
            self.unread[request] = _Unread(request.max_tokens, limit, [])
            request.max_tokens = limit + 1
        super()._open(request)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], **rest: Any
    ) -> tuple[list[int], bool]:
        new_token_ids, stopped = super()._update_request_with_output(request, new_token_ids, **rest)
        undecided = request in self.own_limit and not stopped
        if self.listening is None or request not in self.unread or undecided:
            return new_token_ids, stopped
        if list(request.output_token_ids[: len(self.condition)]) == self.condition:
            request.max_tokens = self.unread.pop(request).wanted + len(self.condition)
            return new_token_ids, stopped
        return self._let_go(request, new_token_ids, stopped, self.listening)

    def _let_go(
        self, request: Request, new_token_ids: list[int], stopped: bool, listening: Listening
    ) -> tuple[list[int], bool]:
        """What was read in full windows; at the end, all that was read."""
        unread = self.unread[request]
        if listening.mark in new_token_ids:
            request.status, request.stop_reason = RequestStatus.FINISHED_STOPPED, STOPPED
            return [], True
        if request.use_structured_output and not self._accept(request, new_token_ids):
            request.status, request.resumable = RequestStatus.FINISHED_ERROR, False
            return [], True
        unread.held += new_token_ids
        back = listening.head.window
        if stopped and request.status == RequestStatus.FINISHED_STOPPED:
            back = 0
        elif stopped and request.status == RequestStatus.FINISHED_LENGTH_CAPPED:
            back = max(1, request.num_output_tokens - unread.limit)
        ready = max(0, len(unread.held) - back)
        let_go, unread.held = unread.held[:ready], unread.held[ready:]
        return let_go, stopped


class _GuardedAsyncScheduler(_AnswersRead, AsyncScheduler):  # type: ignore[misc]
    pass


class _GuardedScheduler(_AnswersRead, Scheduler):  # type: ignore[misc]
    pass


def guarded_scheduler(vllm_config: "VllmConfig", **rest: Any) -> SchedulerInterface:
    """The scheduler of a guarded engine, for `--scheduler-cls`."""
    chosen = _GuardedAsyncScheduler if vllm_config.scheduler_config.async_scheduling else _GuardedScheduler
    return chosen(vllm_config, **rest)
