"""The wheel, installed with its extra `serve` in the environment that LASA_WHEEL names: `make test-wheel` makes it."""

import json
import os
import re
import subprocess
import zipfile
from pathlib import Path

import httpx
import pytest

from lasa.data.prompt_tables import write_prompts
from lasa.data.world import tables

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"trl", "peft", "datasets", "pyarrow", "pandas", "matplotlib", "statsmodels", "selenium", "pytest"}

pytestmark = pytest.mark.skipif("LASA_WHEEL" not in os.environ, reason="no wheel is installed: make test-wheel")


@pytest.fixture(scope="module")
def wheel():
    """The environment's folder."""
    return Path(os.environ["LASA_WHEEL"]).resolve()


def run(wheel, *command, folder):
    """Run a program of the environment, outside the checkout."""
    program = wheel / "bin" / command[0]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([program, *command[1:]], cwd=folder, env=clean, capture_output=True, text=True, check=False)


def test_the_wheel_holds_every_file_of_the_package(wheel):
    [file] = (wheel / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(file).namelist())
    files = (path.relative_to(ROOT / "src") for path in (ROOT / "src" / "lasa").rglob("*") if path.is_file())
    assert {path.as_posix() for path in files if "__pycache__" not in path.parts} - names == set()
    assert "lasa/py.typed" in names
    [points] = [name for name in names if name.endswith("entry_points.txt")]
    declared = zipfile.ZipFile(file).read(points).decode()
    assert "lasa = lasa.cli:main" in declared and "[inspect_ai]\nlasa = lasa.inspect" in declared


def test_serving_brings_nothing_of_the_other_extras(wheel, tmp_path):
    listed = json.loads(run(wheel, "python", "-m", "pip", "list", "--format", "json", folder=tmp_path).stdout)
    installed = {one["name"].lower() for one in listed}
    assert {"lasa", "fastapi", "torch"} <= installed
    assert installed & HEAVY == set()


def test_the_commands_of_another_extra_say_how_to_install_it(wheel, tmp_path):
    asked = ("align", "--preferences", "none.jsonl", "--output", "out")
    for extra, command in (("align", asked), ("report", ("report", "run"))):
        stopped = run(wheel, "lasa", *command, folder=tmp_path)
        assert stopped.returncode == 2
        assert stopped.stderr.count("\n") == 1 and f"pip install 'lasa[{extra}]'" in stopped.stderr


def test_an_interpreter_is_trained_and_the_model_served_behind_it(wheel, tmp_path):
    write_prompts(tmp_path / "train.jsonl", tables.interpreter_prompts(("en", "zh"), 24))
    options = ("--layer", "6", "--train", "train.jsonl", "--epochs", "2", "--seeds", "1", "--output", "made")
    trained = run(wheel, "lasa", "train-interpreter", *options, folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    command = [wheel / "bin" / "lasa", "serve", "--interpreter", "made/interpreter", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as served:
        try:
            address = re.search(r"http://\S+", served.stdout.readline()).group()
            asked = {"model": "embedded", "messages": [{"role": "user", "content": "How do I clean the bicycle?"}]}
            answer = httpx.post(f"{address}v1/chat/completions", json=asked, timeout=60).json()
            assert answer["choices"][0]["message"]["content"]
        finally:
            served.terminate()
