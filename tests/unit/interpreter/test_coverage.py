"""Which languages an interpreter holds in, predicted from harmless parallel text alone."""

from dataclasses import replace

import pytest
import torch

from interpreters import WIDTH, config, labelled_states
from lasa.data.prompts import user_prompt
from lasa.errors import DataError
from lasa.interpreter.coverage import grade, measure_coverage
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.interpreter.training import LabelledStates
from lasa.statistics import Rate

SEEN = ("en", "zh", "ko")


@pytest.fixture(scope="module")
def interpreter():
    """A probe that reads the first axis."""
    probe = SafetySemanticInterpreter(config(hidden=0, languages=SEEN)).eval()
    with torch.no_grad():
        probe.out.weight.zero_()
        probe.out.weight[0, 0] = 4.0
        probe.out.bias.zero_()
    return probe


def sentences(count=120, *, moved=0.0, seed=0):
    """Sentences in five languages: `it` keeps what a sentence says, `sw` loses it, `jv` keeps it and is moved."""
    draw = torch.Generator().manual_seed(seed)
    meaning = torch.randn(count, WIDTH, generator=draw)
    prompts, states = [], []
    for code in (*SEEN, "it", "sw", "jv"):
        own = torch.randn(count, WIDTH, generator=draw)
        kept = 0.05 if code == "sw" else 1.0
        part = kept * meaning + 0.4 * own if code != "sw" else own
        part[:, 0] += moved if code == "jv" else 0.0
        states.append(part)
        prompts += [user_prompt(f"s{n}", code, f"{code} {n}", harmful=False) for n in range(count)]
    return LabelledStates(torch.cat(states), prompts)


def test_a_language_that_keeps_meaning_is_covered_and_one_that_loses_it_is_not(interpreter):
    found = measure_coverage(interpreter, sentences())
    grades = {code: one.grade for code, one in found.languages.items()}
    assert grades == {**dict.fromkeys((*SEEN, "it", "jv"), "covered"), "sw": "not covered"}
    assert found.languages["it"].retrieval.value > 0.9 > found.languages["sw"].retrieval.value
    agreement = found.languages["it"].agreement
    assert agreement.low < agreement.value < agreement.high and agreement.n == 120
    assert found.languages["it"].auroc is None


def test_a_language_whose_states_lie_elsewhere_is_not_covered_however_well_it_agrees(interpreter):
    found = measure_coverage(interpreter, sentences(moved=4.0))
    assert found.languages["jv"].agreement.value > 0.6
    assert found.languages["jv"].displacement.low > 0.7 > found.languages["it"].displacement.high
    assert found.languages["jv"].shift.low > 0.7
    assert found.languages["jv"].grade == "not covered"


def test_few_sentences_do_not_look_farther_apart_than_many(interpreter):
    few, many = (
        measure_coverage(interpreter, sentences(count, moved=1.0)).languages["jv"].displacement for count in (30, 2000)
    )
    assert few.value == pytest.approx(many.value, abs=0.1)
    assert few.low < many.value < few.high


def test_labels_measure_what_was_predicted(interpreter):
    labelled = labelled_states(40, ("it", "sw"))
    noise = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(1))
    states = labelled.states.clone()
    states[[p.language == "sw" for p in labelled.prompts]] = noise
    found = measure_coverage(interpreter, sentences(), LabelledStates(states, labelled.prompts))
    assert found.languages["it"].auroc.value > 0.9 > found.languages["sw"].auroc.value
    assert found.languages["en"].auroc is None
    assert found.rank_correlation == {}  # two languages have none


def test_the_signals_are_ranked_against_what_was_measured(interpreter):
    labelled = labelled_states(40, ("it", "sw", "jv"))
    lost = torch.tensor([p.language == "sw" for p in labelled.prompts])
    states = torch.where(lost[:, None], torch.zeros_like(labelled.states), labelled.states)
    found = measure_coverage(interpreter, sentences(moved=2.0), LabelledStates(states, labelled.prompts))
    assert found.languages["sw"].auroc.value == 0.5
    assert found.rank_correlation["agreement"] > 0
    assert set(found.rank_correlation) == {"agreement", "displacement", "shift", "retrieval"}


def test_signals_are_not_ranked_where_all_languages_measure_alike(interpreter):
    found = measure_coverage(interpreter, sentences(), labelled_states(40, ("it", "sw", "jv")))
    assert {one.auroc.value for code, one in found.languages.items() if code not in SEEN} == {1.0}
    assert found.rank_correlation == {}


@pytest.mark.parametrize(
    ("agreement", "displacement", "n", "expected"),
    [
        (0.8, 0.5, 100, "covered"),
        (0.8, 0.5, 29, "partly"),
        (0.45, 0.5, 100, "partly"),
        (0.9, 0.65, 100, "partly"),
        (0.3, 0.5, 100, "not covered"),
        (0.9, 0.8, 100, "not covered"),
        (None, 0.5, 100, "not covered"),
        (0.9, None, 1, "not covered"),
    ],
)
def test_the_rule(agreement, displacement, n, expected):
    assert grade(Rate(agreement, None, None, n), Rate(displacement, None, None, n), 1.0) == expected


def test_an_interpreter_that_agrees_with_itself_nowhere_covers_nothing(interpreter):
    data = sentences()
    random = LabelledStates(torch.randn_like(data.states), data.prompts)
    assert {one.grade for one in measure_coverage(interpreter, random).languages.values()} == {"not covered"}


def test_sentences_in_one_seen_language_are_too_little(interpreter):
    with pytest.raises(DataError, match="at least two of the interpreter's languages"):
        measure_coverage(interpreter, sentences().only(["en", "it", "sw"]))


def test_the_certificate_says_its_rule_and_is_plain_values(interpreter):
    found = measure_coverage(interpreter, sentences()).to_json()
    assert set(found["languages"]["sw"]) == {"grade", "agreement", "displacement", "shift", "retrieval", "auroc"}
    assert set(found["languages"]["sw"]["agreement"]) >= {"value", "low", "high", "n"}
    assert "of that among the seen languages" in found["rule"]
    assert replace(measure_coverage(interpreter, sentences()), layer=3).to_json()["layer"] == 3
