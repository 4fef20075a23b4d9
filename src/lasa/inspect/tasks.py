"""Benchmarks as Inspect tasks: `lasa/multijail`, `lasa/xstest`, ..., `lasa/embedded`, and `lasa/table` for any file."""

from collections.abc import Callable, Sequence
from logging import getLogger

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset
from inspect_ai.dataset import Sample as InspectSample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    GenerateConfig,
)
from inspect_ai.solver import generate

from lasa.data.prompts import Message, Prompt
from lasa.evaluation.panel import check_judges
from lasa.evaluation.slices import choose, load_benchmarks, with_changes
from lasa.inspect.scorers import judged

logger = getLogger(__name__)

CORPORA = (
    "multijail",
    "xsafety",
    "harmbench",
    "advbench",
    "strongreject",
    "xstest",
    "do_not_answer",
    "mgsm",
    "global_mmlu_lite",
    "nusax_sentiment",
    "xcopa",
)

MESSAGES = {
    "system": ChatMessageSystem,
    "user": ChatMessageUser,
    "assistant": ChatMessageAssistant,
    "tool": ChatMessageTool,
}


def benchmark_task(
    source: str,
    judge: str | Sequence[str] | None,
    language: str | Sequence[str] | None,
    limit: int | None,
    perturb: str | None,
    max_new_tokens: int,
) -> Task:
    """A benchmark as an Inspect task.

    Args:
        source: As in `lasa.data.sources`.
        judge: One or a list; every judge is a scorer.
        language: Ask in these languages only.
        limit: Ask this many questions.
        perturb: Ask changed copies instead, as in `lasa.evaluation.slices`.
        max_new_tokens: Length limit of an answer.

    Raises:
        LasaError: A source or a setting is no use, or prompts without an expected answer have no judge.
    """
    splits = choose(load_benchmarks([source]), _listed(language), limit)
    if perturb:
        copies = with_changes(splits, [str(perturb)])
        splits = {split: prompts for split, prompts in copies.items() if split not in splits}
    asked = [(split, prompt) for split, prompts in splits.items() for prompt in prompts]
    judges = _listed(judge)
    for caveat in check_judges(judges, asked):
        logger.warning(caveat)
    return Task(
        dataset=MemoryDataset([_sample(number, *one) for number, one in enumerate(asked)], name=next(iter(splits))),
        solver=generate(),
        scorer=[judged(one) for one in judges] or [judged()],
        config=GenerateConfig(max_tokens=max_new_tokens, temperature=0),
        version=1,
    )


def _corpus_task(corpus: str) -> Callable[..., Task]:
    @task(name=corpus)  # type: ignore[untyped-decorator]
    def corpus_task(
        path: str,
        judge: str | list[str] | None = None,
        language: str | list[str] | None = None,
        limit: int | None = None,
        perturb: str | None = None,
        max_new_tokens: int = 256,
    ) -> Task:
        return benchmark_task(f"{corpus}:{path}", judge, language, limit, perturb, max_new_tokens)

    return corpus_task  # type: ignore[no-any-return]


BENCHMARKS = {corpus: _corpus_task(corpus) for corpus in CORPORA}
"""Tasks by corpus; `path` is where the corpus lies, as its loader takes it."""


@task  # type: ignore[untyped-decorator]
def embedded(
    name: str = "combinations",
    judge: str | list[str] | None = "embedded-world",
    language: str | list[str] | None = None,
    limit: int | None = None,
    perturb: str | None = None,
    max_new_tokens: int = 64,
) -> Task:
    """A table of the embedded world."""
    return benchmark_task(f"embedded:{name}", judge, language, limit, perturb, max_new_tokens)


@task  # type: ignore[untyped-decorator]
def table(
    source: str,
    judge: str | list[str] | None = None,
    language: str | list[str] | None = None,
    limit: int | None = None,
    perturb: str | None = None,
    max_new_tokens: int = 256,
) -> Task:
    """Any source of prompts: a file, `hf:owner/name`, with declared columns where they have other names."""
    return benchmark_task(source, judge, language, limit, perturb, max_new_tokens)


def _sample(number: int, split: str, prompt: Prompt) -> InspectSample:
    messages = [_message(message) for message in prompt.messages]
    if prefill := prompt.details.get("prefill"):
        messages.append(ChatMessageAssistant(content=str(prefill)))
    return InspectSample(
        input=messages,
        target=str(prompt.details.get("answer", "")),
        id=f"{number}/{prompt.query_id}/{prompt.language}",
        metadata={"split": split, "prompt": prompt.to_json()},
    )


def _message(message: Message) -> ChatMessage:
    return MESSAGES[message["role"]](content=message["content"])


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
