"""Who judges what: prompts with an expected answer by that answer, all others by one judge or two.

A panel turns answers into samples. The first judge's verdict is the sample's; a second judge's stands in
`Sample.extra`, for agreement and for people to look at where the two disagree.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lasa.data.prompts import Prompt
from lasa.errors import RecipeError
from lasa.evaluation.answering import Answer
from lasa.evaluation.judges.agreement import Agreement
from lasa.evaluation.judges.answer_key import AnswerKeyJudge
from lasa.evaluation.outcomes import Judge, Outcome, Sample, Verdict, has_key

PATTERNS_ALONE = (
    "Refusal patterns are the only judge. They do not understand an answer: a refusal in other words passes for "
    "compliance, and so does a useless answer. Put a second judge beside them before a result is published."
)

Task = tuple[str, Prompt]
"""A split's name and one of its prompts."""


class Panel:
    """One judge, or two; none where every prompt has an expected answer.

    Args:
        judges: The first one's verdicts are the samples' own.

    Raises:
        RecipeError: There are more than two, or the same one twice.
    """

    def __init__(self, *judges: Judge) -> None:
        if len(judges) > 2 or len({judge.name for judge in judges}) < len(judges):
            names = ", ".join(judge.name for judge in judges)
            raise RecipeError(f"An evaluation has one judge or two different ones, not {names}.")
        self.judges = judges
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
        return [samples[row] for row in range(len(tasks))]

    def again(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples whose answers were given, with what these judges say of those that they have no verdict on yet."""
        due = [row for row, sample in enumerate(samples) if self._is_due(sample)]
        tasks = [(samples[row].split, samples[row].prompt) for row in due]
        answers = [
            Answer(
                each.text,
                each.score,
                each.flagged,
                str(each.extra.get("failure", "")),
                bool(each.extra.get("unfinished")),
            )
            for each in (samples[row] for row in due)
        ]
        judged = dict(zip(due, self.samples(tasks, answers), strict=True))
        return [judged.get(row, sample) for row, sample in enumerate(samples)]

    def _is_due(self, sample: Sample) -> bool:
        if "failure" in sample.extra:
            return False
        second = second_verdict(sample)
        found = {sample.judge: sample.verdict, **({second[0]: second[1]} if second else {})}
        wanted = [AnswerKeyJudge.name] if has_key(sample.prompt) else [judge.name for judge in self.judges]
        return list(found) != wanted or any(verdict.outcome is None for verdict in found.values())


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


def _verdicts(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[Verdict]:
    answered = [row for row, answer in enumerate(answers) if not answer.failure]
    found = judge([prompts[row] for row in answered], [answers[row].text for row in answered]) if answered else []
    by_row = dict(zip(answered, found, strict=True))
    return [
        by_row.get(row, Verdict(None, reason=f"not answered: {answer.failure}")) for row, answer in enumerate(answers)
    ]


def _sample(task: Task, answer: Answer, judges: Sequence[Judge], verdicts: Sequence[Verdict]) -> Sample:
    extra: dict[str, Any] = {"failure": answer.failure} if answer.failure else {}
    if answer.unfinished:
        extra["unfinished"] = True
    if len(judges) == 2:
        extra["second"] = {"judge": judges[1].name, **asdict(verdicts[1])}
    return Sample(*task, answer.text, verdicts[0], judges[0].name, answer.score, answer.flagged, extra)
