import json
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr

from interpreters import config, labelled_states
from lasa.errors import DataError
from lasa.interpreter.drift import measure_drift, refit
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.interpreter.settings import CalibrationOptions


@pytest.fixture
def probe():
    probe = SafetySemanticInterpreter(config(hidden=0)).eval()
    with torch.no_grad():
        probe.out.weight.zero_()
        probe.out.weight[0, 0] = 2.0
        probe.out.bias.zero_()
    return probe


@pytest.fixture
def base():
    return labelled_states(100, ("en", "sw"))


def test_a_model_that_did_not_move_has_no_drift(probe, base):
    found = measure_drift(probe, base.states, base.states, base.prompts)
    assert (found.mean_shift, found.largest_shift, found.newly_flagged, found.newly_passed) == (0, 0, 0, 0)
    assert found.rank_correlation == pytest.approx(1)
    assert not found.exceeded and "Within the bound of 2.0%" in found.verdict
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["changed"]["n"] == 200


def test_shift_and_changed_decisions_are_counted_by_hand(probe, base):
    moved = base.states.clone()
    moved[:, 0] += 1.0
    found = measure_drift(probe, base.states, moved, base.prompts, bound=0.01)
    before, after = probe.probability(base.states), probe.probability(moved)
    assert found.mean_shift == pytest.approx(float((after - before).abs().mean()), abs=1e-6)
    assert found.largest_shift == pytest.approx(float((after - before).abs().max()), abs=1e-6)
    assert found.rank_correlation == pytest.approx(spearmanr(before, after).statistic)
    assert found.newly_flagged == int(((before < 0.5) & (after >= 0.5)).sum()) > 0
    assert found.newly_passed == 0
    assert found.changed.value == pytest.approx(found.newly_flagged / 200)
    assert found.exceeded and found.verdict.startswith("Warning:") and "bound of 1.0%" in found.verdict


def test_decisions_that_cancel_out_are_still_changes(probe, base):
    found = measure_drift(probe, base.states, -base.states, base.prompts)
    assert found.newly_flagged > 50 and found.newly_passed > 50
    assert found.changed.value > 0.9 and found.rank_correlation < -0.9


def test_an_empty_probe_set_is_refused(probe):
    with pytest.raises(DataError, match="at least one prompt"):
        measure_drift(probe, torch.zeros(0, 16), torch.zeros(0, 16), [])


def test_fitting_again_restores_the_false_refusal_rate_and_keeps_the_weights(probe, base):
    moved = base.states.clone()
    moved[:, 0] += 3.0
    refitted, calibrated = refit(probe, moved, base.prompts, CalibrationOptions(false_refusals=0.05))
    benign = base.labels < 0.5
    was = (probe.probability(moved[benign]) >= probe.config.threshold).float().mean()
    now = (refitted.probability(moved[benign]) >= refitted.config.threshold).float().mean()
    assert was > 0.2 and now <= 0.05
    assert torch.equal(probe.out.weight, refitted.out.weight)
    assert probe.config.threshold == 0.5
    assert "5.0%" in calibrated.statements["threshold"]


def test_fitting_again_takes_benign_prompts_in_further_languages(probe, base):
    more = labelled_states(200, ("it",), name="more")
    more = more.rows((more.labels < 0.5).tolist())
    options = CalibrationOptions(false_refusals=0.05, per_language=True)
    alone, joined = (refit(probe, base.states, base.prompts, options, also)[0].config for also in (None, more))
    assert "it" not in alone.language_thresholds
    assert "it" in joined.language_thresholds


@pytest.mark.parametrize("label", [None, True])
def test_fitting_again_needs_both_labels(probe, base, label):
    prompts = [replace(p, harmful=label) for p in base.prompts]
    with pytest.raises(DataError, match="some harmful and some benign"):
        refit(probe, base.states, prompts, CalibrationOptions())
