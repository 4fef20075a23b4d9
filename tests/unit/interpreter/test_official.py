import json

import pytest
import torch
from torch import nn

from lasa.errors import ArtifactError
from lasa.interpreter.official import import_official
from lasa.interpreter.probe import load_interpreter

POINT = {"layer": 14, "position": "last", "template": "ab"}


def official(hidden=6, width=16):
    """The authors' architecture."""
    torch.manual_seed(0)
    layers = (nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, 1))
    model = nn.Module()
    model.mlp = nn.Sequential(*layers)
    nn.init.normal_(model.mlp[1].weight)
    return model.eval()


def save(folder, state, threshold=0.7):
    torch.save({"model_state_dict": state, "layer_idx": 14}, folder / "checkpoint.pt")
    (folder / "config.json").write_text(json.dumps({"layer_idx": 14, "threshold": threshold, "hidden_dim": 6}))
    return folder


@pytest.mark.parametrize("hidden", [6, 16])  # 16: as wide as the input, as their class has it by default
def test_an_imported_probe_gives_the_same_logits_and_decisions(tmp_path, hidden):
    theirs = official(hidden)
    ours = import_official(save(tmp_path, theirs.state_dict()), **POINT)
    states = torch.randn(50, 16)
    torch.testing.assert_close(ours(states), theirs.mlp(states)[:, 0])
    assert ours.config.read_point.layer == 14
    assert ours.config.parameters == sum(p.numel() for p in theirs.parameters())
    assert ours.config.threshold > 0.7  # they flag what lies above, we what lies at it
    assert ours.config.threshold == pytest.approx(0.7)


def test_an_imported_probe_is_saved_and_loaded_as_ours(tmp_path):
    ours = import_official(save(tmp_path, official().state_dict()), **POINT)
    ours.save_pretrained(tmp_path / "ours")
    states = torch.randn(3, 16)
    assert torch.equal(load_interpreter(tmp_path / "ours")(states), ours(states))


def test_a_deeper_stack_is_refused(tmp_path):
    deep = nn.Module()
    deep.mlp = nn.Sequential(
        nn.Linear(16, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(), nn.Linear(8, 4), nn.Linear(4, 1)
    )
    with pytest.raises(ArtifactError, match=r"expected one hidden layer.*found .*mlp\.5"):
        import_official(save(tmp_path, deep.state_dict()), **POINT)


def test_a_stack_without_layer_norm_is_refused(tmp_path):
    state = {k: v for k, v in official().state_dict().items() if not k.startswith("mlp.1")}
    with pytest.raises(ArtifactError, match="expected one hidden layer"):
        import_official(save(tmp_path, state), **POINT)


@pytest.mark.parametrize("name", ["mlp.0.bias", "mlp.1.weight", "mlp.4.weight"])
def test_shapes_that_do_not_fit_are_named(tmp_path, name):
    state = {**official().state_dict(), name: torch.zeros(5, 5)}
    with pytest.raises(ArtifactError, match=name):
        import_official(save(tmp_path, state), **POINT)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    save(tmp_path, official().state_dict())
    torch.save({"model_state_dict": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ArtifactError, match="cannot be read as plain weights"):
        import_official(tmp_path, **POINT)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"checkpoint\.pt is missing"):
        import_official(tmp_path, **POINT)
    save(tmp_path, official().state_dict())
    (tmp_path / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"config\.json is missing"):
        import_official(tmp_path, **POINT)


@pytest.mark.parametrize("threshold", [None, "0.5", 1.5, -0.1])
def test_a_threshold_that_is_none_is_refused(tmp_path, threshold):
    with pytest.raises(ArtifactError, match="threshold"):
        import_official(save(tmp_path, official().state_dict(), threshold), **POINT)
