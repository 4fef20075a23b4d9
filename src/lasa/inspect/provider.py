"""Local models behind lasa's guard as an Inspect model provider: `lasa/FOLDER`, with or without an interpreter.

Requests that arrive together are answered in one batch.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import anyio
import anyio.to_thread
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    StopReason,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from lasa.data.prompts import Prompt
from lasa.errors import DataError
from lasa.evaluation.answering import Answer, LocalModel
from lasa.inspect.scorers import PREFILLED
from lasa.models.generation import GenerationSettings
from lasa.models.memory import token_budget
from lasa.models.settings import ModelSettings
from lasa.run.systems import find_system

STOP_REASONS: dict[str, StopReason] = {"stop": "stop", "length": "max_tokens", "content_filter": "content_filter"}

GATHER_S = 0.05
"""Time for requests of one moment to join a batch."""


@modelapi(name="lasa")  # type: ignore[untyped-decorator]
def lasa_models() -> type[ModelAPI]:
    """The provider of `lasa/...` models."""
    return GuardedModel


@dataclass(eq=False)
class _Request:
    prompt: Prompt
    settings: GenerationSettings
    answer: Answer | None = None


class GuardedModel(ModelAPI):  # type: ignore[misc]
    """A run's system (`lasa/RUN`, `-M system=NAME`), or a model (`lasa/FOLDER`, `-M interpreter=FOLDER`).

    Without an interpreter the model is not guarded. The guard's score and decision are in the output's metadata.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        interpreter: str | None = None,
        system: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        folder = Path(model_name)
        opened = (folder / "recipe.yaml").is_file()
        self.system = find_system(
            run=folder if opened else None,
            system=system,
            model=ModelSettings(path=model_name, dtype=dtype, device=device),
            interpreter=Path(interpreter) if interpreter else None,
        ).load()
        self._waiting: list[_Request] = []
        self._turn = anyio.Lock()

    def max_connections(self) -> int:
        """Requests at once: the largest batch."""
        return 64

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer one conversation, together with those that arrive at the same time."""
        if tools:
            raise DataError("Guarded local models take no tools.")
        request = _Request(_prompt(input), _settings(config))
        self._waiting.append(request)
        await anyio.sleep(GATHER_S)
        async with self._turn:
            if request.answer is None:
                batch = self._batch(request)
                local = LocalModel(*self.system, request.settings)
                answers = await anyio.to_thread.run_sync(local, [one.prompt for one in batch])
                for one, given in zip(batch, answers, strict=True):
                    one.answer = given
        answer = request.answer
        assert answer is not None
        return _output(self.model_name, answer)

    @cached_property
    def _budget(self) -> int:
        return token_budget(self.system[0])

    def _batch(self, first: _Request) -> list[_Request]:
        """The waiting requests with the same settings that fit into one batch, the given one among them."""
        local = LocalModel(*self.system, first.settings)
        batch: list[_Request] = []
        widest = 0
        for request in [first, *(one for one in self._waiting if one is not first)]:
            widest = max(widest, local.tokens(request.prompt))
            if request.settings == first.settings and (not batch or widest * (len(batch) + 1) <= self._budget):
                batch.append(request)
        self._waiting = [one for one in self._waiting if one not in batch]
        return batch


def _output(model: str, answer: Answer) -> ModelOutput:
    """An answer in Inspect's own fields: thoughts, whether it is a refusal, why it ended."""
    refusal = answer.finish_reason == "content_filter"
    said: list[Content] = [ContentReasoning(reasoning=answer.reasoning)] if answer.reasoning else []
    said.append(ContentText(text=answer.text, refusal=refusal or None))
    cut_off = answer.finish_reason is None and bool(answer.failure)
    reason: StopReason = "model_length" if cut_off else STOP_REASONS.get(answer.finish_reason or "stop", "stop")
    output = ModelOutput.from_message(ChatMessageAssistant(content=said, model=model, source="generate"), reason)
    output.model = model
    if cut_off:
        output.error = answer.failure
    output.metadata = {"score": answer.score, "flagged": answer.flagged, PREFILLED: True}
    return output


def _prompt(messages: list[ChatMessage]) -> Prompt:
    """The conversation; an assistant's message at its end is the beginning of the answer."""
    said = [{"role": str(message.role), "content": message.text} for message in messages]
    prefill = {"prefill": said.pop()["content"]} if said and said[-1]["role"] == "assistant" else {}
    return Prompt("", "", tuple(said), details=dict(prefill))


def _settings(config: GenerateConfig) -> GenerationSettings:
    given = {
        "max_new_tokens": config.max_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "stop": tuple(config.stop_seqs) if config.stop_seqs else None,
        "seed": config.seed,
    }
    return GenerationSettings(**{name: value for name, value in given.items() if value is not None})
