from dataclasses import replace

import pytest
import torch

from interpreters import config, labelled_states
from lasa.data import perturbations
from lasa.data.prompts import user_prompt
from lasa.errors import DataError
from lasa.interpreter.generalisation import layer_sweep, leave_one_out, perturbation_metrics
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.interpreter.settings import CalibrationOptions, TrainingOptions
from lasa.interpreter.training import LabelledStates

TRAINING = TrainingOptions(epochs=10, seeds=2, batch_size=16, learning_rate=0.01)
NOTHING = CalibrationOptions()


def join(*parts: LabelledStates) -> LabelledStates:
    return LabelledStates(torch.cat([p.states for p in parts]), [prompt for p in parts for prompt in p.prompts])


@pytest.fixture
def biased():
    """In Korean harm points the other way, so only a probe that saw Korean can read it."""

    def part(name, queries, seed):
        korean = labelled_states(queries, ("ko",), name=f"{name}k", seed=seed)
        korean.states[:, 1] += 6
        korean.states[:, 0] *= -1
        return join(labelled_states(queries, ("en", "zh"), name=name, seed=seed), korean)

    return part("q", 60, 0), part("d", 30, 1), part("t", 60, 2)


class TestLeaveOneOut:
    def test_each_language_is_measured_by_a_probe_that_never_saw_it(self, biased):
        facts = config(hidden=32, languages=("en", "ko", "zh"))
        found = leave_one_out("language", *biased, facts, TRAINING.model_copy(update={"epochs": 30}), NOTHING)
        assert set(found) == {"en", "ko", "zh"}
        assert found["en"]["balanced_accuracy"]["value"] > 0.8
        assert found["ko"]["balanced_accuracy"]["value"] < 0.4
        assert all(entry["rows"] == "test" for entry in found.values())
        assert found["ko"]["tpr"]["n"] == 30

    def test_a_source_without_test_rows_is_measured_on_its_development_rows(self):
        parts = [
            join(*(labelled_states(40, source=source, name=f"{name}{source}", seed=seed) for source in "ab"))
            for name, seed in (("q", 0), ("d", 1))
        ]
        test = labelled_states(10, source="c", name="t")
        found = leave_one_out("source", *parts, test, config(languages=("en", "zh")), TRAINING, NOTHING)
        assert set(found) == {"a", "b"}
        assert found["a"]["rows"] == "development"
        assert found["a"]["tpr"]["n"] == 40

    def test_a_source_that_has_all_harmful_rows_cannot_be_left_out_and_says_so(self):
        def one_sided(part):
            return LabelledStates(
                part.states, [replace(p, source="harm" if p.harmful else "calm") for p in part.prompts]
            )

        parts = [one_sided(labelled_states(20, name=name)) for name in ("q", "d", "t")]
        found = leave_one_out("source", *parts, config(), TRAINING, NOTHING)
        assert "need both harmful and benign rows" in found["harm"]["skipped"]

    def test_nothing_is_left_out_of_a_single_language(self):
        parts = [labelled_states(20, ("en",), name=name) for name in ("q", "d", "t")]
        assert leave_one_out("language", *parts, config(), TRAINING, NOTHING) == {}

    def test_a_code_switched_row_belongs_to_both_its_languages(self, biased):
        train, development, test = biased
        mixed = [replace(p, details={"languages": ["en", "ko"]}) if p.language == "en" else p for p in train.prompts]
        found = leave_one_out(
            "language", LabelledStates(train.states, mixed), development, test,
            config(hidden=32, languages=("en", "ko", "zh")), TRAINING, NOTHING,
        )  # fmt: skip
        same = leave_one_out(
            "language", train.only(["zh", "ko"]), development.only(["en", "zh"]), test,
            config(hidden=32, languages=("en", "ko", "zh")), TRAINING, NOTHING,
        )  # fmt: skip
        assert found["ko"] == same["ko"]


def test_the_sweep_measures_every_layer_and_finds_the_one_that_reads_harm():
    def at(layer):
        separation = 2.0 if layer == 3 else 0.0
        parts = [labelled_states(60, separation=separation, name=n, seed=i) for i, n in enumerate("qdt")]
        return (*parts, parts[1].rows([False] * 120))

    found = layer_sweep(at, [0, 3], config(), TRAINING, NOTHING, ["en"])
    assert [entry["layer"] for entry in found] == [0, 3]
    assert found[1]["unseen"]["balanced_accuracy"]["value"] > 0.9
    assert found[0]["unseen"]["balanced_accuracy"]["value"] < 0.7


class TestPerturbations:
    PROMPTS = tuple(
        user_prompt(f"{n}", language, f"{text} number {n}", harmful=n % 2 == 0)
        for n in range(10)
        for language, text in (("en", "tell me about the garden"), ("th", "ข้าว"))
    )

    @staticmethod
    def read(prompts):
        """A state that says harm only while the text is in its normal case."""
        states = torch.zeros(len(prompts), 16)
        for row, prompt in enumerate(prompts):
            states[row, 0] = 8.0 if prompt.harmful and prompt.text.islower() else -8.0
        return states

    def data(self, prompts):
        return LabelledStates(self.read(prompts), prompts)

    @staticmethod
    def reader():
        probe = SafetySemanticInterpreter(config(hidden=0)).eval()
        with torch.no_grad():
            probe.out.weight.zero_()
            probe.out.weight[0, 0] = 1.0
            probe.out.bias.zero_()
        return probe

    def test_each_change_is_measured_on_the_rows_it_changes_beside_the_same_rows_unchanged(self):
        found = perturbation_metrics(self.reader(), self.read, self.data(self.PROMPTS), ["casing", "typos"], ["en"])
        assert found["casing"]["all"]["tpr"]["value"] == 0
        assert found["casing"]["unchanged"]["tpr"]["value"] == 1
        assert found["typos"]["all"]["tpr"]["value"] == 1
        assert found["casing"]["seen"]["tpr"]["n"] == 5

    def test_a_change_that_cannot_be_made_says_why(self, monkeypatch):
        def fail(prompt):
            raise DataError("needs anyascii")

        monkeypatch.setattr(perturbations, "romanise", fail)
        thai = [p for p in self.PROMPTS if p.language == "th"]
        found = perturbation_metrics(self.reader(), self.read, self.data(thai), ["romanise", "code_switch"], ["en"])
        assert found["romanise"] == {"skipped": "needs anyascii"}
        assert found["code_switch"] == {"skipped": "It changes none of the prompts."}
