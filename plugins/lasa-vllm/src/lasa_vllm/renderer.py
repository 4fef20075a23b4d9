"""Prompts are chats: what a caller sends is rendered here, as the interpreter knows it, or refused.

Special tokens that a caller typed as text stay text. Plain text is read as a user's message. Token ids, embeddings and
prompts that do not end where the interpreter reads are refused, by whatever way they came: vLLM shows this renderer
every prompt once more before the engine gets it, and only those that it made itself are let through.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from vllm.exceptions import VLLMValidationError
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams

from lasa.models.rendering import defuse
from lasa_vllm.prompting import guarded_tokenizer, prompting

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.renderers.params import TokenizeParams


class RenderedIds(list[int]):
    """Token ids that this renderer made from messages; from anywhere else they are plain lists."""


class GuardedRenderer(HfRenderer):  # type: ignore[misc]
    """vLLM's renderer of chats, for callers who may write anything."""

    def __init__(self, config: "VllmConfig", tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        self.known = guarded_tokenizer(config)
        self.tail = prompting(config).tail

    def render_messages(self, messages: list[Any], params: ChatParams) -> tuple[list[Any], Any]:
        """Render a chat, special tokens inside it defused."""
        return super().render_messages(*self._safe(messages, params))  # type: ignore[no-any-return]

    async def render_messages_async(self, messages: list[Any], params: ChatParams) -> tuple[list[Any], Any]:
        """The same, on another thread."""
        return await super().render_messages_async(*self._safe(messages, params))  # type: ignore[no-any-return]

    def render_prompt(self, prompt: Any) -> Any:
        """Render a text as a user's message."""
        return self.render_messages(_as_chat(prompt), ChatParams())[1]

    async def _render_prompt_async(self, prompt: Any) -> Any:
        return (await self.render_messages_async(_as_chat(prompt), ChatParams()))[1]

    def process_for_engine(self, prompt: Any, *args: Any, **rest: Any) -> Any:
        """What the engine gets: a whole prompt that ends where the interpreter reads."""
        return self._read_at_the_end(super().process_for_engine(prompt, *args, **rest), **rest)

    async def process_for_engine_async(self, prompt: Any, *args: Any, **rest: Any) -> Any:
        """The same, for the server."""
        return self._read_at_the_end(await super().process_for_engine_async(prompt, *args, **rest), **rest)

    def validate_token_ids(self, token_ids: Sequence[int], *, parameter: str | None = None) -> None:
        """Refuse token ids that were not rendered here.

        Raises:
            VLLMValidationError: With what to send instead.
        """
        if not isinstance(token_ids, RenderedIds):
            raise _no_token_ids(parameter)
        super().validate_token_ids(token_ids, parameter=parameter)

    def _safe(self, messages: list[Any], params: ChatParams) -> tuple[list[Any], ChatParams]:
        template = self.known.chat_template
        if params.chat_template not in (None, template):
            raise VLLMValidationError(
                "This server is guarded and renders chats with the template that its interpreter was trained with. "
                "Leave out chat_template (an operator: --chat-template).",
                parameter="chat_template",
            )
        safe = [self._defused(one, markers=one.get("role") != "assistant") for one in messages]
        options = {"add_generation_prompt": True, **self._defused(params.chat_template_kwargs, markers=True)}
        return safe, replace(params, chat_template=template, chat_template_kwargs=options)

    def _defused(self, value: Any, *, markers: bool) -> Any:
        """The same value, the texts inside it defused."""
        if isinstance(value, str):
            return defuse(self.known, value, markers=markers)
        if isinstance(value, BaseModel):
            value = value.model_dump()
        if isinstance(value, Mapping):
            return {self._defused(k, markers=markers): self._defused(v, markers=markers) for k, v in value.items()}
        if isinstance(value, Iterable) and not isinstance(value, bytes):
            return [self._defused(one, markers=markers) for one in value]
        return value

    def _read_at_the_end(self, made: Any, tok_params: "TokenizeParams | None" = None, **_: Any) -> Any:
        ids = made.get("prompt_token_ids")
        if ids is None:
            raise _no_token_ids("prompt_embeds")
        if tok_params is not None and tok_params.truncate_prompt_tokens is not None:
            raise VLLMValidationError(
                "This server is guarded and reads prompts whole: leave out truncate_prompt_tokens, and truncation.",
                parameter="truncate_prompt_tokens",
            )
        if list(ids[-len(self.tail) :]) != self.tail:
            raise VLLMValidationError(
                "This server is guarded and reads at the end of the prompt, as the chat template writes it; this one "
                "ends otherwise. Leave out what changes that: a beginning of the answer (add_generation_prompt, "
                "continue_final_message), chat_template_kwargs such as enable_thinking, reasoning_effort."
            )
        made["prompt_token_ids"] = RenderedIds(ids)
        return made


def _as_chat(prompt: Any) -> list[dict[str, str]]:
    text = prompt.get("prompt") if isinstance(prompt, Mapping) else None
    if not isinstance(text, str) or {"prompt_token_ids", "prompt_embeds"} & set(prompt):
        raise _no_token_ids("prompt")
    return [{"role": "user", "content": text}]


def _no_token_ids(parameter: str | None) -> VLLMValidationError:
    return VLLMValidationError(
        "This server is guarded and takes no token ids or embeddings, which could be anything. Send messages; or text, "
        "which is read as a user's message.",
        parameter=parameter,
    )
