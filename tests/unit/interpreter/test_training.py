import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from interpreters import WIDTH, config, labelled_states
from lasa.data.prompts import user_prompt
from lasa.errors import DataError, RecipeError
from lasa.interpreter.probe import load_interpreter
from lasa.interpreter.settings import TrainingOptions
from lasa.interpreter.training import LabelledStates, cell_weights, development_loss, split_by_query, train_probe

OPTIONS = TrainingOptions(epochs=15, seeds=2, batch_size=16, learning_rate=0.01)


@pytest.fixture(scope="module")
def parts():
    return labelled_states(80, separation=0.7), labelled_states(30, name="d", separation=0.7, seed=1)


def test_a_probe_learns_what_separates_the_labels(parts):
    trained = train_probe(*parts, config(), OPTIONS)
    test = labelled_states(200, name="t", separation=0.7, seed=2)
    right = (trained.interpreter(test.states) > 0) == (test.labels > 0.5)
    assert right.float().mean() > 0.65  # 0.76 is the best possible
    assert all(area > 0.7 for area in trained.development_auroc)


def test_the_best_epochs_weights_are_the_ones_that_are_restored(parts):
    train, development = parts
    options = OPTIONS.model_copy(update={"epochs": 40, "patience": 40, "seeds": 1})  # long enough to fit the noise
    trained = train_probe(train, development, config(hidden=64), options)
    history = trained.histories[0]
    assert history[-1] > min(history)
    assert development_loss(trained.interpreter, development) == pytest.approx(min(history), abs=1e-6)


def test_training_stops_when_the_development_loss_has_not_improved_for_the_stated_epochs(parts):
    trained = train_probe(*parts, config(hidden=64), OPTIONS.model_copy(update={"epochs": 200, "patience": 3}))
    for history in trained.histories:
        assert len(history) < 200
        assert history.index(min(history)) == len(history) - 4


def test_the_seed_with_the_lowest_development_loss_is_kept(parts):
    trained = train_probe(*parts, config(), OPTIONS.model_copy(update={"seeds": 4}))
    best = [min(history) for history in trained.histories]
    assert development_loss(trained.interpreter, parts[1]) == pytest.approx(min(best), abs=1e-6)
    assert len(set(best)) == 4


def test_seeds_give_the_same_weights_again_whatever_the_global_generator_did(parts):
    first = train_probe(*parts, config(), OPTIONS)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second = train_probe(*parts, config(), OPTIONS)
    assert first.histories == second.histories
    for a, b in zip(first.interpreter.parameters(), second.interpreter.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)
    assert train_probe(*parts, config(), OPTIONS, seed=7).histories != first.histories


def test_the_spread_between_seeds_is_reported(parts):
    trained = train_probe(*parts, config(), OPTIONS)
    found = trained.to_json()
    assert found["loss_sd"] == pytest.approx(abs(found["losses"][0] - found["losses"][1]) / 2)
    assert found["best_epochs"] == [history.index(min(history)) + 1 for history in trained.histories]
    assert len(found["auroc"]) == 2 and found["auroc_sd"] >= 0


def test_input_noise_changes_the_training_only(parts):
    noisy = train_probe(*parts, config(), OPTIONS.model_copy(update={"noise": 1.0})).interpreter
    assert torch.equal(noisy(parts[0].states), noisy(parts[0].states))
    plain = train_probe(*parts, config(), OPTIONS).interpreter
    assert not torch.equal(noisy(parts[0].states), plain(parts[0].states))


def test_every_language_and_source_of_a_label_weighs_the_same_and_so_do_the_labels():
    counts = {("en", "a", True): 40, ("sw", "a", True): 10, ("en", "b", True): 5, ("en", "a", False): 25}
    prompts = [
        user_prompt(f"{cell}{n}", cell[0], "x", source=cell[1], harmful=cell[2])
        for cell, count in counts.items()
        for n in range(count)
    ]
    weights = cell_weights(prompts)
    cells = {
        cell: float(sum(w for w, p in zip(weights, prompts, strict=True) if (p.language, p.source, p.harmful) == cell))
        for cell in counts
    }
    assert cells["en", "a", True] == pytest.approx(80 / 6, rel=1e-4)
    assert cells["sw", "a", True] == pytest.approx(80 / 6, rel=1e-4)
    assert cells["en", "b", True] == pytest.approx(80 / 6, rel=1e-4)
    assert cells["en", "a", False] == pytest.approx(40, rel=1e-4)


def test_weights_keep_a_rare_language_from_being_ignored():
    """In Swahili harm points the other way along one axis; 500 English rows must not drown 20 Swahili ones."""
    english, swahili = labelled_states(500, ("en",)), labelled_states(20, ("sw",), name="s")
    swahili.states[:, 1] += 4
    swahili.states[:, 0] *= -1
    train = LabelledStates(torch.cat([english.states, swahili.states]), [*english.prompts, *swahili.prompts])
    fresh = labelled_states(200, ("sw",), name="t", seed=5)
    fresh.states[:, 1] += 4
    fresh.states[:, 0] *= -1
    development = labelled_states(20, ("en",), name="d", seed=3)
    options = OPTIONS.model_copy(update={"epochs": 30, "patience": 30, "seeds": 1, "batch_size": 64})
    trained = train_probe(train, development, config(hidden=32), options).interpreter
    assert (((trained(fresh.states) > 0) == (fresh.labels > 0.5)).float().mean()) > 0.6


class TestSplits:
    def test_a_query_in_both_splits_is_refused(self, parts):
        train, development = parts
        with pytest.raises(DataError, match="80 queries are in both"):
            train_probe(train, train, config(), OPTIONS)
        with pytest.raises(DataError, match=r"1 queries are in both.*'q0'"):
            shared = replace(development.prompts[0], query_id="q0", language="sw")
            mixed = LabelledStates(development.states, [shared, *development.prompts[1:]])
            train_probe(train, mixed, config(), OPTIONS)

    def test_equal_ids_in_two_sources_are_two_queries(self, parts):
        """Rows of a file without ids are numbered, and a training and a development file both begin with 0."""
        train = parts[0]
        other = LabelledStates(train.states, [replace(p, source="development.csv") for p in train.prompts])
        train_probe(train, other, config(), OPTIONS.model_copy(update={"epochs": 1, "seeds": 1}))

    @pytest.mark.parametrize("label", [True, None])
    def test_splits_need_both_labels_on_every_row(self, parts, label):
        train, development = parts
        one_sided = LabelledStates(development.states, [replace(p, harmful=label) for p in development.prompts])
        with pytest.raises(DataError, match="development prompts"):
            train_probe(train, one_sided, config(), OPTIONS)

    def test_translations_of_a_query_stay_together(self):
        prompts = labelled_states(50, ("en", "zh", "ko")).prompts
        train, development = split_by_query(prompts, 0.2, seed=0)
        assert [a != b for a, b in zip(train, development, strict=True)] == [True] * 150
        assert sum(development) == 30
        held = {p.query_id for p, h in zip(prompts, development, strict=True) if h}
        assert not held & {p.query_id for p, t in zip(prompts, train, strict=True) if t}
        assert split_by_query(prompts, 0.2, seed=1) != (train, development)

    def test_the_same_text_under_two_query_ids_stays_together(self):
        prompts = [user_prompt(f"{source}{n}", "en", f"Say {n}!", source=source) for n in range(20) for source in "ab"]
        prompts.append(user_prompt("b0", "sw", "sema sifuri"))
        _, development = split_by_query(prompts, 0.5, seed=0)
        sides = {}
        for prompt, held in zip(prompts, development, strict=True):
            sides.setdefault(prompt.query_id[1:], set()).add(held)
        assert all(len(side) == 1 for side in sides.values())
        assert {True, False} == {held for side in sides.values() for held in side}

    def test_a_share_that_leaves_a_side_empty_is_refused(self):
        with pytest.raises(RecipeError, match="leaves one side empty"):
            split_by_query(labelled_states(3).prompts, 0.1, seed=0)


def test_states_that_are_not_finite_end_the_training_with_a_reason(parts):
    train, development = parts
    broken = LabelledStates(train.states.clone(), train.prompts)
    broken.states[0, 0] = float("nan")
    with pytest.raises(DataError, match="loss is nan after epoch 1"):
        train_probe(broken, development, config(), OPTIONS)


def test_a_few_thousand_rows_take_seconds():
    languages = ("en", "zh", "ko")
    train = labelled_states(1500, languages, width=128)
    development = labelled_states(400, languages, width=128, name="d")
    started = time.process_time()
    train_probe(train, development, config(36, 128), TrainingOptions(epochs=20, seeds=3, patience=20))
    assert time.process_time() - started < 10


class TestLogistic:
    FACTS = config(hidden=0, norm="none", languages=("en", "zh"))

    def test_it_is_scikit_learns_on_standardised_states(self):
        data = labelled_states(60, ("en", "zh"))
        data.states[:, 3] = 100 + 30 * data.states[:, 3]
        options = TrainingOptions(strengths=[0.1])
        trained = train_probe(data, labelled_states(20, ("en", "zh"), name="d", seed=2), self.FACTS, options)
        scaled = StandardScaler().fit(data.states.numpy())
        model = LogisticRegression(C=0.1).fit(scaled.transform(data.states.numpy()), data.labels.numpy())
        expected = model.decision_function(scaled.transform(data.states.numpy()))
        np.testing.assert_allclose(trained.interpreter(data.states).detach().numpy(), expected, atol=2e-3)

    def test_its_strength_is_the_one_that_transfers_best_to_languages_left_out(self):
        train = labelled_states(150, ("en", "zh"), name="t", separation=0.6, seed=1)
        development = labelled_states(150, ("en", "zh"), name="d", separation=0.6, seed=2)
        for data in (train, development):  # each language has an axis of its own that gives the label away
            for axis, code in ((1, "en"), (2, "zh")):
                mine = torch.tensor([p.language == code for p in data.prompts])
                data.states[mine, axis] = 3 * (2 * data.labels[mine] - 1) + 0.1 * data.states[mine, axis]
        loose, tight = (
            train_probe(train, development, self.FACTS, TrainingOptions(strengths=one)).interpreter
            for one in ([1e3], [1e-4])
        )
        chosen = train_probe(train, development, self.FACTS, TrainingOptions(strengths=[1e3, 1e-4])).interpreter
        assert not torch.allclose(loose.out.weight, tight.out.weight)
        assert torch.allclose(chosen.out.weight, tight.out.weight)

    def test_it_is_saved_and_loaded(self, tmp_path):
        parts = (labelled_states(40, ("en", "zh"), name=name, seed=s) for s, name in enumerate("td"))
        interpreter = train_probe(*parts, self.FACTS, TrainingOptions()).interpreter
        interpreter.save_pretrained(tmp_path)
        states = torch.randn(5, WIDTH)
        assert torch.equal(load_interpreter(tmp_path)(states), interpreter(states))
