import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import silhouette_samples as reference

from lasa.bottleneck import find_bottleneck, silhouette_samples, u_score
from lasa.errors import DataError
from lasa.prompts import user_prompt

LANGUAGES = ("en", "zh", "ko", "sw")


def parallel(queries=30, languages=LANGUAGES):
    return [user_prompt(str(q), code, f"{code} {q}", harmful=q % 2 == 0) for q in range(queries) for code in languages]


def layered(prompts, meaning_by_layer, width=48, seed=0, noise=0.3):
    """States whose layers mix a direction per query (meaning) with one per language."""
    draw = np.random.default_rng(seed)
    queries = {q: draw.normal(size=width) for q in {p.query_id for p in prompts}}
    languages = {code: draw.normal(size=width) for code in {p.language for p in prompts}}
    rows = [
        [
            meaning * queries[p.query_id] + (1 - meaning) * languages[p.language] + noise * draw.normal(size=width)
            for meaning in meaning_by_layer
        ]
        for p in prompts
    ]
    return torch.tensor(np.array(rows), dtype=torch.float32)


@pytest.mark.parametrize("clusters", [2, 7, 40])
def test_silhouette_equals_scikit_learn(clusters):
    draw = np.random.default_rng(clusters)
    x, labels = draw.normal(size=(120, 16)), np.concatenate([np.arange(clusters), draw.integers(clusters, size=120 - clusters)])
    expected = reference(x, labels, metric="cosine")
    found = silhouette_samples(F.normalize(torch.tensor(x), dim=-1), torch.tensor(labels))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_the_planted_layer_is_found_with_certainty():
    prompts = parallel()
    found = find_bottleneck(layered(prompts, [0.1, 0.1, 0.5, 0.9, 0.5, 0.1, 0.0]), range(7), prompts, 6)
    assert found.layer == 3 and found.layer_interval == (3, 3)
    assert "layer 3 of 6" in found.verdict
    assert found.layers[3].argmax_probability == 1.0
    assert found.layers[3].xsim > 0.95 > found.layers[6].xsim
    assert found.layers[6].language_id_accuracy == 1.0
    assert set(found.without_language.values()) == {3} and set(found.controls.values()) == {3}
    low, high = found.layers[3].difference_interval
    assert low < found.layers[3].difference < high


def test_a_flat_curve_has_no_bottleneck():
    prompts = parallel()
    found = find_bottleneck(layered(prompts, [0.5] * 7), range(7), prompts, 6)
    assert found.layer is None and "No interior bottleneck" in found.verdict


def test_a_rising_curve_has_no_interior_bottleneck():
    prompts = parallel()
    found = find_bottleneck(layered(prompts, [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]), range(7), prompts, 6)
    assert found.layer is None and "an end of the stack" in found.verdict


def test_a_layer_where_all_states_are_equal_is_undefined_and_never_chosen():
    prompts = parallel()
    states = layered(prompts, [0.9, 0.1, 0.8, 0.2, 0.1])
    states[:, 0] = 1.0
    states[:, 3] = 2.0
    found = find_bottleneck(states, range(5), prompts, 4)
    assert found.layer == 2
    assert found.layers[0].difference is None and found.layers[3].difference is None
    assert found.layers[3].argmax_probability == 0


def test_missing_translations_are_allowed_and_counted():
    prompts = [p for p in parallel() if not (p.language == "sw" and int(p.query_id) > 9)]
    found = find_bottleneck(layered(prompts, [0.1, 0.1, 0.9, 0.1, 0.1]), range(5), prompts, 4)
    assert found.layer == 2 and found.languages["sw"] == 10 and found.languages["en"] == 30


def test_u_score_is_the_gap_between_translations_and_other_pairs():
    prompts = parallel(6)
    x = F.normalize(layered(prompts, [0.7])[:, 0].double(), dim=-1)
    q, code = [p.query_id for p in prompts], [p.language for p in prompts]
    similarity = (x @ x.T).numpy()
    pairs = [(i, j) for i in range(len(q)) for j in range(len(q)) if code[i] != code[j]]
    same = np.mean([similarity[i, j] for i, j in pairs if q[i] == q[j]])
    other = np.mean([similarity[i, j] for i, j in pairs if q[i] != q[j]])
    queries = torch.tensor([int(v) for v in q])
    languages = torch.tensor([LANGUAGES.index(v) for v in code])
    assert u_score(x, queries, languages) == pytest.approx(same - other, abs=1e-9)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (parallel(30, ("en",)), "all in one language"),
        (parallel(1), "one query only"),
        ([user_prompt(str(i), code, "x") for i, code in enumerate(LANGUAGES)], "No query occurs in two languages"),
    ],
)
def test_prompts_that_are_not_parallel_are_an_error(prompts, message):
    with pytest.raises(DataError, match=message):
        find_bottleneck(torch.randn(len(prompts), 3, 8), range(3), prompts, 2)
