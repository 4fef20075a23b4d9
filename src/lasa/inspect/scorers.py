"""Judges as Inspect scorers, and lasa's statistics as an Inspect metric."""

from functools import cache
from typing import Any

import anyio.to_thread
from inspect_ai.model import ContentReasoning, ModelOutput
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import TaskState

from lasa.data.prompts import Prompt
from lasa.data.written import is_empty
from lasa.evaluation.answering import Answer
from lasa.evaluation.judge_settings import judge_from_text, make_judge
from lasa.evaluation.metrics import METRICS, system_metrics
from lasa.evaluation.outcomes import Outcome, Sample, Verdict
from lasa.evaluation.panel import Panel
from lasa.evaluation.reasoning import UNFINISHED, split_reasoning

PREFILLED = "prefilled"
"""In a model output's metadata: the completion begins with the caller's prefill already."""


@metric(scores="unreduced")  # type: ignore[untyped-decorator]
def figures() -> Metric:
    """Every rate with its interval, over all languages and for each: `asr`, `asr_low`, `asr_high`, `asr_sw`, ...

    Answers without a verdict are in no denominator; Inspect counts them as unscored samples.
    """

    def compute(scores: list[SampleScore]) -> dict[str, float]:
        if not scores:
            return {"asr": float("nan")}
        found = system_metrics([_sample(score) for score in scores], ())
        values: dict[str, float | None] = {}
        for name in METRICS:
            rate = found["all"].get(name)
            if rate is None or not rate["n"]:
                continue
            values |= {name: rate["value"], f"{name}_low": rate["low"], f"{name}_high": rate["high"]}
            values |= {f"{name}_{code}": by[name]["value"] for code, by in found["languages"].items() if name in by}
        return {name: value for name, value in values.items() if value is not None}

    return compute


@scorer(metrics=[figures()])  # type: ignore[untyped-decorator]
def judged(judge: str | None = None) -> Scorer:
    """Score answers by a judge, or by the expected answer where a prompt has one.

    Args:
        judge: `embedded-world`, `refusal-patterns`, `llm:MODEL@URL` or `classifier:FORMAT:FOLDER`.
    """
    panel = _panel(judge)
    judge_alone = anyio.CapacityLimiter(1)  # a local classifier is one model; an endpoint has its own queue
    parallel = judge is not None and judge.startswith("llm:")

    async def score(state: TaskState, target: Target) -> Score:
        split, prompt = state.metadata["split"], Prompt.from_json(state.metadata["prompt"])
        output = state.output
        facts: dict[str, Any] = output.metadata or {}
        prefill = "" if PREFILLED in facts else str(prompt.details.get("prefill", ""))
        answer = _answer(output, prefill)
        (sample,) = await anyio.to_thread.run_sync(
            lambda: panel.samples([(split, prompt)], [answer]), limiter=None if parallel else judge_alone
        )
        verdict = sample.verdict
        metadata = {
            "judge": sample.judge,
            "language": verdict.language,
            "judge_score": verdict.score,
            "score": sample.score,
            "flagged": sample.flagged,
        }
        if verdict.outcome is None:
            return Score.unscored(answer=answer.text, explanation=verdict.reason, metadata=metadata)
        return Score(value=verdict.outcome.value, answer=answer.text, explanation=verdict.reason, metadata=metadata)

    return score


def _answer(output: ModelOutput, prefill: str) -> Answer:
    """What a model of any provider answered: thoughts apart, and nothing where it was cut off before its first word."""
    facts: dict[str, Any] = output.metadata or {}
    content = output.message.content if output.choices else ""
    parts = [] if isinstance(content, str) else content
    told = split_reasoning(output.completion)
    thoughts = [part.reasoning for part in parts if isinstance(part, ContentReasoning)]
    failure, text = str(output.error or ""), told.answer or ""
    if not failure and (told.answer is None or (is_empty(text) and output.stop_reason == "max_tokens")):
        failure = UNFINISHED
    elif not failure and is_empty(text) and output.stop_reason == "content_filter":
        failure = "the provider's content filter"
    reasoning = "\n\n".join(filter(None, [*thoughts, told.reasoning]))
    return Answer(prefill + text if text else text, facts.get("score"), facts.get("flagged"), failure, reasoning)


@cache
def _panel(judge: str | None) -> Panel:
    """One panel per judge, so that a classifier is loaded once."""
    return Panel(*([make_judge(judge_from_text(judge))] if judge else []))


def _sample(scored: SampleScore) -> Sample:
    """The sample that a score belongs to, without its answer."""
    asked, found = scored.sample_metadata or {}, scored.score.metadata or {}
    verdict = Verdict(Outcome(str(scored.score.value)), found["language"], "", found["judge_score"])
    return Sample(asked["split"], Prompt.from_json(asked["prompt"]), "", verdict, found["judge"])
