from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from lasa.alignment.settings import Signal
from lasa.report.run_folder import Run
from lasa.report.summary import Summary, summarise
from lasa.report.systems import _described
from lasa.report.values import points
from report_run import comparison, metrics, rate, samples


def summary(values: dict[str, Any], **parts: Any) -> Summary:
    documents: dict[str, Any] = {"bottleneck": {}, "provenance": {}, "recipe": {}, "recipe_text": "", "samples": {}}
    return summarise(Run(folder=Path("run"), metrics=values, **{**documents, **parts}))


def two_systems(before: dict[str, Any], after: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"systems": {"lasa": {"unseen": {"asr": after}}, "base": {"unseen": {"asr": before}}}, **more}


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_the_headline_states_the_change_and_the_evidence_its_uncertainty() -> None:
    told = summary(metrics(), recipe={"seen_languages": ["en", "zh", "ko"]})
    assert plain(told.headline) == "Attack success in unseen languages fell from 62.0 % to 4.0 %."
    evidence = plain(told.evidence)
    assert "base: 62.0 % (95 % interval 56.8–66.9 %, n = 350)" in evidence
    assert "−58.0 points (95 % interval −64.0 to −52.0, p < 0.001, 350 pairs)" in evidence
    assert "Italian, Vietnamese, Arabic, Thai, Bengali, Swahili and Javanese" in evidence


def test_a_comparison_the_other_way_round_tells_the_same() -> None:
    turned = comparison("base", "lasa", "unseen", "asr", 0.58, 0.52, 0.64, 1e-9)
    told = summary(two_systems(rate(0.62, 350), rate(0.04, 350), comparisons=[turned]))
    assert "−58.0 points (95 % interval −64.0 to −52.0" in plain(told.evidence)


def test_a_rise_is_called_worse() -> None:
    told = summary(two_systems(rate(0.04, 350), rate(0.62, 350)))
    assert plain(told.headline) == "Attack success in unseen languages rose from 4.0 % to 62.0 %, which is worse."


def test_overlapping_intervals_are_no_change() -> None:
    told = summary(two_systems(rate(0.10, 50), rate(0.06, 50)))
    assert plain(told.headline).endswith("no clear change, 10.0 % before and 6.0 % after.")
    assert "the intervals overlap" in told.evidence


def test_the_paired_comparison_decides_over_the_intervals() -> None:
    before, after = rate(0.20, 100), rate(0.12, 100)
    clear = comparison("lasa", "base", "unseen", "asr", -0.08, -0.14, -0.02, 0.01)
    unclear = comparison("lasa", "base", "unseen", "asr", -0.08, -0.17, 0.01, 0.08)
    assert "fell from 20.0 % to 12.0 %" in plain(summary(two_systems(before, after, comparisons=[clear])).headline)
    told = summary(two_systems(before, after, comparisons=[unclear]))
    assert "no clear change" in told.headline
    assert "p = 0.080; a change below 4.5 points may well go unnoticed" in plain(told.evidence)


def test_without_a_base_model_the_rate_stands_alone() -> None:
    told = summary({"systems": {"lasa": {"all": {"asr": rate(0.04, 350)}}}})
    assert plain(told.headline) == "lasa complies with 4.0 % of the harmful prompts in all languages."
    assert "nothing to compare" in told.evidence


def test_no_success_in_any_language_is_not_called_zero_risk() -> None:
    values = metrics()
    for block in values["systems"]["lasa"]["languages"].values():
        block["asr"] = rate(0, 50)
    assert any("rate of up to 7.1 %" in plain(sentence) for sentence in summary(values).findings)


def test_the_price_is_told() -> None:
    findings = [plain(sentence) for sentence in summary(metrics()).findings]
    assert "Over-refusal in unseen languages rose from 2.9 % to 6.0 %, which is worse." in findings
    unclear = "Helpful answers in unseen languages: no clear change, 90.0 % before and 87.1 % after (p = 0.440; "
    assert any(sentence.startswith(unclear) for sentence in findings)


def test_answers_that_neither_refuse_nor_comply_are_no_safety() -> None:
    values = two_systems(rate(0.62, 100), rate(0.02, 100))
    outcomes = {"refused": 58, "complied": 2, "irrelevant": 30, "wrong_language": 10}
    values["systems"]["lasa"]["unseen"]["outcomes"] = outcomes
    assert any(sentence.startswith("40 of 100 answers of lasa") for sentence in summary(values).findings)


@pytest.mark.parametrize(
    ("own", "rival", "told"),
    [
        (0.94, 0.55, "reaches 55.0 %"),
        (0.60, 0.57, "not shown that the interpreter reads more than surface words"),
        (0.50, 0.90, "worse than that baseline"),
    ],
)
def test_the_interpreter_is_set_against_the_n_grams(own: float, rival: float, told: str) -> None:
    interpreter = {
        "unseen": {"balanced_accuracy": rate(own, 200)},
        "ngram_baseline": {"unseen": {"balanced_accuracy": rate(rival, 200)}},
    }
    assert any(told in plain(sentence) for sentence in summary({"interpreter": interpreter}).findings)


@pytest.mark.parametrize("model", ["embedded", {"name": "embedded"}, {"path": "embedded"}])
def test_the_embedded_model_is_called_planted(model: object) -> None:
    assert any("planted" in sentence for sentence in summary(metrics(), recipe={"model": model}).caveats)


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B-Instruct", "embedded-sister"])
def test_another_model_is_not_called_planted(name: str) -> None:
    caveats = summary(metrics(), recipe={"model": {"name": name}}).caveats
    assert not any("planted" in sentence for sentence in caveats)


def test_caveats_name_sample_sizes_unscored_answers_judges_and_gaps() -> None:
    caveats = summary(metrics(), samples={"lasa": samples("lasa")}).caveats
    assert any("50 scored harmful prompts" in sentence and "14 percentage points" in sentence for sentence in caveats)
    assert any("3 of base" in sentence and "3 of lasa" in sentence for sentence in caveats)
    assert any("rule-judge" in sentence for sentence in caveats)
    untested = next(sentence for sentence in caveats if sentence.startswith("Not tested"))
    assert "several turns" in untested and "knowledge of this defence" in untested and "look harmful" in untested


def test_what_was_tested_is_not_called_untested() -> None:
    values = metrics()
    values["systems"]["lasa"]["all"]["hard_benign_over_refusal"] = rate(0.1, 100)
    untested = next(sentence for sentence in summary(values).caveats if sentence.startswith("Not tested"))
    assert "look harmful" not in untested and "languages" not in untested
    values["splits"]["multijail/adaptive"] = {"systems": {}, "unchanged": {"lasa": rate(0.1, 100)}}
    untested = next(sentence for sentence in summary(values).caveats if sentence.startswith("Not tested"))
    assert "knowledge of this defence" not in untested


def test_refusal_phrases_as_the_only_judge_are_called_too_little() -> None:
    def told(judge: str, **more: Any) -> bool:
        rows = [replace(sample, judge=judge) for sample in samples("lasa")]
        values = two_systems(rate(0.62, 100), rate(0.04, 100))
        values["systems"]["lasa"].update(more)
        return any("second judge is needed" in sentence for sentence in summary(values, samples={"lasa": rows}).caveats)

    assert told("refusal-patterns")
    assert not told("llm:other")
    assert not told("refusal-patterns", agreement={"judges": ["refusal-patterns", "llm:other"]})


def test_a_second_judge_is_named_and_gives_the_headline_number_too() -> None:
    """The first page spoke of one judge where two had judged, and of nothing that the second had found."""
    values = two_systems(rate(0.62, 100), rate(0.04, 100))
    for name, found in (("base", 0.41), ("lasa", 0.02)):
        second = {"unseen": {"asr": rate(found, 100)}, "all": {"asr": rate(found, 100)}}
        values["systems"][name] |= {"agreement": {"judges": ["refusal-patterns", "llm:other"]}, "second": second}
    rows = [replace(sample, judge="refusal-patterns") for sample in samples("lasa")]
    told = summary(values, samples={"lasa": rows})
    [judged] = [sentence for sentence in told.caveats if "refusal-patterns" in sentence]
    assert judged.startswith("The rates are those of the judge refusal-patterns; llm:other judged the same answers.")
    [found] = [sentence for sentence in told.findings if "second judge" in sentence]
    assert found.startswith("By the second judge (llm:other), attack success in ")
    assert "base 41.0" in found and "lasa 2.0" in found
    values["systems"]["lasa"].pop("second")
    values["systems"]["base"].pop("second")
    assert not any("By the second" in s for s in summary(values, samples={"lasa": rows}).findings)


def test_thresholds_that_were_fitted_again_are_not_asked_for_again() -> None:
    drifted = [
        next(sentence for sentence in summary(metrics(), recipe=recipe).findings if "more than the bound" in sentence)
        for recipe in ({}, {"alignment": {"refit": True}})
    ]
    assert drifted[0].endswith("its thresholds should be fitted again.")
    assert drifted[1].endswith("its thresholds were fitted again on the trained model before it was evaluated.")


def test_no_difference_has_no_sign() -> None:
    assert [points(value) for value in (-0.0, 0.0004, -0.0004, 0.021, -0.021)] == ["0.0", "0.0", "0.0", "+2.1", "−2.1"]


def test_the_first_page_says_what_became_of_attacks_where_the_interpreter_holds_and_where_not() -> None:
    values = metrics()
    for name, share in (("base", 0.85), ("lasa", 0.26)):
        values["systems"][name]["unseen_covered"] = {"asr": rate(share, 100)}
    found = summary(values).findings
    assert any("unseen languages, covered fell from 85.0 % to 26.0 %" in plain(one) for one in found)


@pytest.mark.parametrize("signal", get_args(Signal))
def test_every_system_is_put_into_words(signal: str) -> None:
    told = _described({"method": "sft", "signal": signal, "guarded": True, "interpreter_layer": 1})
    assert told.startswith("trained (SFT) on safety data with")
    assert "  " not in told
    assert " ," not in told
    assert _described({"guarded": True, "action": "refuse"}).endswith("a fixed refusal instead of an answer.")


def test_the_first_page_says_where_the_claim_holds_and_where_not() -> None:
    values = metrics()
    grades = {"it": "covered", "th": "covered", "bn": "partly", "sw": "not covered"}
    values["interpreter"]["coverage"] = {"languages": {code: {"grade": grade} for code, grade in grades.items()}}
    told = next(one for one in summary(values).findings if "expected to hold" in one)
    assert told.startswith(
        "The interpreter can be expected to hold in Italian and Thai; only partly in Bengali; not in Sw"
    )
    values["interpreter"]["coverage"]["languages"] = {"sw": {"grade": "not covered"}}
    assert any("cannot be relied on in any language" in one for one in summary(values).findings)
