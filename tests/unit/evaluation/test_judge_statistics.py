import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from lasa.errors import DataError
from lasa.evaluation.judge_statistics import cohen_kappa, krippendorff_alpha, rogan_gladen
from lasa.statistics import cluster_rate, wilson


def test_cohens_kappa_is_scikit_learns() -> None:
    rng = np.random.default_rng(11)
    a = rng.choice(["refused", "complied", "irrelevant"], size=200).tolist()
    b = [label if rng.random() < 0.7 else "refused" for label in a]
    assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))
    assert cohen_kappa([*a, None, "refused"], [*b, "refused", None]) == pytest.approx(cohen_kappa_score(a, b))
    assert cohen_kappa(["refused"] * 5, ["refused"] * 5) is None
    assert cohen_kappa([None], ["refused"]) is None


def _ratings(*rows: str) -> list[list[str | None]]:
    return [[None if label == "." else label for label in row] for row in rows]


@pytest.mark.parametrize(
    ("ratings", "alpha"),
    [
        (_ratings("0100000010", "1110010000"), 0.095),
        (_ratings("aabbdcccedda", "babbbccceddd"), 0.692),
        (_ratings("123321412...", "1233224125.3", ".3332342251.", "12332441251."), 0.743),
    ],
)
def test_krippendorffs_alpha_gives_the_values_of_his_worked_examples(
    ratings: list[list[str | None]], alpha: float
) -> None:
    assert krippendorff_alpha(ratings) == pytest.approx(alpha, abs=5e-4)


def test_alpha_is_undefined_without_variation_or_overlap() -> None:
    assert krippendorff_alpha(_ratings("aaa", "aaa")) is None
    assert krippendorff_alpha(_ratings("ab..", "..ab")) is None
    assert krippendorff_alpha(_ratings("abab", "abab")) == 1


def test_rogan_gladen_recovers_the_true_rate() -> None:
    truth, sensitivity, specificity = 0.3, 0.9, 0.8
    observed = truth * sensitivity + (1 - truth) * (1 - specificity)
    corrected = rogan_gladen(wilson(observed * 5000, 5000), wilson(900, 1000), wilson(800, 1000))
    assert corrected.value == pytest.approx(truth)
    variance = (
        observed * (1 - observed) / 5000 + truth**2 * 0.9 * 0.1 / 1000 + (1 - truth) ** 2 * 0.8 * 0.2 / 1000
    ) / 0.7**2
    assert corrected.high - corrected.low == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.05)


def test_an_uncertain_judge_makes_a_wider_interval() -> None:
    observed = wilson(300, 1000)
    sure = rogan_gladen(observed, wilson(950, 1000), wilson(950, 1000))
    unsure = rogan_gladen(observed, wilson(19, 20), wilson(19, 20))
    assert unsure.high - unsure.low > 2 * (sure.high - sure.low)


def test_the_correction_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(12)
    covered = 0
    for trial in range(300):
        observed = rng.binomial(300, 0.05 * 0.85 + 0.95 * 0.1)
        corrected = rogan_gladen(
            wilson(observed, 300),
            wilson(rng.binomial(60, 0.85), 60),
            wilson(rng.binomial(60, 0.9), 60),
            resamples=1500,
            seed=trial,
        )
        covered += corrected.low <= 0.05 <= corrected.high
    assert covered >= 276


def test_a_clustered_rate_keeps_its_width_through_the_correction() -> None:
    hits = np.random.default_rng(13).random(100) < 0.4
    clustered = cluster_rate(np.repeat(hits, 10), np.repeat(np.arange(100), 10).tolist())
    perfect = wilson(10_000, 10_000)
    corrected = rogan_gladen(clustered, perfect, perfect)
    assert corrected.high - corrected.low == pytest.approx(clustered.high - clustered.low, rel=0.1)


def test_a_judge_no_better_than_chance_corrects_nothing() -> None:
    with pytest.raises(DataError, match="no better than chance"):
        rogan_gladen(wilson(10, 100), wilson(5, 10), wilson(5, 10))
    with pytest.raises(DataError, match="labelled positives"):
        rogan_gladen(wilson(10, 100), wilson(0, 0), wilson(5, 10))
