import math

import pytest

from interpreters import config
from lasa.conditioning.decision import Policy, decide
from lasa.interpreter.heads import CategoryHead
from lasa.serving.answers import moderated, record

FACTS = config(threshold=0.6, categories=CategoryHead(("self_harm", "hate"), threshold=0.7))


@pytest.mark.parametrize(
    ("score", "kinds", "named", "hazards"),
    [
        (0.9, (0.8, 0.2), "self_harm", ["S11"]),
        (0.9, (0.5, 0.5), None, []),
        (0.1, (0.8, 0.2), None, []),
    ],
)
def test_moderation_has_a_score_and_a_verdict_for_each_kind_of_harm(score, kinds, named, hazards):
    result = moderated(decide(FACTS, Policy(), score, categories=kinds))
    flagged = score >= 0.6
    assert result.categories == {"harmful": flagged, "self_harm": named == "self_harm", "hate": named == "hate"}
    expected = {"harmful": score, "self_harm": score * kinds[0], "hate": score * kinds[1]}
    assert result.category_scores == pytest.approx(expected)
    assert set(result.category_applied_input_types) == set(expected)
    assert (result.flagged, result.lasa.category, result.lasa.hazards) == (flagged, named, hazards)


def test_an_interpreter_without_kinds_gives_the_score_of_harm_alone():
    result = moderated(decide(config(threshold=0.6), Policy(), 0.9))
    assert result.categories == {"harmful": True} and result.category_scores == {"harmful": 0.9}


def test_what_is_no_number_is_null_in_json():
    decision = decide(FACTS, Policy(), math.nan, categories=(math.nan, 0.5))
    shown, result = record(decision), moderated(decision)
    assert (shown.score, shown.categories) == (None, {"self_harm": None, "hate": 0.5})
    assert result.flagged and result.category_scores == {"harmful": None, "self_harm": None, "hate": None}
    assert "NaN" not in result.model_dump_json()
