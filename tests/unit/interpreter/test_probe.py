import dataclasses
import json
from dataclasses import replace

import pytest
import torch
from huggingface_hub import HfApi

from conftest import build_model
from interpreters import config
from lasa.errors import ArtifactError, ModelError, RecipeError
from lasa.files.artifacts import model_fingerprint
from lasa.interpreter.probe import (
    InterpreterConfig,
    SafetySemanticInterpreter,
    hidden_width,
    load_interpreter,
    thresholds_for,
)
from lasa.models.positions import ReadPoint
from lasa.models.rendering import template_fingerprint


@pytest.fixture
def fitting(llama, tokenizer):
    """An interpreter that belongs to the tiny llama."""
    point = ReadPoint(2, "last", template_fingerprint(tokenizer))
    facts = InterpreterConfig(
        point, 32, 4, temperature=1.5, threshold=0.6, language_thresholds={"sw": 0.7}, controversial=0.4,
        parameters=201,
        base_model="tiny", base_fingerprint=model_fingerprint(llama), languages=("en", "zh"),
        data={"train": "ab"}, metrics={"seen": {"auroc": 0.9}},
    )  # fmt: skip
    torch.manual_seed(0)
    return SafetySemanticInterpreter(facts).eval()


def rewrite(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestForward:
    @pytest.mark.parametrize("norm", ["input", "hidden"])
    def test_the_probe_is_the_stated_formula(self, norm):
        probe = SafetySemanticInterpreter(config(norm=norm)).eval()
        states = torch.randn(5, 16)
        layer_norm = torch.nn.functional.layer_norm
        x = layer_norm(states, (16,)) if norm == "input" else states
        x = x @ probe.hidden.weight.T + probe.hidden.bias
        x = layer_norm(x, (8,)) if norm == "hidden" else x
        expected = torch.nn.functional.gelu(x) @ probe.out.weight[0] + probe.out.bias
        torch.testing.assert_close(probe(states), expected)

    def test_a_probe_without_hidden_layer_is_linear_in_the_normalised_state(self):
        probe = SafetySemanticInterpreter(config(hidden=0)).eval()
        a, b = (torch.nn.functional.layer_norm(torch.randn(16), (16,)) for _ in range(2))
        middle = probe.out((a + b) / 2)
        torch.testing.assert_close(middle, (probe.out(a) + probe.out(b)) / 2)
        assert probe.num_parameters() == 16 * 3 + 1

    def test_states_in_bfloat16_are_read_in_float32(self):
        probe = SafetySemanticInterpreter(config()).eval()
        assert probe(torch.randn(2, 16).bfloat16()).dtype == torch.float32

    def test_the_temperature_divides_the_logit(self):
        probe = SafetySemanticInterpreter(config(temperature=4.0)).eval()
        states = torch.randn(3, 16)
        torch.testing.assert_close(probe.probability(states), torch.sigmoid(probe(states) / 4))


class TestSize:
    def test_the_hidden_layer_never_takes_the_probe_over_a_five_hundredth_of_the_model(self):
        for base in (300_000, 2_000_000, 8_000_000_000):
            hidden = hidden_width("mlp", 128, base)
            size = SafetySemanticInterpreter(config(hidden, 128)).num_parameters()
            assert size < 0.002 * base
            if hidden < 256:
                assert SafetySemanticInterpreter(config(hidden + 1, 128)).num_parameters() > 0.002 * base
        assert hidden_width("mlp", 4096, 8_000_000_000) == 256

    def test_a_model_too_small_for_a_hidden_layer_asks_for_the_linear_probe(self):
        with pytest.raises(RecipeError, match="linear"):
            hidden_width("mlp", 128, 100_000)
        assert hidden_width("linear", 128, 100_000) == 0


class TestFolder:
    def test_what_is_saved_is_what_is_loaded(self, fitting, tmp_path):
        fitting.save_pretrained(tmp_path / "probe")
        loaded = SafetySemanticInterpreter.from_pretrained(tmp_path / "probe")
        assert loaded.config == fitting.config
        states = torch.randn(4, 32)
        assert torch.equal(loaded.probability(states), fitting.probability(states))
        assert not loaded.training
        assert {p.name for p in (tmp_path / "probe").iterdir()} == {"config.json", "model.safetensors", "README.md"}
        assert "It reads layer 2" in (tmp_path / "probe" / "README.md").read_text()

    def test_saving_again_replaces_card_and_config(self, fitting, tmp_path):
        fitting.save_pretrained(tmp_path)
        fitting.config = replace(fitting.config, threshold=0.9)
        fitting.save_pretrained(tmp_path)
        assert load_interpreter(tmp_path).config.threshold == 0.9
        assert "0.900" in (tmp_path / "README.md").read_text()

    def test_pushing_uploads_exactly_the_saved_files(self, fitting, tmp_path, monkeypatch):
        uploaded = {}

        def upload(self, *, folder_path, **_):
            uploaded.update({p.name: p.read_bytes() for p in folder_path.iterdir()})

        monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Url", (), {"repo_id": repo_id})())
        monkeypatch.setattr(HfApi, "upload_folder", upload)
        fitting.push_to_hub("someone/probe")
        fitting.save_pretrained(tmp_path)
        assert uploaded == {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def test_a_name_that_is_no_folder_and_not_on_the_hub_is_one_clear_error(self):
        with pytest.raises(ArtifactError, match="neither a folder nor"):
            SafetySemanticInterpreter.from_pretrained("someone/no-such-probe", local_files_only=True)
        with pytest.raises(ArtifactError, match="neither a folder nor"):
            SafetySemanticInterpreter.from_pretrained("no/such/folder")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_missing_file_is_named(self, fitting, tmp_path, name):
        fitting.save_pretrained(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(ArtifactError, match=f"{name} is missing"):
            SafetySemanticInterpreter.from_pretrained(tmp_path)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_truncated_file_is_named(self, fitting, tmp_path, name):
        fitting.save_pretrained(tmp_path)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ArtifactError, match=f"{name} is damaged"):
            SafetySemanticInterpreter.from_pretrained(tmp_path)

    def test_altered_weights_are_refused(self, fitting, tmp_path):
        fitting.save_pretrained(tmp_path)
        content = bytearray((tmp_path / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ArtifactError, match="does not match its config"):
            load_interpreter(tmp_path)

    def test_an_altered_threshold_is_refused(self, fitting, tmp_path):
        fitting.save_pretrained(tmp_path)
        rewrite(tmp_path, threshold=0.99)
        with pytest.raises(ArtifactError, match=r"config\.json was altered"):
            load_interpreter(tmp_path)

    def test_another_json_file_is_no_config(self, tmp_path):
        for content in ("[]", '{"model_type": "llama"}'):
            (tmp_path / "config.json").write_text(content)
            with pytest.raises(ArtifactError, match="not the config of an interpreter"):
                load_interpreter(tmp_path)

    def test_another_schema_names_the_version(self, fitting, tmp_path):
        fitting.save_pretrained(tmp_path)
        rewrite(tmp_path, schema=2)
        with pytest.raises(ArtifactError, match="another version"):
            load_interpreter(tmp_path)

    def test_weights_of_another_shape_are_refused(self, fitting, tmp_path, monkeypatch):
        from lasa.interpreter import probe as interpreter

        fitting.save_pretrained(tmp_path)
        monkeypatch.setattr(interpreter, "_config_fingerprint", lambda config: "same")
        rewrite(tmp_path, width=16, fingerprint="same")
        with pytest.raises(ArtifactError, match="do not have the shapes"):
            load_interpreter(tmp_path)


class TestConfig:
    def values(self):
        return json.loads(json.dumps(dataclasses.asdict(config())))

    def test_json_gives_the_config_back(self):
        assert InterpreterConfig.from_json(self.values()) == config()

    def test_an_unknown_field_is_named(self):
        with pytest.raises(ArtifactError, match="unknown field 'treshold'"):
            InterpreterConfig.from_json({**self.values(), "treshold": 0.5})

    def test_a_missing_field_is_named(self):
        values = self.values()
        del values["width"]
        with pytest.raises(ArtifactError, match="'width'"):
            InterpreterConfig.from_json(values)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("threshold", 1.5), ("threshold", float("nan")), ("threshold", "high"), ("temperature", 0.0), ("width", 0),
            ("language_thresholds", {"sw": 2}), ("controversial", -0.1), ("dropout", 1.0), ("norm", "batch"),
            ("read_point", {"layer": 2, "position": "first", "template": "x"}), ("read_point", {"layer": 2}),
        ],
    )  # fmt: skip
    def test_a_value_out_of_bounds_is_named(self, field, value):
        with pytest.raises(ArtifactError, match=field):
            InterpreterConfig.from_json({**self.values(), field: value})

    def test_a_language_without_its_own_threshold_has_the_global_one(self):
        facts = config(threshold=0.5, language_thresholds={"sw": 0.8})
        assert thresholds_for(facts, ["sw", "en"]).tolist() == [0.8, 0.5]


class TestFit:
    def test_its_own_model_fits(self, fitting, llama, tokenizer):
        fitting.check_fits(llama, tokenizer)

    def test_another_base_model_is_refused_unless_forced(self, fitting, tokenizer):
        other = build_model("llama", tokenizer, seed=1)
        with pytest.raises(ArtifactError, match=r"another base model.*'tiny'"):
            fitting.check_fits(other, tokenizer)
        fitting.check_fits(other, tokenizer, fingerprint=False)

    def test_another_width_is_refused(self, fitting, tokenizer):
        wide = build_model("llama", tokenizer, hidden_size=64, head_dim=16)
        with pytest.raises(ArtifactError, match="width 32, but the model's are 64"):
            fitting.check_fits(wide, tokenizer, fingerprint=False)

    def test_a_model_without_that_layer_is_refused(self, fitting, tokenizer):
        with pytest.raises(ModelError, match="Layer 2 does not exist"):
            fitting.check_fits(build_model("llama", tokenizer, layers=1), tokenizer, fingerprint=False)

    def test_another_chat_template_is_refused(self, fitting, llama, tokenizer, monkeypatch):
        monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template + "{# changed #}")
        with pytest.raises(ArtifactError, match="renders chats differently"):
            fitting.check_fits(llama, tokenizer)
