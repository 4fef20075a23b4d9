import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import silhouette_samples as reference_samples
from sklearn.metrics import silhouette_score as reference_score

from lasa.bottleneck.geometry import (
    is_defined,
    language_id_accuracy,
    parallel_index,
    retrieval_accuracy,
    silhouette_samples,
    silhouettes_without_each_query,
    similarity_to_language,
    u_score,
    unit_vectors,
)
from lasa.data.prompts import user_prompt

LANGUAGES = ("en", "zh", "sw")


def table(queries=12, missing=()):
    return [
        user_prompt(str(q), code, "x") for q in range(queries) for code in LANGUAGES if (q, code) not in set(missing)
    ]


def vectors(prompts, width=16, seed=0, meaning=0.7):
    draw = np.random.default_rng(seed)
    queries, languages = draw.normal(size=(100, width)), {code: draw.normal(size=width) for code in LANGUAGES}
    rows = [
        meaning * queries[int(p.query_id)] + (1 - meaning) * languages[p.language] + 0.4 * draw.normal(size=width)
        for p in prompts
    ]
    return torch.tensor(np.array(rows), dtype=torch.float32)


@pytest.mark.parametrize("clusters", [2, 7, 40])
def test_silhouettes_equal_scikit_learn(clusters):
    draw = np.random.default_rng(clusters)
    labels = np.concatenate([np.arange(clusters), draw.integers(clusters, size=120 - clusters)])
    x = draw.normal(size=(120, 16))
    found = silhouette_samples(unit_vectors(torch.tensor(x)), torch.tensor(labels))
    np.testing.assert_allclose(found.numpy(), reference_samples(x, labels, metric="cosine"), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_silhouette_of_float32_states_equals_scikit_learn(scale, dtype):
    prompts = table(40, missing=[(3, "sw"), (7, "zh"), (7, "sw")])
    states = (vectors(prompts) * scale).to(dtype)
    index = parallel_index(prompts)
    for labels in (index.queries, index.languages):
        expected = reference_score(states.float().numpy(), labels.numpy(), metric="cosine")
        assert float(silhouette_samples(unit_vectors(states), labels).mean()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("meaning", [0.2, 0.5, 0.9])
def test_silhouettes_without_a_query_are_those_of_the_other_queries(meaning):
    prompts = table(60, missing=[(3, "sw"), (7, "zh"), (7, "sw"), (9, "en")])
    index, unit = parallel_index(prompts), unit_vectors(vectors(prompts, meaning=meaning))
    semantic, language = silhouettes_without_each_query(unit, index)
    left = [index.queries != query for query in range(60)]
    expected = [
        torch.stack([silhouette_samples(unit[keep], torch.unique(labels[keep], return_inverse=True)[1]).mean()
                     for keep in left])
        for labels in (index.queries, index.languages)
    ]  # fmt: skip
    torch.testing.assert_close(semantic, expected[0], atol=1e-9, rtol=0)
    assert np.corrcoef(language, expected[1])[0, 1] > 0.99
    assert float(language.std() / expected[1].std()) == pytest.approx(1, abs=0.03)


def test_two_queries_leave_nothing_to_tell_apart():
    prompts = table(2)
    semantic, language = silhouettes_without_each_query(unit_vectors(vectors(prompts)), parallel_index(prompts))
    assert semantic.tolist() == [0, 0] and torch.isfinite(language).all()


def test_prompts_that_are_all_the_same_within_and_between_clusters_score_zero():
    same = torch.randn(1, 32, generator=torch.Generator().manual_seed(1)).repeat(40, 1) * 3.7
    other = torch.randn(2, 32, generator=torch.Generator().manual_seed(2))
    unit = unit_vectors(torch.cat([same, other]))
    found = silhouette_samples(unit, torch.cat([torch.arange(40) % 4, torch.tensor([4, 4])]))
    assert found[:40].tolist() == [0.0] * 40


@pytest.mark.parametrize(
    ("states", "defined"),
    [
        (torch.ones(5, 8), False),
        (torch.ones(5, 8) * torch.tensor([1.0, 2, 3, 4, 5])[:, None], False),
        (torch.eye(5), True),
        (torch.full((5, 8), torch.nan), False),
    ],
)
def test_a_layer_of_equal_directions_is_undefined(states, defined):
    assert is_defined(unit_vectors(states)) is defined


def test_u_score_is_the_gap_between_translations_and_other_pairs():
    prompts = table(missing=[(2, "zh")])
    unit = unit_vectors(vectors(prompts))
    similarity = (unit @ unit.T).numpy()
    pairs = [(i, j) for i, a in enumerate(prompts) for j, b in enumerate(prompts) if a.language != b.language]
    same = np.mean([similarity[i, j] for i, j in pairs if prompts[i].query_id == prompts[j].query_id])
    other = np.mean([similarity[i, j] for i, j in pairs if prompts[i].query_id != prompts[j].query_id])
    assert u_score(unit, parallel_index(prompts)) == pytest.approx(same - other, abs=1e-9)


def test_retrieval_finds_the_nearest_translation_among_shared_queries():
    prompts = table(missing=[(2, "zh"), (5, "sw")])
    unit = unit_vectors(vectors(prompts, meaning=0.45))
    rows = {(p.language, p.query_id): unit[row] for row, p in enumerate(prompts)}
    hits, total = 0, 0
    for a in LANGUAGES:
        for b in LANGUAGES:
            shared = [str(q) for q in range(12) if a != b and {(a, str(q)), (b, str(q))} <= set(rows)]
            for query in shared:
                nearest = max(shared, key=lambda other: float(rows[a, query] @ rows[b, other]))
                hits, total = hits + (nearest == query), total + 1
    found = retrieval_accuracy(unit, parallel_index(prompts))
    assert 0.2 < found < 1 and found == pytest.approx(hits / total)


@pytest.mark.parametrize("width", [8, 200])
def test_language_identification_equals_a_ridge_classifier(width):
    prompts = table(40)
    unit, index = unit_vectors(vectors(prompts, width=width, meaning=0.8)), parallel_index(prompts)
    correct = 0
    for fold in range(5):
        test = (index.queries % 5 == fold).numpy()
        reference = RidgeClassifier(alpha=1e-2).fit(unit[~test].numpy(), index.languages[~test].numpy())
        correct += (reference.predict(unit[test].numpy()) == index.languages[test].numpy()).sum()
    found = language_id_accuracy(unit, index)
    assert 1 / 3 < found <= 1 and found == pytest.approx(correct / len(prompts), abs=1 / len(prompts))


def test_similarity_to_english_is_taken_over_the_queries_that_both_have():
    prompts = table(missing=[(2, "en"), (3, "sw")])
    unit = unit_vectors(vectors(prompts))
    rows = {(p.language, p.query_id): unit[row] for row, p in enumerate(prompts)}
    shared = [str(q) for q in range(12) if q not in (2, 3)]
    found = similarity_to_language(unit, parallel_index(prompts), "en")
    assert set(found) == {"zh", "sw"}
    assert found["sw"] == pytest.approx(float(np.mean([rows["sw", q] @ rows["en", q] for q in shared])))
    assert similarity_to_language(unit, parallel_index(prompts), "it") == {}
