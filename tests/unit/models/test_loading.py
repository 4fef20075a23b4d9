"""How a model folder is loaded."""

import pytest
import torch
from transformers import PreTrainedModel

from conftest import build_model
from lasa.models.loading import load_model


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float32),
        ("auto", torch.float32),
        ("cuda", torch.bfloat16),
        ("cuda:1", torch.bfloat16),
        ("mps", torch.bfloat16),
    ],
)
def test_weights_are_float32_on_a_cpu_and_as_stored_elsewhere(device, dtype, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(PreTrainedModel, "to", lambda model, place: model)  # there is no such device here
    build_model("llama", tokenizer, layers=1).bfloat16().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), device=device)[0].dtype == dtype
    assert load_model(str(tmp_path), device=device, dtype="float16")[0].dtype == torch.float16
