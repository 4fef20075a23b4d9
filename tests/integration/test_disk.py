"""A disk that is full or cannot be written to ends a run in one message, and the run can go on."""

import os
import resource
import subprocess
from contextlib import contextmanager

import pytest

from lasa.cli import main
from lasa.files.artifacts import read_json
from lasa.run.recipe import check_recipe, recipe_text
from miniature import write_model, write_recipe

STAGES = ("locate", "interpret", "align", "evaluate", "collect_metrics", "write_report")
SYSTEMS = {"lasa": {"method": "kto", "signal": "interpreter", "guarded": True}}


@pytest.fixture
def recipe(tmp_path, tokenizer):
    write_model(tmp_path / "model", tokenizer)
    text = recipe_text(check_recipe(write_recipe(tmp_path, SYSTEMS), "test"))
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


@pytest.fixture
def lasa_run(recipe, monkeypatch, capsys):
    """Call `lasa run`; gives the exit code and what was said on standard error."""

    def call(output):
        monkeypatch.setattr("sys.argv", ["lasa", "run", str(recipe), "--output", str(output)])
        try:
            main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code or 0
        return code, capsys.readouterr().err

    return call


@contextmanager
def full_disk():
    """No file can grow beyond this many bytes; what is left of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_in_any_stage_is_one_message_and_the_run_goes_on(lasa_run, tmp_path, monkeypatch):
    import lasa.pipeline

    finished = 0
    for stage in STAGES:
        whole = getattr(lasa.pipeline, stage)

        def with_a_full_disk(*arguments, whole=whole):
            with full_disk():
                return whole(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(lasa.pipeline, stage, with_a_full_disk)
            code, said = lasa_run(tmp_path / "run")
        if stage == "collect_metrics":
            continue  # it writes nothing itself
        message = said[said.rindex("Error: ") :]
        assert code == 2, stage
        assert "File too large" in message or "cannot be written" in message, stage
        assert "Traceback" not in said and "call the same command again" in message, stage
        now = len(read_json(tmp_path / "run" / "stages.json")["stages"])
        assert now >= finished, stage
        finished = now
    code, said = lasa_run(tmp_path / "run")
    assert code == 0, said
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.fixture
def read_only(tmp_path):
    """A folder that nobody can write to, not even root."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("root can write anywhere here, and may not mount a read-only file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_cannot_be_written_to_is_one_message(lasa_run, read_only, recipe):
    for output in (read_only / "run", recipe / "run"):
        code, said = lasa_run(output)
        assert code == 2
        assert said.count("\n") == 1 and said.startswith("Error: ") and str(output) in said


def test_a_run_that_became_read_only_is_one_message(lasa_run, tmp_path, recipe):
    if os.geteuid() == 0:
        pytest.skip("root can write to a read-only folder")
    assert lasa_run(tmp_path / "run")[0] == 0
    (tmp_path / "run").chmod(0o555)
    code, said = lasa_run(tmp_path / "run")
    (tmp_path / "run").chmod(0o755)
    assert code == 2 and said.startswith("Error: ")
