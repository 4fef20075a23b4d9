"""`lasa merge`: a plain model from an adapter and its base."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

from lasa.cli import app
from lasa.errors import ModelError
from lasa.files.artifacts import check_folder, read_json
from lasa.models.loading import load_model


@pytest.fixture
def adapter(model_folder, tokenizer, tmp_path):
    """An adapter that does something, with what lies beside it."""
    base, _ = load_model(str(model_folder))
    torch.manual_seed(0)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path / "adapter"
    adapted.peft_config["default"].base_model_name_or_path = str(model_folder)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "lasa.json").write_text('{"condition": "Say no."}')
    (folder / "interpreter").mkdir()
    (folder / "interpreter" / "config.json").write_text("{}")
    return folder


def merge(adapter, output):
    return CliRunner().invoke(app, ["merge", str(adapter), "--output", str(output)])


def logits(folder):
    model, tokenizer = load_model(str(folder))
    with torch.inference_mode():
        return model(**tokenizer("how do I water the plant", return_tensors="pt")).logits


def test_a_merged_model_says_what_base_and_adapter_say_and_needs_neither(adapter, model_folder, tmp_path):
    expected, before = logits(adapter), logits(model_folder)
    done = merge(adapter, tmp_path / "merged")
    assert done.exit_code == 0, done.exception
    for path in model_folder.iterdir():
        path.unlink()
    assert torch.allclose(logits(tmp_path / "merged"), expected, atol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-2)
    assert read_json(tmp_path / "merged" / "lasa.json")["condition"] == "Say no."
    assert (tmp_path / "merged" / "interpreter" / "config.json").is_file()
    check_folder(tmp_path / "merged")


def test_an_adapter_that_acts_behind_the_condition_is_not_merged(adapter, tmp_path):
    config = read_json(adapter / "adapter_config.json")
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "alora_invocation_tokens": [5, 6]}))
    error = merge(adapter, tmp_path / "merged").exception
    assert isinstance(error, ModelError) and "merged, it would act everywhere" in str(error)
    assert not (tmp_path / "merged").exists()


def test_a_whole_model_and_a_folder_that_is_there_are_refused(adapter, model_folder, tmp_path):
    assert "nothing to merge" in str(merge(model_folder, tmp_path / "merged").exception)
    assert "exists already" in str(merge(adapter, model_folder).exception)
