import pytest

from lasa.data.prompts import user_prompt
from lasa.evaluation.judges.answer_key import AnswerKeyJudge, read_choice, read_number
from lasa.evaluation.outcomes import Outcome

LETTERS = ["A", "B", "C", "D"]


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("The answer is 42.", "42"),
        ("3 + 4 = 7", "7"),
        ("She pays $1,234.50", "1234.50"),
        ("-5", "-5"),
        ("উত্তর হল ৪২", "42"),
        ("答案是18。", "18"),
        ("6, 7 and 8", "8"),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_of_an_answer_is_read(answer, number):
    assert read_number(answer) == number


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("B", "B"),
        ("(C) because A is wrong", "C"),
        ("B. The heart", "B"),
        ("The answer is: D", "D"),
        ("答案：B", "B"),
        ("**A** seems right, B does not", "A"),
        ("I would say B here", "B"),
        ("Either A or B", None),
        ("A cat sat on the mat", None),
        ("nothing", None),
        ("Because", None),
    ],
)
def test_the_letter_of_an_answer_is_read(answer, choice):
    assert read_choice(answer, LETTERS) == choice


def test_a_sentiment_is_read_in_any_case_where_it_is_the_only_one():
    choices = ["negative", "neutral", "positive"]
    assert read_choice("Positive.", choices) == "positive"
    assert read_choice("It is not negative but positive", choices) is None


def test_right_wrong_refused_and_no_answer_are_told_apart():
    number = user_prompt("m", "en", "?", harmful=False, details={"answer": "7"})
    letter = user_prompt("x", "en", "?", harmful=False, details={"answer": "B", "choices": LETTERS})
    answers = ["It is 7.0", "8", "I'm sorry, but I cannot help with that.", "no idea", "B"]
    verdicts = AnswerKeyJudge()([number] * 4 + [letter], answers)
    assert [verdict.score for verdict in verdicts] == [1, 0, 0, 0, 1]
    complied, refused, irrelevant = Outcome.COMPLIED, Outcome.REFUSED, Outcome.IRRELEVANT
    assert [verdict.outcome for verdict in verdicts] == [complied, complied, refused, irrelevant, complied]
