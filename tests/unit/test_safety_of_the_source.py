"""What the source never does: no pickle, no code that a model folder brings along unless asked, no unsafe YAML."""

import ast
from pathlib import Path

import pytest

import lasa

SOURCES = sorted(Path(lasa.__file__).parent.rglob("*.py"))
CODE_RUNNERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {
    "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "numpy.load", "np.load",
    "eval", "exec", "os.system",
}  # fmt: skip


def trees():
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]


def name_of(node):
    """The dotted name of an expression, or ""."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_there_is_source_to_search():
    assert len(SOURCES) > 50


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_unpickles_evaluates_or_loads_unsafe_yaml(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not CODE_RUNNERS & {module.partition(".")[0] for module in modules}, f"{path}:{node.lineno}"
        if isinstance(node, ast.Call):
            assert name_of(node.func) not in UNSAFE_CALLS, f"{path}:{node.lineno}"
            if name_of(node.func) == "torch.load":  # the published checkpoints of the paper's authors
                only = [keyword.value for keyword in node.keywords if keyword.arg == "weights_only"]
                assert [ast.unparse(value) for value in only] == ["True"], f"{path}:{node.lineno}"
            for keyword in node.keywords:
                given = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                assert (keyword.arg, given) != ("trust_remote_code", True), f"{path}:{node.lineno}"
                assert (keyword.arg, given) != ("allow_pickle", True), f"{path}:{node.lineno}"
                assert (keyword.arg, given) != ("shell", True), f"{path}:{node.lineno}"


def test_remote_code_is_off_wherever_it_can_be_asked_for():
    found = 0
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                named = dict(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
                positional = node.args.args[len(node.args.args) - len(node.args.defaults) :]
                named |= dict(zip(positional, node.args.defaults, strict=True))
                for argument, default in named.items():
                    if argument.arg == "trust_remote_code":
                        found += 1
                        off = (
                            default is None
                            or (isinstance(default, ast.Constant) and default.value is False)
                            or (isinstance(default, ast.Call) and ast.unparse(default.args[0]) == "False")
                        )
                        assert off, f"{path}:{node.lineno}"
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "trust_remote_code":
                found += 1
                assert isinstance(node.value, ast.Call) and ast.unparse(node.value.args[0]) == "False", path
    assert found


def test_remote_code_in_a_model_folder_is_not_run(model_folder, tmp_path):
    import json

    from lasa.errors import ModelError
    from lasa.models.loading import load_model

    marker = tmp_path / "ran"
    config = json.loads((model_folder / "config.json").read_text())
    config |= {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.M"},
    }
    (model_folder / "config.json").write_text(json.dumps(config))
    (model_folder / "strange.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass M: pass\n")
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_model(str(model_folder))
    assert not marker.exists()


def test_pickled_weights_are_not_read(model_folder):
    import torch

    from lasa.errors import ModelError
    from lasa.models.loading import load_model

    (model_folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, model_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be loaded: .*safetensors"):
        load_model(str(model_folder))


def test_weights_that_are_missing_are_never_made_up(model_folder):
    from safetensors.torch import load_file, save_file

    from lasa.errors import ModelError
    from lasa.models.loading import load_model

    weights = load_file(model_folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights .*first: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(model_folder))
