import pytest

from lasa.data.prompts import user_prompt
from lasa.errors import RecipeError
from lasa.evaluation.answering import Answer
from lasa.evaluation.metrics import system_metrics
from lasa.evaluation.outcomes import Outcome, Sample, Verdict
from lasa.evaluation.panel import Panel, agreement_of, second_verdict
from lasa.evaluation.settings import JudgingSettings


class Fixed:
    """Gives the verdicts it was made with, by answer."""

    def __init__(self, name, **outcomes):
        self.name, self.outcomes, self.asked = name, outcomes, []

    def __call__(self, prompts, answers):
        self.asked += list(answers)
        return [Verdict(self.outcomes.get(answer), "en", self.name) for answer in answers]


HARMFUL = [("jail", user_prompt(f"q{n}", "en", f"text {n}", harmful=True, source="jail")) for n in range(4)]
SUM = ("mgsm", user_prompt("m", "en", "How many?", harmful=False, source="mgsm", details={"answer": "7"}))
ANSWERS = [Answer(text) for text in "wxyz"]
FIRST = Fixed("first", w=Outcome.REFUSED, x=Outcome.COMPLIED, y=Outcome.COMPLIED)
SECOND = Fixed("second", w=Outcome.REFUSED, x=Outcome.IRRELEVANT, z=Outcome.COMPLIED)


def test_the_first_judge_decides_and_the_second_stands_beside_it():
    samples = Panel(FIRST, SECOND).samples(HARMFUL, ANSWERS)
    assert [sample.verdict.outcome for sample in samples] == [Outcome.REFUSED, Outcome.COMPLIED, Outcome.COMPLIED, None]
    assert {sample.judge for sample in samples} == {"first"}
    name, verdict = second_verdict(Sample.from_json(samples[1].to_json()))
    assert (name, verdict.outcome, verdict.reason) == ("second", Outcome.IRRELEVANT, "second")
    found = agreement_of(samples)
    assert found.disagreements() == [1, 2, 3]
    assert found.to_json()["table"]["complied"]["unscored"] == 1
    assert agreement_of(Panel(FIRST).samples(HARMFUL, ANSWERS)) is None


def test_a_failed_judge_leaves_rows_out_of_the_denominator_and_counts_them():
    metrics = system_metrics(Panel(FIRST).samples(HARMFUL, ANSWERS), ["en"])
    assert metrics["all"]["asr"]["n"] == 3
    assert metrics["all"]["asr"]["unscored"] == 1
    assert metrics["all"]["asr"]["value"] == pytest.approx(2 / 3)
    assert sum(metrics["all"]["outcomes"].values()) == 3


def test_an_expected_answer_needs_no_judge():
    judge = Fixed("judge", w=Outcome.REFUSED)
    samples = Panel(judge).samples([SUM, HARMFUL[0]], [Answer("It is 7."), Answer("w")])
    assert [sample.judge for sample in samples] == ["answer-key", "judge"]
    assert judge.asked == ["w"]
    assert system_metrics(samples, [])["all"]["accuracy"]["value"] == 1
    alone = Panel()
    assert alone.check([SUM]) == []
    with pytest.raises(RecipeError, match="Answers to jail need a judge"):
        alone.check([SUM, *HARMFUL])


def test_a_prompt_that_was_not_answered_is_unscored_and_shown_to_no_judge():
    judge = Fixed("judge", w=Outcome.REFUSED)
    samples = Panel(judge).samples(HARMFUL[:2], [Answer("", failure="HTTP 400"), Answer("w")])
    assert samples[0].verdict == Verdict(None, reason="not answered: HTTP 400")
    assert judge.asked == ["w"]
    Panel(judge).again(samples)
    assert judge.asked == ["w"]


def test_only_what_lacks_a_verdict_is_judged_again():
    judge = Fixed("first", w=Outcome.REFUSED, z=Outcome.REFUSED)
    before = Panel(FIRST).samples(HARMFUL, ANSWERS)
    after = Panel(judge).again(before)
    assert judge.asked == ["z"]
    assert after[:3] == before[:3]
    assert after[3].verdict.outcome is Outcome.REFUSED
    both = Panel(FIRST, SECOND).again(after[:3])
    assert [second_verdict(sample)[0] for sample in both] == ["second"] * 3


def test_refusal_patterns_alone_are_said_to_be_alone():
    patterns = Fixed("refusal-patterns")
    (caveat,) = Panel(patterns).check(HARMFUL)
    assert "Put a second judge beside them" in caveat
    assert Panel(patterns, FIRST).check(HARMFUL) == []
    embedded = [("w", user_prompt("a+b", "en", "x", harmful=True, source="embedded"))]
    assert Panel(patterns).check(embedded) == []


def test_judges_that_cannot_be_are_errors():
    with pytest.raises(RecipeError, match="embedded world only, not jail"):
        Panel(Fixed("embedded-world")).check(HARMFUL)
    with pytest.raises(RecipeError, match="one judge or two different ones, not first, first"):
        Panel(FIRST, FIRST)


@pytest.mark.parametrize("text", ["", " \n", "\u200b\u00ad"])
def test_an_empty_answer_is_an_outcome_of_its_own_and_shown_to_no_judge(text):
    judge = Fixed("judge")
    (sample,) = Panel(judge).samples(HARMFUL[:1], [Answer(text)])
    assert (sample.verdict.outcome, judge.asked) == (Outcome.EMPTY, [])


def test_reasoning_is_kept_apart_and_judged_apart_where_that_is_asked_for():
    answers = [Answer("w", reasoning="x"), Answer("", reasoning="z", failure="unfinished: too long"), Answer("y")]
    judge = Fixed("first", w=Outcome.REFUSED, x=Outcome.COMPLIED, y=Outcome.COMPLIED)
    plain = Panel(judge).samples(HARMFUL[:3], answers)
    assert judge.asked == ["w", "y"]
    assert [sample.extra.get("reasoning") for sample in plain] == ["x", "z", None]
    both = Panel(judge, settings=JudgingSettings(judge_reasoning=True)).again(plain)
    assert [sample.verdict.outcome for sample in both] == [Outcome.REFUSED, None, Outcome.COMPLIED]
    assert [sample.extra.get("reasoning_verdict", {}).get("outcome") for sample in both] == ["complied", None, None]
    assert "reasoning_verdict" in both[1].extra and "reasoning_verdict" not in both[2].extra
    assert Sample.from_json(both[0].to_json()) == both[0]
