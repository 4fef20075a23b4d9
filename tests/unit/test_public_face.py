"""What a researcher uses lies in `lasa` itself, and costs nothing until it is used."""

import subprocess
import sys

import lasa


def test_importing_lasa_loads_neither_torch_nor_transformers():
    code = "import sys, lasa, lasa.cli; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_every_name_leads_to_its_home():
    names = [name for name in lasa.__all__ if not name.startswith("_")]
    assert {"load_model", "read_hidden_states", "find_bottleneck", "train_interpreter", "load_interpreter"} < {*names}
    assert {"Guard", "run_recipe"} < {*names}
    assert all(getattr(lasa, name).__name__ == name for name in names)
    assert lasa.__version__
