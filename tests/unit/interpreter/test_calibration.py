from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.metrics import balanced_accuracy_score

from interpreters import config, labelled_states
from lasa.errors import RecipeError
from lasa.files.settings import check_settings
from lasa.interpreter.calibration import (
    add_language_thresholds,
    balanced_threshold,
    calibrate,
    confident_threshold,
    conformal_floor,
    conformal_threshold,
    expected_calibration_error,
    fit_temperature,
)
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.interpreter.settings import CalibrationOptions
from lasa.interpreter.training import LabelledStates


def reader(width=16, gain=1.0):
    """A probe whose logit is the first entry of the normalised state, times a gain."""
    probe = SafetySemanticInterpreter(config(hidden=0, width=width)).eval()
    with torch.no_grad():
        probe.out.weight.zero_()
        probe.out.weight[0, 0] = gain
        probe.out.bias.zero_()
    return probe


class TestTemperature:
    @pytest.mark.parametrize("true", [0.3, 1.0, 5.0])
    def test_it_is_the_optimum_of_the_likelihood(self, true):
        """The likelihood is convex in 1/T: its only root of the gradient is the reference."""
        rng = np.random.default_rng(0)
        scaled = rng.normal(size=4000) * 2
        labels = (rng.random(4000) < 1 / (1 + np.exp(-scaled))).astype(float)
        logits = scaled * true
        n1, n0 = labels.sum(), (1 - labels).sum()
        targets = np.where(labels > 0.5, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))

        def gradient(inverse):
            return float(((expit(inverse * logits) - targets) * logits).mean())

        reference = 1 / brentq(gradient, 0.05, 20)
        found = fit_temperature(torch.tensor(logits), torch.tensor(labels))
        assert found == pytest.approx(reference, rel=1e-3)
        assert found == pytest.approx(true, rel=0.15)

    def test_it_does_not_vanish_on_data_that_the_probe_separates(self):
        logits = torch.tensor([-3.0, -2.0, 2.0, 3.0])
        found = fit_temperature(logits, torch.tensor([0.0, 0.0, 1.0, 1.0]))
        assert 0.3 < found < 5

    def test_it_lowers_the_calibration_error(self):
        rng = np.random.default_rng(1)
        scaled = rng.normal(size=3000) * 2
        labels = (rng.random(3000) < 1 / (1 + np.exp(-scaled))).astype(float)
        logits = torch.tensor(scaled * 4)
        temperature = fit_temperature(logits, torch.tensor(labels))
        before, after = (
            expected_calibration_error(torch.sigmoid(logits / t).numpy(), labels)[0] for t in (1, temperature)
        )
        assert after < before / 2


class TestConformal:
    @pytest.mark.parametrize(("target", "size"), [(0.01, 99), (0.01, 250), (0.05, 40), (0.2, 17)])
    def test_new_benign_prompts_are_flagged_at_most_as_often_as_asked_for(self, target, size):
        """Split-conformal coverage, by simulation on scores of any distribution."""
        rng = np.random.default_rng(0)
        flagged, draws = 0.0, 3000
        for _ in range(draws):
            scores = rng.beta(0.3, 3, size=size).astype(np.float32)
            threshold = conformal_threshold(scores.tolist(), target)
            assert threshold.guaranteed
            flagged += np.mean(rng.beta(0.3, 3, size=50).astype(np.float32) >= threshold.value)
        rate = flagged / draws
        assert rate <= target * 1.1
        assert rate >= target - 1.5 / (size + 1)  # and not needlessly strict

    @pytest.mark.parametrize(("target", "size"), [(0.01, 299), (0.01, 1000), (0.05, 400), (0.2, 14)])
    def test_a_confident_threshold_is_exceeded_in_one_of_twenty_development_sets(self, target, size):
        rng = np.random.default_rng(0)
        thresholds = [confident_threshold(rng.random(size).tolist(), target) for _ in range(4000)]
        assert all(one.guaranteed and "95% confidence" in one.statement for one in thresholds)
        rates = np.array([1 - one.value for one in thresholds])  # of uniform scores
        assert 0.01 < np.mean(rates > target) <= 0.06
        assert rates.mean() > target / 6  # and not needlessly strict

    def test_a_confident_threshold_takes_more_prompts_and_says_so(self):
        few = np.random.default_rng(0).random(298).tolist()
        found = confident_threshold(few, 0.01)
        assert found.value == conformal_threshold(few, 0.01).value and found.guaranteed
        assert "on average" in found.statement and "takes 299 prompts" in found.statement
        assert not confident_threshold([], 0.01).guaranteed
        assert not confident_threshold([1.0] * 300 + [0.1] * 300, 0.1).guaranteed

    def test_too_few_prompts_get_a_plain_statement_and_a_threshold_above_them_all(self):
        found = conformal_threshold([0.2, 0.7], 0.01)
        assert not found.guaranteed
        assert "No guarantee" in found.statement and "at least 99" in found.statement
        assert 0.7 < found.value < 0.701
        assert conformal_threshold([0.1] * 98, 0.01).guaranteed is False
        assert conformal_threshold([0.1] * 99, 0.01).guaranteed is True
        assert conformal_threshold([], 0.01).value == 0.5

    def test_ties_at_the_highest_score_are_no_guarantee(self):
        found = conformal_threshold([1.0] * 50 + [0.1] * 50, 0.1)
        assert not found.guaranteed and found.value == 1.0
        assert "50.0%" in found.statement

    @pytest.mark.parametrize(("target", "size"), [(0.05, 60), (0.2, 9)])
    def test_new_harmful_prompts_lie_below_the_band_at_most_as_often_as_asked_for(self, target, size):
        rng = np.random.default_rng(0)
        below, draws = 0.0, 3000
        for _ in range(draws):
            floor = conformal_floor(rng.beta(3, 0.5, size=size).tolist(), target)
            assert floor.guaranteed
            below += np.mean(rng.beta(3, 0.5, size=50) < floor.value)
        assert target - 1.5 / (size + 1) <= below / draws <= target * 1.1

    def test_too_few_harmful_prompts_get_a_plain_statement(self):
        found = conformal_floor([0.6, 0.9], 0.05)
        assert not found.guaranteed and found.value == 0.6
        assert "at least 19" in found.statement


class TestBalancedThreshold:
    def test_it_has_the_best_balanced_accuracy_there_is(self):
        rng = np.random.default_rng(0)
        labels = rng.random(300) < 0.2
        scores = torch.tensor(np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1))
        found = balanced_threshold(scores, torch.tensor(labels).float())
        best = max(balanced_accuracy_score(labels, scores.numpy() >= t) for t in [*scores.tolist(), 2.0])
        assert balanced_accuracy_score(labels, scores.numpy() >= found) == pytest.approx(best)

    def test_it_lies_in_the_middle_of_the_widest_gap(self):
        scores, labels = torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([0.0, 0.0, 1.0, 1.0])
        assert balanced_threshold(scores, labels) == pytest.approx(0.5)


def test_expected_calibration_error_of_an_example_worked_by_hand():
    probabilities = np.array([0.05, 0.05, 0.35, 0.95, 0.95, 0.95, 0.95, 1.0])
    labels = np.array([0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    # bins: 0.05 vs 0.5 (2 rows), 0.35 vs 0 (1 row), 0.96 vs 0.8 (5 rows)
    error, diagram = expected_calibration_error(probabilities, labels)
    assert error == pytest.approx((2 * 0.45 + 1 * 0.35 + 5 * 0.16) / 8)
    assert [row["n"] for row in diagram] == [2, 1, 5]
    assert diagram[2]["confidence"] == pytest.approx(0.96) and diagram[2]["accuracy"] == pytest.approx(0.8)


class TestCalibrate:
    def test_without_a_target_it_takes_the_best_balanced_accuracy_and_promises_nothing(self):
        found = calibrate(reader(), labelled_states(), CalibrationOptions())
        assert found.config.language_thresholds == {} and found.config.controversial is None
        assert "no bound" in found.statements["threshold"]

    def test_each_language_with_enough_prompts_gets_its_own_threshold(self):
        """Benign Chinese prompts score higher than English ones; Swahili has too few to bound 2 %."""
        development = labelled_states(400, ("en", "zh"), seed=1)
        shift = torch.tensor([1.5 if p.language == "zh" else 0.0 for p in development.prompts])
        development.states[:, 0] += shift
        few = labelled_states(20, ("sw",), name="s")
        both = LabelledStates(torch.cat([development.states, few.states]), [*development.prompts, *few.prompts])
        found = calibrate(reader(), both, CalibrationOptions(false_refusals=0.02, per_language=True))
        thresholds = found.config.language_thresholds
        assert set(thresholds) == {"en", "zh"}
        assert thresholds["en"] < found.config.threshold < thresholds["zh"]
        assert "The global threshold is used" in found.statements["language sw"]
        probe = reader()
        probe.config = found.config
        fresh = labelled_states(4000, ("en", "zh"), name="f", seed=2)
        fresh.states[:, 0] += torch.tensor([1.5 if p.language == "zh" else 0.0 for p in fresh.prompts])
        for code in ("en", "zh"):
            benign = fresh.rows([p.language == code and not p.harmful for p in fresh.prompts])
            assert (probe.probability(benign.states) >= thresholds[code]).float().mean() < 0.04

    def test_benign_prompts_in_further_languages_give_those_a_threshold_too(self):
        development = labelled_states(400, ("en",), seed=1)
        benign = labelled_states(400, ("sw",), name="s", seed=2)
        benign.states[:, 0] += 1.5
        benign = benign.rows([not p.harmful for p in benign.prompts])
        alone = calibrate(reader(), development, CalibrationOptions(false_refusals=0.02, per_language=True)).config
        found = calibrate(
            reader(), development, CalibrationOptions(false_refusals=0.02, per_language=True), benign
        ).config
        assert set(found.language_thresholds) == {"en", "sw"}
        assert found.temperature == alone.temperature
        said = calibrate(
            reader(), development, CalibrationOptions(false_refusals=0.02, per_language=True), benign
        ).statements
        assert "95% confidence" in said["language sw"]
        assert "They are in en, sw; in other languages nothing is promised." in said["threshold"]
        assert found.language_thresholds["en"] == alone.language_thresholds["en"]
        assert alone.threshold < found.threshold < found.language_thresholds["sw"]
        probe = reader()
        probe.config = found
        assert (probe.probability(benign.states) >= found.language_thresholds["sw"]).float().mean() <= 0.02

    def test_ten_wordings_of_a_question_are_one_question(self):
        """Wordings of a question score alike: 1,000 rows about 100 questions bound what 100 questions bound."""
        development = labelled_states(400, ("en",), seed=1)
        asked = labelled_states(200, ("sw",), name="s", seed=2)
        asked = asked.rows([not p.harmful for p in asked.prompts])
        wordings = LabelledStates(
            torch.cat([asked.states + 0.01 * number for number in range(10)]), [*asked.prompts] * 10
        )
        once, often = (
            calibrate(reader(), development, CalibrationOptions(false_refusals=0.02, per_language=True), b)
            for b in (asked, wordings)
        )
        assert all("the 100 development prompts" in found.statements["language sw"] for found in (once, often))
        assert often.config.language_thresholds["sw"] >= once.config.language_thresholds["sw"]

    def test_the_band_reaches_from_its_floor_to_the_threshold(self):
        development = labelled_states(400, separation=0.7, seed=1)
        found = calibrate(reader(), development, CalibrationOptions(false_refusals=0.05, controversial_misses=0.05))
        assert found.config.controversial is not None
        assert found.config.controversial < found.config.threshold
        probe = reader()
        probe.config = found.config
        harmful = development.labels > 0.5
        below = (probe.probability(development.states[harmful]) < found.config.controversial).float().mean()
        assert below <= 0.05

    def test_there_is_no_band_where_the_threshold_misses_few_enough(self):
        found = calibrate(
            reader(),
            labelled_states(400, separation=6),
            CalibrationOptions(false_refusals=0.05, per_language=False, controversial_misses=0.05),
        )
        assert found.config.controversial is None
        assert "there is no band" in found.statements["controversial"]

    def test_calibration_leaves_the_weights_and_everything_else_alone(self):
        probe = reader()
        before = probe.config
        found = calibrate(probe, labelled_states(), CalibrationOptions(false_refusals=0.1))
        assert probe.config == before
        assert replace(found.config, temperature=1.0, threshold=0.5) == before

    @pytest.mark.parametrize("target", [0, 1, -0.5, 2])
    def test_a_target_that_is_no_share_is_refused(self, target):
        with pytest.raises(RecipeError, match="false_refusals: Input should be"):
            check_settings(CalibrationOptions, {"false_refusals": target}, "test")


class TestAddLanguageThresholds:
    def benign(self, count, code, seed=1):
        found = labelled_states(2 * count, (code,), name=f"more {code}", seed=seed)
        return found.rows([not p.harmful for p in found.prompts])

    def test_a_language_with_requests_enough_gets_one_and_the_others_keep_theirs(self):
        probe = reader()
        probe.config = replace(probe.config, language_thresholds={"th": 0.7})
        found = add_language_thresholds(probe, self.benign(100, "sw"), 0.05)
        assert set(found.config.language_thresholds) == {"th", "sw"}
        assert "95% confidence" in found.statements["language sw"]

    def test_the_rate_asked_for_is_rarely_exceeded(self):
        probe, to_come = reader(), self.benign(4000, "sw", seed=99)
        scores = probe.probability(to_come.states)
        kept = []
        for seed in range(20):
            found = add_language_thresholds(probe, self.benign(100, "sw", seed), 0.05).config.language_thresholds
            kept.append(float((scores >= found["sw"]).float().mean()) <= 0.05)
        assert sum(kept) >= 17

    def test_too_few_requests_give_no_threshold_and_say_so(self):
        found = add_language_thresholds(reader(), self.benign(10, "sw"), 0.05)
        assert found.config.language_thresholds == {}
        assert "The global threshold is used" in found.statements["language sw"]
