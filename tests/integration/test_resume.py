"""A run that is stopped goes on and ends as if it had never been stopped; more moments in tests/slow/test_kill.py."""

import os
import random
import re
import shutil
from pathlib import Path

import pytest

from lasa.cli import main
from lasa.data.prompt_tables import read_prompts, write_prompts
from lasa.data.world import tables
from lasa.errors import ArtifactError, DataError, RecipeError
from lasa.evaluation.samples import read_samples
from lasa.files.artifacts import read_json
from lasa.models.loading import load_model
from lasa.pipeline import run_recipe
from lasa.report.run_folder import read_run
from lasa.run.recipe import check_recipe, recipe_text
from miniature import LANGUAGES, write_model, write_recipe

SYSTEMS = {"base": {}, "lasa": {"method": "kto", "signal": "interpreter", "guarded": True}}


@pytest.fixture(scope="module")
def recipe(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniature")
    write_model(folder / "model", tokenizer)
    plain = write_recipe(folder, SYSTEMS, batch_size=8)
    write_prompts(folder / "development.jsonl", tables.evaluation_prompts("combinations", 2, LANGUAGES, share="dev"))
    plain["alignment"]["development"] = [str(folder / "development.jsonl")]
    return check_recipe(plain, "test")


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A finished run `run`, and in `killed-*` what a kill before each of its file renames would have left behind."""
    folder = tmp_path_factory.mktemp("whole")

    def with_snapshot(rename):
        def renamed(source, target):
            if Path(source).is_relative_to(folder / "run"):
                shutil.copytree(folder / "run", folder / f"killed-{len(list(folder.iterdir())):03d}")
            return rename(source, target)

        return renamed

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename"):
            patch.setattr(os, name, with_snapshot(getattr(os, name)))
        run_recipe(recipe, folder / "run")
    return folder


def metrics(run):
    return {name: value for name, value in read_json(run / "metrics.json").items() if name not in ("seconds", "costs")}


def test_a_killed_run_goes_on_and_gives_the_same_metrics(whole, recipe, tmp_path):
    states = sorted(whole.glob("killed-*"))
    assert len(states) > 30
    draw = random.Random(0)
    third = len(states) // 3
    for number in (draw.randrange(third), draw.randrange(third, 2 * third), draw.randrange(2 * third, len(states))):
        run = tmp_path / states[number].name
        shutil.copytree(states[number], run)
        run_recipe(recipe, run)
        assert metrics(run) == metrics(whole / "run"), states[number]
        for samples in (whole / "run" / "samples").iterdir():
            assert (run / "samples" / samples.name).read_bytes() == samples.read_bytes()


def test_a_second_judge_that_comes_later_judges_the_answers_that_are_there(whole, recipe, tmp_path, monkeypatch):
    shutil.copytree(whole / "run", run := tmp_path / "run")
    before = metrics(run)
    plain = recipe.model_dump(mode="json")
    plain["evaluation"]["second_judge"] = "refusal-patterns"
    monkeypatch.setattr("lasa.pipeline.LocalModel.__call__", stop_here)
    report = run_recipe(check_recipe(plain, "test"), run)
    after = metrics(run)
    for name, entry in after["systems"].items():
        twice, second = entry.pop("agreement"), entry.pop("second")
        assert twice["judges"] == ["embedded-world", "refusal-patterns"] and twice["answers"] == 36
        assert second["languages"].keys() == entry["languages"].keys()
        seconds = [
            sample.extra["second"]["outcome"]
            for sample in read_samples(run / "samples" / f"{name}.jsonl")
            if sample.split == after["headline"] and sample.prompt.harmful and sample.prompt.language == "sw"
        ]
        outcomes = second["languages"]["sw"]["outcomes"]
        assert {what: seconds.count(what) for what in outcomes} == outcomes and len(seconds) == 3
    assert after == before
    assert "Systems, by the second judge" in report.read_text("utf-8")


def test_a_judge_that_is_not_there_is_missed_before_anything_is_read(recipe, tmp_path, monkeypatch):
    plain = recipe.model_dump(mode="json")
    plain["evaluation"]["second_judge"] = f"interpreter:{tmp_path / 'nowhere'}@model"
    monkeypatch.setattr("lasa.pipeline.read_base", stop_here)
    with pytest.raises(RecipeError, match=r"The interpreter of the judge interpreter, .*nowhere, does not exist"):
        run_recipe(check_recipe(plain, "test"), tmp_path / "run")


def test_answers_cut_short_in_the_middle_of_a_batch_are_written_again_as_a_batch(whole, recipe, tmp_path):
    shutil.copytree(whole / "run", tmp_path / "run")
    samples = tmp_path / "run" / "samples" / "lasa.jsonl"
    complete = samples.read_bytes()
    samples.unlink()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lasa.pipeline.evaluate", stop_here)
        run_recipe(recipe, tmp_path / "run")
    samples.write_bytes(b"".join(complete.splitlines(keepends=True)[:13]) + b'{"split": "comb')
    run_recipe(recipe, tmp_path / "run")
    assert samples.read_bytes() == complete
    assert metrics(tmp_path / "run") == metrics(whole / "run")


def stop_here(*_):
    raise KeyboardInterrupt


def test_every_file_of_a_run_that_is_read_again_is_covered_by_a_hash(whole):
    run = whole / "run"
    recorded = {file for stage in read_json(run / "stages.json")["stages"].values() for file in stage["files"]}
    sealed = {"stages.json", "hidden_states/manifest.json", "interpreter_states/manifest.json"}
    for manifest in ("hidden_states", "interpreter_states"):
        recorded |= {f"{manifest}/{shard['file']}" for shard in read_json(run / manifest / "manifest.json")["shards"]}
    recorded |= {f"systems/lasa/{file}" for file in read_json(run / "systems/lasa/files.json")["files"]}
    others = {"recipe.yaml", "interpreter/model.safetensors"}  # their hashes are in stages.json and config.json
    for_people = {"provenance.json", "report.html", "interpreter/README.md", "systems/lasa/README.md"}
    locks = {".lock", ".stages.json.lock"}
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    files -= {file for file in files if file.startswith("figures/")}
    assert files - recorded - sealed - others - for_people - locks == set()


DAMAGE = {
    "a shard of hidden states": "interpreter_states/states-00000.safetensors",
    "the manifest of the shards": "interpreter_states/manifest.json",
    "the bottleneck": "bottleneck.json",
    "the interpreter's weights": "interpreter/model.safetensors",
    "the interpreter's config": "interpreter/config.json",
    "the interpreter's figures": "interpreter.json",
    "a trained model": "systems/lasa/model.safetensors",
    "the drift": "systems/lasa/drift.json",
    "the perplexity": "systems/lasa/perplexity.json",
    "samples": "samples/base.jsonl",
    "the record": "stages.json",
    "the recipe": "recipe.yaml",
}


@pytest.mark.parametrize("truncated", [False, True], ids=["flipped", "truncated"])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named_with_what_to_do(name, truncated, whole, recipe, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole / "run", run)
    file = DAMAGE[name]
    content = bytearray((run / file).read_bytes())
    content[len(content) // 2] ^= 1
    (run / file).write_bytes(content[: len(content) // 3] if truncated else content)
    if "shard" in name:
        (run / "interpreter.json").unlink()  # so that the stage that reads them is done again
    if name == "a trained model":
        (run / "samples" / "lasa.jsonl").unlink()
    with pytest.raises(ArtifactError) as caught:
        run_recipe(recipe, run)
    message = str(caught.value)
    assert str(run / file) in message
    assert re.search("[Rr]estore|[Rr]emove", message)


def test_what_lies_in_a_run_is_verified_by_every_reader(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole / "run", run)
    for file, read in {
        "samples/base.jsonl": read_samples,
        "metrics.json": lambda _: read_run(run),
        "recipe.yaml": lambda _: read_run(run),
        "systems/lasa/model.safetensors": lambda path: load_model(str(path.parent)),
    }.items():
        content = bytearray((run / file).read_bytes())
        content[-20] ^= 1
        (run / file).write_bytes(content)
        with pytest.raises(ArtifactError, match=Path(file).name):
            read(run / file)
        content[-20] ^= 1
        (run / file).write_bytes(content)


def test_a_benchmark_that_changed_between_two_systems_is_named(whole, recipe, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole / "run", run)
    (run / "samples" / "lasa.jsonl").unlink()
    benchmark = Path(recipe.evaluation.benchmarks["templates"])
    before = benchmark.read_bytes()
    benchmark.write_bytes(before.replace(b"\n", b"\n\n", 1))
    try:
        with pytest.raises(ArtifactError, match=rf"{benchmark.name} was changed.*Restore it"):
            run_recipe(recipe, run)
    finally:
        benchmark.write_bytes(before)
    run_recipe(recipe, run)
    assert metrics(run) == metrics(whole / "run")


def test_development_prompts_without_a_benign_one_are_refused_before_anything_is_trained(whole, recipe, tmp_path):
    harmful = [prompt for prompt in read_prompts(Path(recipe.alignment.development[0])) if prompt.harmful]
    write_prompts(tmp_path / "harmful.jsonl", harmful)
    section = recipe.alignment.model_copy(update={"development": [str(tmp_path / "harmful.jsonl")]})
    with pytest.raises(DataError, match=r"alignment\.development holds no benign prompt"):
        run_recipe(recipe.model_copy(update={"alignment": section}), tmp_path / "run")
    assert not (tmp_path / "run" / "systems" / "lasa").exists()


def test_a_shard_of_another_run_is_refused(whole, recipe, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole / "run", run)
    shutil.copy(run / "hidden_states/states-00000.safetensors", run / "interpreter_states/states-00000.safetensors")
    (run / "interpreter.json").unlink()
    with pytest.raises(ArtifactError, match=r"states-00000\.safetensors is damaged, or not the file.*remove"):
        run_recipe(recipe, run)


def test_what_the_message_says_to_remove_is_made_again(whole, recipe, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole / "run", run)
    shutil.rmtree(run / "systems" / "lasa")
    run_recipe(recipe, run)
    assert metrics(run) == metrics(whole / "run")


def test_ctrl_c_is_one_message_and_a_run_that_goes_on(whole, recipe, tmp_path, monkeypatch, capsys):
    (tmp_path / "recipe.yaml").write_text(recipe_text(recipe))
    monkeypatch.setattr("sys.argv", ["lasa", "run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr("lasa.pipeline.interpret", stop_here)
        main()
    assert stopped.value.code == 130
    assert "Stopped. What was finished is kept; call the same command again" in capsys.readouterr().err
    run_recipe(recipe, tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(whole / "run")
