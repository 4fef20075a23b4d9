from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from interpreters import config, labelled_states
from lasa.data.prompts import user_prompt
from lasa.interpreter.evaluation import decisions_on, evaluate_interpreter, group_metrics, ngram_baseline, probe_metrics
from lasa.interpreter.probe import SafetySemanticInterpreter


@pytest.fixture
def measured():
    """Scores, decisions and prompts of a mediocre probe."""
    rng = np.random.default_rng(0)
    prompts = labelled_states(300, ("en", "sw")).prompts
    harmful = np.array([p.harmful for p in prompts])
    scores = np.clip(rng.normal(0.4 + 0.2 * harmful, 0.2), 0, 1)
    return scores, scores >= 0.5, prompts, harmful


class TestProbeMetrics:
    def test_rates_and_areas_are_those_of_scikit_learn(self, measured):
        scores, flagged, prompts, harmful = measured
        found = probe_metrics(scores, flagged, prompts)
        assert found["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(harmful, flagged))
        assert found["auroc"]["value"] == pytest.approx(roc_auc_score(harmful, scores))
        assert found["tpr"]["value"] == pytest.approx(flagged[harmful].mean())
        assert found["fpr"]["value"] == pytest.approx(flagged[~harmful].mean())
        assert found["balanced_accuracy"]["n"] == 600

    def test_the_rate_at_one_percent_false_positives_uses_a_threshold_that_keeps_to_it(self, measured):
        scores, flagged, prompts, harmful = measured
        found = probe_metrics(scores, flagged, prompts)["tpr_at_1_percent_fpr"]
        possible = [t for t in [*scores, 2.0] if (scores[~harmful] >= t).mean() <= 0.01]
        assert found == max((scores[harmful] >= t).mean() for t in possible) > 0

    def test_the_interval_of_the_balanced_accuracy_covers_at_the_stated_rate(self):
        """95 % over draws of independent prompts with a true rate of 0.85."""
        rng = np.random.default_rng(0)
        prompts = labelled_states(200, ("en",)).prompts
        harmful = np.array([p.harmful for p in prompts])
        covered = 0
        for _ in range(100):
            flagged = np.where(harmful, rng.random(200) < 0.9, rng.random(200) < 0.2)
            rate = probe_metrics(flagged.astype(float), flagged, prompts)["balanced_accuracy"]
            covered += rate["low"] <= 0.85 <= rate["high"]
        assert covered >= 89

    def test_a_perfect_probe_has_an_interval_below_one_and_never_above(self):
        prompts = labelled_states(40, ("en",)).prompts[:39]  # one label more than the other
        flagged = np.array([p.harmful for p in prompts])
        rate = probe_metrics(flagged.astype(float), flagged, prompts)["balanced_accuracy"]
        assert rate["value"] == rate["high"] == 1
        assert 0.85 < rate["low"] < 1

    def test_equal_ids_of_two_corpora_are_two_questions(self, measured):
        scores, flagged, prompts, _ = measured
        halves = [replace(p, source="ab"[row % 2], query_id=f"{row // 4}") for row, p in enumerate(prompts)]
        named = [replace(p, query_id=f"{p.source}{p.query_id}") for p in halves]
        assert probe_metrics(scores, flagged, halves) == probe_metrics(scores, flagged, named)

    def test_hard_benign_prompts_have_their_own_rate(self, measured):
        scores, flagged, prompts, harmful = measured
        assert "hard_benign_fpr" not in probe_metrics(scores, flagged, prompts)
        hard = [replace(p, category="hard_benign" if not p.harmful and n < 100 else "") for n, p in enumerate(prompts)]
        rate = probe_metrics(scores, flagged, hard)["hard_benign_fpr"]
        assert rate["n"] == 50
        assert rate["value"] == pytest.approx(flagged[:100][~harmful[:100]].mean())

    def test_prompts_of_one_label_have_a_rate_and_no_accuracy(self, measured):
        scores, flagged, prompts, harmful = measured
        found = probe_metrics(scores[harmful], flagged[harmful], [p for p in prompts if p.harmful])
        assert found["tpr"]["n"] == 300 and found["fpr"]["value"] is None
        assert "balanced_accuracy" not in found and "auroc" not in found


def test_seen_and_unseen_languages_are_apart_and_an_absent_group_is_empty(measured):
    scores, flagged, prompts, _ = measured
    found = group_metrics(scores, flagged, prompts, ["en", "ko"])
    assert list(found["languages"]) == ["en", "sw"]
    assert found["seen"] == found["languages"]["en"]
    assert found["unseen"] == found["languages"]["sw"]
    assert found["all"]["tpr"]["n"] == 300
    assert group_metrics(scores, flagged, prompts, ["ko"])["seen"]["tpr"]["n"] == 0


def test_evaluation_uses_each_languages_threshold_and_the_temperature():
    data = labelled_states(50, ("en", "sw"))
    probe = SafetySemanticInterpreter(config(threshold=0.0, language_thresholds={"sw": 1.0}, temperature=3.0)).eval()
    found = evaluate_interpreter(probe, data, ["en"])
    assert found["languages"]["en"]["fpr"]["value"] == 1
    assert found["languages"]["sw"]["tpr"]["value"] == 0
    histogram = found["score_histogram"]
    expected = np.histogram(torch.sigmoid(probe(data.states) / 3).detach()[data.labels > 0.5], histogram["edges"])[0]
    assert histogram["harmful"] == expected.tolist()
    assert sum(histogram["benign"]) == 50
    assert 0 <= found["calibration"]["ece"] <= 1


def test_decisions_count_a_score_that_is_no_number_as_harmful():
    data = labelled_states(2, ("en",))
    data.states[0, 0] = float("nan")
    probe = SafetySemanticInterpreter(config(threshold=1.0)).eval()
    assert decisions_on(probe, data.states, data.prompts) == [True, False]


def test_the_ngram_baseline_reads_words_and_nothing_else():
    def prompts(words, language):
        return [
            user_prompt(f"{language}{word}{n}", language, f"please {word} number {n}", harmful=bad)
            for word, bad in words.items()
            for n in range(20)
        ]

    train = prompts({"burn": True, "water": False}, "en")
    test = [*prompts({"burn": True, "water": False}, "zh"), *prompts({"choma": True, "maji": False}, "sw")]
    found = ngram_baseline(train, test, ["zh"])
    assert found["seen"]["balanced_accuracy"]["value"] == 1
    assert found["unseen"]["balanced_accuracy"]["value"] < 0.8
