import json
from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lasa.data.prompts import Prompt, user_prompt
from lasa.evaluation.outcomes import Outcome, Sample, Verdict
from lasa.report.examples import CHARACTERS_PER_TEXT, choose_samples, example_rows, script_json
from report_run import SCRIPT


def sample(number: int, language: str = "en", outcome: Outcome | None = Outcome.REFUSED, text: str = "") -> Sample:
    prompt = user_prompt(f"q{number}", language, "question", harmful=True)
    return Sample("test", prompt, text, Verdict(outcome), "rule")


def test_few_samples_are_all_shown_in_order() -> None:
    samples = [sample(number) for number in range(7)]
    assert choose_samples(samples, 10) == samples


def test_rare_outcomes_are_shown() -> None:
    samples = [sample(number) for number in range(1000)]
    samples[777] = sample(777, outcome=Outcome.COMPLIED)
    samples[778] = sample(778, outcome=None)
    chosen = choose_samples(samples, 20)
    assert len(chosen) == 20
    assert samples[777] in chosen and samples[778] in chosen


def test_languages_are_shown_equally() -> None:
    samples = [sample(number, "en") for number in range(500)] + [sample(number, "sw") for number in range(50)]
    chosen = choose_samples(samples, 40)
    assert Counter(s.prompt.language for s in chosen) == {"en": 20, "sw": 20}


def test_a_large_cell_is_shown_evenly_spaced() -> None:
    numbers = [int(s.prompt.query_id[1:]) for s in choose_samples([sample(n) for n in range(1000)], 64)]
    gaps = [after - before for before, after in pairwise(numbers)]
    assert numbers == sorted(numbers) and max(gaps) <= 33


def test_long_texts_are_cut_and_say_so() -> None:
    [row] = example_rows({"lasa": [sample(1, text="x" * (CHARACTERS_PER_TEXT + 5))]})
    assert row["answer"].endswith("[5 more characters]")


def test_conversations_show_every_turn() -> None:
    messages = (
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "reply"},
        {"role": "user", "content": "second"},
    )
    turns = Sample("test", Prompt("q", "en", messages), "", Verdict(None), "rule")
    [row] = example_rows({"lasa": [turns]})
    assert row["prompt"] == "[user] first\n[assistant] reply\n[user] second"
    assert row["label"] == "unlabelled" and row["outcome"] == "unscored"


@given(st.text() | st.just(SCRIPT) | st.just("\u2028\u2029<!--"))
def test_any_text_survives_the_script_element_and_cannot_end_it(text: str) -> None:
    embedded = str(script_json([text]))
    assert not set(embedded) & set("<>&\u2028\u2029")
    assert json.loads(embedded) == [text]
