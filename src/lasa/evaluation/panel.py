"""Who judges what: prompts with an expected answer by that answer, all others by one judge or two.

A panel turns answers into samples. The first judge's verdict is the sample's; a second judge's stands in
`Sample.extra`, for agreement and for people to look at where the two disagree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from lasa.data.prompts import Prompt
from lasa.data.written import is_empty
from lasa.errors import DataError, RecipeError
from lasa.evaluation.answering import Answer
from lasa.evaluation.judges.agreement import Agreement
from lasa.evaluation.judges.answer_key import AnswerKeyJudge
from lasa.evaluation.metrics import system_metrics
from lasa.evaluation.outcomes import JUDGE_FAILED, Judge, Outcome, Sample, Verdict, has_key
from lasa.evaluation.settings import JudgingSettings

PATTERNS_ALONE = (
    "Refusal patterns are the only judge. They do not understand an answer: a refusal in other words passes for "
    "compliance, and so does a useless answer. Put a second judge beside them before a result is published."
)

FEWEST = 8
"""Judgements before a share of them says anything."""

Task = tuple[str, Prompt]
"""A split's name and one of its prompts."""


class Panel:
    """One judge, or two; none where every prompt has an expected answer.

    An answer without a visible character is `empty`, and shown to no judge.

    Args:
        judges: The first one's verdicts are the samples' own.
        settings: Whether the first judge says of the reasoning before an answer, too, what it does with the request;
            and how many judgements may fail.

    Raises:
        RecipeError: There are more than two, or the same one twice.
    """

    def __init__(self, *judges: Judge, settings: JudgingSettings | None = None) -> None:
        if len(judges) > 2 or len({judge.name for judge in judges}) < len(judges):
            names = ", ".join(judge.name for judge in judges)
            raise RecipeError(f"An evaluation has one judge or two different ones, not {names}.")
        self.judges = judges
        self.settings = settings or JudgingSettings()
        self._judged = self._failed = 0
        self._key = AnswerKeyJudge()

    def check(self, tasks: Sequence[Task]) -> list[str]:
        """What must be said about these judges on these prompts; see `check_judges`."""
        return check_judges([judge.name for judge in self.judges], tasks)

    def samples(self, tasks: Sequence[Task], answers: Sequence[Answer]) -> list[Sample]:
        """Judged samples, in order."""
        samples: dict[int, Sample] = {}
        for judges, keyed in (((self._key,), True), (self.judges, False)):
            rows = [row for row, (_, prompt) in enumerate(tasks) if has_key(prompt) is keyed]
            asked, given = [tasks[row][1] for row in rows], [answers[row] for row in rows]
            verdicts = [_verdicts(judge, asked, given) for judge in judges]
            for place, row in enumerate(rows):
                samples[row] = _sample(tasks[row], answers[row], judges, [found[place] for found in verdicts])
        if self.settings.judge_reasoning and self.judges:
            self._judge_reasoning(samples)
        return [samples[row] for row in range(len(tasks))]

    def _judge_reasoning(self, samples: Mapping[int, Sample]) -> None:
        thoughtful = [sample for sample in samples.values() if sample.extra.get("reasoning")]
        asked, thoughts = [sample.prompt for sample in thoughtful], [s.extra["reasoning"] for s in thoughtful]
        for sample, verdict in zip(thoughtful, self.judges[0](asked, thoughts) if thoughtful else [], strict=True):
            sample.extra["reasoning_verdict"] = asdict(verdict)

    def check_failures(self, samples: Sequence[Sample]) -> None:
        """Count the judgements that failed among new samples, and make sure that they are few.

        Raises:
            DataError: Too many of those counted so far failed; what was answered need not be answered again.
        """
        failed = [why for sample in samples for why in _failures(sample)]
        self._judged, self._failed = self._judged + len(samples), self._failed + len(failed)
        if self._judged >= FEWEST and self._failed > self.settings.judge_failures * self._judged:
            raise DataError(
                f"{self._failed} of {self._judged} judgements failed, most recently: {failed[-1] if failed else '?'}. "
                "The answers are kept; mend the judge and call the same command again to have them judged, or allow "
                "more failures (judge_failures)."
            )

    def again(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples whose answers were given, with what these judges say of those that they have no verdict on yet."""
        due = [row for row, sample in enumerate(samples) if self._is_due(sample)]
        tasks = [(samples[row].split, samples[row].prompt) for row in due]
        answers = [
            Answer(
                each.text,
                each.score,
                each.flagged,
                failure=str(each.extra.get("failure", "")),
                reasoning=str(each.extra.get("reasoning", "")),
                finish_reason="length" if each.extra.get("unfinished") else None,
            )
            for each in (samples[row] for row in due)
        ]
        judged = dict(zip(due, self.samples(tasks, answers), strict=True))
        return [judged.get(row, sample) for row, sample in enumerate(samples)]

    def _is_due(self, sample: Sample) -> bool:
        if self.settings.judge_reasoning and "reasoning" in sample.extra:
            thoughts = sample.extra.get("reasoning_verdict")
            if thoughts is None or thoughts["outcome"] is None:
                return True
        if "failure" in sample.extra:
            return False
        second = second_verdict(sample)
        found = {sample.judge: sample.verdict, **({second[0]: second[1]} if second else {})}
        wanted = [AnswerKeyJudge.name] if has_key(sample.prompt) else [judge.name for judge in self.judges]
        return list(found) != wanted or any(verdict.outcome is None for verdict in found.values())


def _failures(sample: Sample) -> list[str]:
    reasons = [sample.verdict.reason, sample.extra.get("second", {}).get("reason", "")]
    return [reason for reason in reasons if reason.startswith(JUDGE_FAILED)][:1]


def check_judges(names: Sequence[str], tasks: Sequence[Task]) -> list[str]:
    """What must be said about judges of these names on these prompts.

    Raises:
        RecipeError: There is no judge, or the judge of the embedded world would judge prompts that it does not know.
    """
    judged = [prompt for _, prompt in tasks if not has_key(prompt)]
    if judged and not names:
        raise RecipeError(f"Answers to {judged[0].source or 'these prompts'} need a judge. Choose one.")
    foreign = next((prompt for prompt in judged if prompt.source != "embedded"), None)
    if foreign and "embedded-world" in names:
        raise RecipeError(
            f"The judge embedded-world knows the embedded world only, not {foreign.source or foreign.query_id}. "
            "Choose another judge for that benchmark."
        )
    return [PATTERNS_ALONE] if foreign and list(names) == ["refusal-patterns"] else []


def second_verdict(sample: Sample) -> tuple[str, Verdict] | None:
    """The second judge's name and verdict, or None where there was one judge."""
    stored = sample.extra.get("second")
    if stored is None:
        return None
    outcome = Outcome(stored["outcome"]) if stored["outcome"] is not None else None
    return stored["judge"], Verdict(outcome, stored["language"], stored["reason"], stored["score"])


def agreement_of(samples: Sequence[Sample]) -> Agreement | None:
    """What two judges found on the same answers, or None where there was one judge."""
    twice = [(sample, second) for sample in samples if (second := second_verdict(sample))]
    if not twice:
        return None
    return Agreement(
        (twice[0][0].judge, twice[0][1][0]),
        tuple(sample.prompt for sample, _ in twice),
        tuple(sample.text for sample, _ in twice),
        (tuple(sample.verdict for sample, _ in twice), tuple(verdict for _, (_, verdict) in twice)),
    )


def judged_twice(
    samples: Sequence[Sample], headline: str, seen: Sequence[str], grades: Mapping[str, str] | None = None
) -> tuple[Agreement, dict[str, Any]] | None:
    """What two judges agree on, and what the metrics of a system would be by the second; None where there was one.

    Args:
        samples: Of one system.
        headline: The split that its metrics are of.
        seen: Languages that it was aligned on.
        grades: Of the other languages, by `lasa coverage`.

    Returns:
        The agreement; and `{"agreement": it as JSON, "second": the metrics by the second judge's verdicts}`.
    """
    agreement = agreement_of(samples)
    if agreement is None:
        return None
    theirs = [
        replace(sample, judge=second[0], verdict=second[1])
        for sample in samples
        if sample.split == headline and (second := second_verdict(sample))
    ]
    return agreement, {"agreement": agreement.to_json(), "second": system_metrics(theirs, seen, grades)}


def _verdicts(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[Verdict]:
    answered = [row for row, answer in enumerate(answers) if not answer.failure and not is_empty(answer.text)]
    found = judge([prompts[row] for row in answered], [answers[row].text for row in answered]) if answered else []
    by_row = dict(zip(answered, found, strict=True))
    return [by_row[row] if row in by_row else _without_judge(answer) for row, answer in enumerate(answers)]


def _without_judge(answer: Answer) -> Verdict:
    if answer.failure:
        return Verdict(None, reason=f"not answered: {answer.failure}")
    return Verdict(Outcome.EMPTY, reason="the answer is empty")


def _sample(task: Task, answer: Answer, judges: Sequence[Judge], verdicts: Sequence[Verdict]) -> Sample:
    unfinished = answer.finish_reason == "length"
    facts = {"failure": answer.failure, "reasoning": answer.reasoning, "unfinished": unfinished}
    extra: dict[str, Any] = {name: fact for name, fact in facts.items() if fact}
    if len(judges) == 2:
        extra["second"] = {"judge": judges[1].name, **asdict(verdicts[1])}
    return Sample(*task, answer.text, verdicts[0], judges[0].name, answer.score, answer.flagged, extra)
