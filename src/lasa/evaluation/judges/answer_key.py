"""Utility benchmarks: an answer is right or wrong by the benchmark's own key, with no judgement involved.

Numbers (MGSM) are read as the last number of the answer, choices (MMLU, XCOPA) by their letter, other choices
(sentiments) by the only one that is named. Digits of any script are digits.
"""

import re
import unicodedata
from collections.abc import Sequence

from lasa.data.prompts import Prompt
from lasa.evaluation.judges.refusal_patterns import refusal_language
from lasa.evaluation.outcomes import Outcome, Verdict


class AnswerKeyJudge:
    """`Verdict.score` is 1 for the expected answer and 0 for any other; the outcome says whether it is a refusal."""

    name = "answer-key"

    def __call__(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
        """One verdict per answer, in order; `details["answer"]` is what is expected."""
        return [self._verdict(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def _verdict(self, prompt: Prompt, answer: str) -> Verdict:
        expected, choices = str(prompt.details["answer"]), prompt.details.get("choices")
        given = read_choice(answer, choices) if choices else read_number(answer)
        if given is None and (language := refusal_language(answer)):
            return Verdict(Outcome.REFUSED, language, "a refusal phrase", 0.0)
        if given is None:
            return Verdict(Outcome.IRRELEVANT, None, "gives no answer that could be right", 0.0)
        right = float(given) == float(expected) if not choices else given == expected
        return Verdict(Outcome.COMPLIED, None, "right" if right else "wrong", float(right))


def read_number(answer: str) -> str | None:
    """The last number of an answer, without thousands separators; None if there is none."""
    found = _NUMBER.findall("".join(_plain_digit(character) for character in answer))
    return found[-1].replace(",", "") if found else None


def read_choice(answer: str, choices: Sequence[str]) -> str | None:
    """Which of the choices an answer gives.

    A choice at the very beginning, alone or set off by punctuation, counts; else one in brackets, bold or after a
    colon; else the only one that is named. None where several or none are named.
    """
    letters = all(len(choice) == 1 for choice in choices)
    flags = 0 if letters else re.IGNORECASE
    options = "|".join(re.escape(choice) for choice in choices)
    mentions = (
        options.replace("A|", r"A(?!\s+(?!or\b|and\b)[a-z])|") if letters else options
    )  # "A person who" is an article
    text = unicodedata.normalize("NFKC", answer).strip()
    for pattern in (
        rf"^[\s*(\[]*({options})\s*(?:[.):\]*,]|$)",
        rf"(?:[:：]\s*|\(|\[|\*\*)({options})(?=[\s.)\]*,]|$)",
        rf"(?<!\w)({mentions})(?!\w)",
    ):
        found: list[str] = re.findall(pattern, text, flags | re.MULTILINE)
        named = {match if letters else match.lower() for match in found}
        if len(named) == 1:
            return named.pop()
    return None


_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def _plain_digit(character: str) -> str:
    return str(unicodedata.digit(character)) if character.isdecimal() else character
