import numpy as np
import pytest
import torch

from conftest import build_model
from lasa.bottleneck.search import find_at_positions, find_bottleneck, search_json
from lasa.data.prompts import user_prompt
from lasa.errors import DataError
from lasa.models.hidden_states import read_to_folder

LANGUAGES = ("en", "zh", "ko", "sw")


def parallel(queries=30, languages=LANGUAGES):
    return [user_prompt(str(q), code, f"{code} {q}", harmful=q % 2 == 0) for q in range(queries) for code in languages]


def layered(prompts, meaning_by_layer, width=48, seed=0, noise=0.3):
    """States whose layers mix a direction per query (meaning) with one per language."""
    draw = np.random.default_rng(seed)
    queries = {q: draw.normal(size=width) for q in dict.fromkeys(p.query_id for p in prompts)}
    languages = {code: draw.normal(size=width) for code in dict.fromkeys(p.language for p in prompts)}
    rows = [
        [
            meaning * queries[p.query_id] + (1 - meaning) * languages[p.language] + noise * draw.normal(size=width)
            for meaning in meaning_by_layer
        ]
        for p in prompts
    ]
    return torch.tensor(np.array(rows), dtype=torch.float32)


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


def test_a_language_that_makes_the_peak_is_named():
    """Swahili alone keeps its language at layer 2; without it layer 2 is the best, with it layer 4."""
    prompts = parallel(60)
    states = layered(prompts, [0.1, 0.1, 0.9, 0.5, 0.8, 0.1, 0.1])
    swahili = torch.tensor([p.language == "sw" for p in prompts])
    states[swahili, 2] = layered(prompts, [0.0], seed=5)[swahili, 0]
    found = find_bottleneck(states, range(7), prompts, 6)
    assert found.argmax_layer == 4
    assert found.without_language["sw"] == 2
    assert {found.without_language[code] for code in ("en", "zh", "ko")} == {4}


def test_harmful_and_harmless_prompts_are_searched_apart():
    prompts = parallel(60)
    states = layered(prompts, [0.1, 0.1, 0.9, 0.5, 0.5, 0.1, 0.1])
    harmless = torch.tensor([not p.harmful for p in prompts])
    states[harmless] = layered(prompts, [0.1, 0.1, 0.5, 0.5, 0.9, 0.1, 0.1])[harmless]
    assert find_bottleneck(states, range(7), prompts, 6).controls == {"harmful": 2, "harmless": 4}


def test_prompts_without_labels_have_no_control():
    prompts = [user_prompt(p.query_id, p.language, p.text) for p in parallel()]
    assert find_bottleneck(layered(prompts, [0.1, 0.1, 0.9, 0.1, 0.1]), range(5), prompts, 4).controls == {}


def test_few_queries_leave_the_layer_uncertain_and_many_settle_it():
    curve = [0.1, 0.2, 0.6, 0.65, 0.6, 0.2, 0.1]
    few, many = (
        find_bottleneck(layered(prompts, curve, noise=1.0), range(7), prompts, 6, resamples=300)
        for prompts in (parallel(8), parallel(200))
    )
    assert few.layer_interval == (2, 3) and many.layer_interval == (3, 3)
    assert sum(view.argmax_probability for view in few.layers) == pytest.approx(1)
    assert few.layers[2].argmax_probability > 0.1 > many.layers[2].argmax_probability


def test_the_embedding_layer_and_the_last_layer_are_never_chosen():
    prompts = parallel()
    found = find_bottleneck(layered(prompts, [0.9, 0.1, 0.5, 0.1, 0.9]), range(5), prompts, 4)
    assert found.argmax_layer == 2


def test_stored_states_give_what_states_in_memory_give(tokenizer, tmp_path):
    prompts = parallel(6)
    model = build_model("llama", tokenizer)
    stored = read_to_folder(model, tokenizer, prompts, range(5), tmp_path / "states")
    assert find_bottleneck(stored, range(5), prompts, 4) == find_bottleneck(stored.all(), range(5), prompts, 4)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (parallel(30, ("en",)), "all in one language"),
        (parallel(1), "one query only"),
        ([user_prompt(str(i), code, "x") for i, code in enumerate(LANGUAGES)], "No query occurs in two languages"),
        ([*parallel(3), *parallel(3)], "Query '0' occurs 2 times in en"),
    ],
)
def test_prompts_that_are_not_parallel_are_an_error(prompts, message):
    with pytest.raises(DataError, match=message):
        find_bottleneck(torch.randn(len(prompts), 3, 8), range(3), prompts, 2)


def other_draws(count, queries):
    """S_sem, S_lang and their difference `[count, 3]` of one layer for other draws of queries, and their intervals."""
    prompts, draw = parallel(queries), np.random.default_rng(0)
    languages = dict(zip(LANGUAGES, draw.normal(size=(4, 32)), strict=True))
    values, intervals = [], []
    for _ in range(count):
        meanings = draw.normal(size=(queries, 32)) * draw.uniform(0.5, 2, size=(queries, 1))
        centres = np.array([0.5 * meanings[int(p.query_id)] + 0.5 * languages[p.language] for p in prompts])
        states = torch.tensor(centres[:, None] + 0.5 * draw.normal(size=(len(prompts), 3, 32)))
        view = find_bottleneck(states, range(3), prompts, 2, resamples=300).layers[1]
        values.append((view.semantic, view.language, view.difference))
        intervals.append((view.semantic_interval, view.language_interval, view.difference_interval))
    return np.array(values), np.array(intervals)


def test_intervals_are_as_wide_as_other_draws_of_queries_differ():
    values, intervals = other_draws(40, 20)
    deviations = (intervals[:, :, 1] - intervals[:, :, 0]).mean(axis=0) / (2 * 1.96)
    assert np.all((deviations / values.std(axis=0, ddof=1) > 0.7) & (deviations / values.std(axis=0, ddof=1) < 1.4))


@pytest.mark.slow
def test_intervals_cover_what_other_draws_of_queries_give_on_average():
    values, intervals = other_draws(400, 40)
    mean = values.mean(axis=0)
    covered = ((intervals[:, :, 0] <= mean) & (mean <= intervals[:, :, 1])).mean(axis=0)
    assert np.all((covered > 0.91) & (covered < 0.98)), covered


def test_positions_that_were_read_together_are_searched_beside_each_other(tokenizer, tmp_path):
    model = build_model("llama", tokenizer)
    prompts = parallel(6, ("en", "sw"))
    layers = range(5)
    stored = read_to_folder(model, tokenizer, prompts, layers, tmp_path / "states", "last", also=["mean_user"])
    found = find_at_positions(stored, layers, prompts, 4, resamples=50)
    alone = read_to_folder(model, tokenizer, prompts, layers, tmp_path / "alone", "mean_user")
    assert list(found) == ["last", "mean_user"]
    assert found["mean_user"] == find_bottleneck(alone, layers, prompts, 4, resamples=50)
    written = search_json(found)
    assert written["position"] == "last" and list(written["also"]) == ["mean_user"]
