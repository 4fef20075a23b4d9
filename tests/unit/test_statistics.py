import time

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from lasa.errors import DataError
from lasa.statistics import (
    Rate,
    cluster_auroc,
    cluster_rate,
    holm,
    mcnemar_exact,
    paired_difference,
    smallest_detectable_difference,
    wilson,
)


@pytest.mark.parametrize(("successes", "n"), [(9, 315), (0, 40), (40, 40), (1, 2), (157, 315)])
def test_wilson_is_scipys_interval(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    rate = wilson(successes, n, unscored=3)
    assert rate.to_json() == {
        "value": successes / n,
        "low": pytest.approx(expected.low, abs=1e-12),
        "high": pytest.approx(expected.high, abs=1e-12),
        "n": n,
        "unscored": 3,
    }


def test_nine_of_315_is_between_one_and_a_half_and_five_percent() -> None:
    rate = wilson(9, 315)
    assert rate.low == pytest.approx(0.015, abs=5e-4)
    assert rate.high == pytest.approx(0.053, abs=5e-4)


def test_a_rate_of_nothing_has_no_value() -> None:
    assert wilson(0, 0, 7) == cluster_rate([], [], 7) == Rate(None, None, None, 0, 7)


def test_independent_rows_give_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    hits = rng.random(2000) < 0.3
    rate = cluster_rate(hits, range(2000))
    half = 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 2000)
    assert rate.value == pytest.approx(hits.mean())
    assert rate.low == pytest.approx(hits.mean() - half, abs=0.003)
    assert rate.high == pytest.approx(hits.mean() + half, abs=0.003)


def test_copies_of_one_question_add_no_information() -> None:
    hits = np.random.default_rng(2).random(300) < 0.2
    once = cluster_rate(hits, range(300))
    ten_times = cluster_rate(np.repeat(hits, 10), np.repeat(np.arange(300), 10).tolist())
    assert (ten_times.low, ten_times.high) == pytest.approx((once.low, once.high))
    assert ten_times.n == 3000
    assert ten_times.high - ten_times.low > 2 * (wilson(hits.sum() * 10, 3000).high - wilson(hits.sum() * 10, 3000).low)


def test_the_cluster_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        per_question = rng.beta(1, 3, size=120)
        hits = rng.random((120, 5)) < per_question[:, None]
        rate = cluster_rate(hits.ravel(), np.repeat(np.arange(120), 5).tolist(), resamples=400, seed=trial)
        covered += rate.low <= 0.25 <= rate.high
    assert 180 <= covered <= 198


@pytest.mark.parametrize("value", [0, 1])
def test_unanimous_clusters_fall_back_to_wilson_on_their_number(value: int) -> None:
    rate = cluster_rate([value] * 30, [row // 10 for row in range(30)])
    expected = wilson(3 * value, 3)
    assert (rate.value, rate.low, rate.high, rate.n) == (value, expected.low, expected.high, 30)


def test_the_same_seed_gives_the_same_interval() -> None:
    hits = np.random.default_rng(4).random(500) < 0.5
    clusters = [int(row**0.7) for row in range(500)]
    assert cluster_rate(hits, clusters, seed=5) == cluster_rate(hits, clusters, seed=5)
    assert cluster_rate(hits, clusters, seed=5) != cluster_rate(hits, clusters, seed=6)


def test_the_bootstrap_of_a_whole_benchmark_takes_well_under_a_second() -> None:
    hits = np.random.default_rng(5).random(3150) < 0.1
    clusters = [("multijail", str(row % 315)) for row in range(3150)]
    start = time.process_time()
    cluster_rate(hits, clusters)
    assert time.process_time() - start < 0.8


def test_mcnemar_is_statsmodels() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.random(200) < 0.5, rng.random(200) < 0.3
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert mcnemar_exact(a, b) == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert mcnemar_exact(a, a) == 1


def test_one_pair_per_question_is_tested_by_mcnemar() -> None:
    a, b = [1] * 9 + [0] * 91, [0] * 100
    result = paired_difference(a, b, range(100))
    assert result.test == "McNemar exact"
    assert result.p_value == pytest.approx(2 * 0.5**9)
    assert result.value == pytest.approx(0.09)
    assert result.low > 0


def test_a_large_paired_difference_has_the_normal_interval() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.random(1500) < 0.4, rng.random(1500) < 0.3
    difference = a.astype(float) - b
    half = 1.96 * difference.std() / np.sqrt(1500)
    result = paired_difference(a, b, range(1500))
    assert (result.low, result.high) == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.004)
    assert result.effective_n == 1500


def test_swapping_the_systems_mirrors_the_result() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.random(300) < 0.5, rng.random(300) < 0.35
    clusters = [row // 3 for row in range(300)]
    forth, back = paired_difference(a, b, clusters), paired_difference(b, a, clusters)
    assert back.value == -forth.value
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))
    assert back.p_value == forth.p_value


def test_the_paired_test_rejects_true_nulls_no_more_often_than_its_level() -> None:
    rng = np.random.default_rng(9)
    rejected = 0
    for trial in range(300):
        hard = rng.beta(0.5, 0.5, size=40)
        swing = rng.normal(0, 0.3, size=40)
        a = rng.random((40, 5)) < np.clip(hard + swing, 0, 1)[:, None]
        b = rng.random((40, 5)) < np.clip(hard - swing, 0, 1)[:, None]
        clusters = np.repeat(np.arange(40), 5).tolist()
        rejected += paired_difference(a.ravel(), b.ravel(), clusters, resamples=300, seed=trial).p_value < 0.05
    assert rejected <= 27  # mean 15, standard deviation 3.8


def test_one_question_proves_nothing_however_many_translations_it_has() -> None:
    result = paired_difference([1] * 10, [0] * 10, ["q"] * 10)
    assert result.p_value == 1
    assert result.low < 0.5


def test_systems_that_never_differ_leave_room_for_a_difference() -> None:
    result = paired_difference([0] * 50, [0] * 50, [row // 2 for row in range(50)])
    assert (result.value, result.p_value) == (0, 1)
    assert -result.low == result.high == wilson(0, 25).high


def test_comparing_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="Nothing to compare"):
        paired_difference([], [], [])


def test_holm_is_statsmodels() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005, 0.9]
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())
    assert holm([]) == []


def test_the_smallest_detectable_difference_inverts_connors_sample_size() -> None:
    difference = smallest_detectable_difference(315, 0.2)
    assert difference is not None
    z_alpha, z_power = norm.ppf(0.975), norm.ppf(0.8)
    needed = (z_alpha * np.sqrt(0.2) + z_power * np.sqrt(0.2 - difference**2)) ** 2 / difference**2
    assert needed == pytest.approx(315)


def test_the_smallest_detectable_difference_is_found_in_simulation() -> None:
    n, share = 300, 0.2
    difference = smallest_detectable_difference(n, share)
    assert difference is not None
    rng = np.random.default_rng(10)
    draws = rng.multinomial(n, [(share + difference) / 2, (share - difference) / 2, 1 - share], size=2000)
    statistic = (draws[:, 0] - draws[:, 1]) / np.sqrt(draws[:, 0] + draws[:, 1])
    assert (np.abs(statistic) > 1.96).mean() == pytest.approx(0.8, abs=0.03)


def test_more_pairs_detect_less_and_too_few_detect_nothing() -> None:
    assert smallest_detectable_difference(3150, 0.1) < smallest_detectable_difference(315, 0.1)
    assert 0 < smallest_detectable_difference(315, 0.0) < 0.05
    assert smallest_detectable_difference(3, 0.5) is None


class TestClusterAuroc:
    def draw(self, questions, seed, per=1):
        draw = np.random.default_rng(seed)
        labels = np.repeat(np.arange(questions) % 2 == 0, per)
        shared = np.repeat(draw.normal(size=questions), per)
        scores = shared + 0.3 * draw.normal(size=questions * per) + 1.2 * labels
        return scores, labels, np.repeat(np.arange(questions), per)

    def test_the_area_is_sklearns_ties_included(self):
        scores, labels, clusters = self.draw(200, 0)
        for values in (scores, scores.round()):
            assert cluster_auroc(values, labels, clusters).value == pytest.approx(roc_auc_score(labels, values))

    @pytest.mark.parametrize("per", [1, 8])
    def test_the_interval_covers_the_true_area_at_the_stated_rate(self, per):
        truth = float(norm.cdf(1.2 / (2 * 1.09) ** 0.5))
        found = [cluster_auroc(*self.draw(120, seed, per)) for seed in range(300)]
        covered = np.mean([one.low <= truth <= one.high for one in found])
        assert covered == pytest.approx(0.95, abs=0.035)

    def test_perfect_separation_still_has_an_interval(self):
        found = cluster_auroc([0, 0, 1, 1], [False, False, True, True], range(4))
        assert found.value == 1 and found.low < 0.6 and found.high == 1
