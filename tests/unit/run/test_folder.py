"""A run folder belongs to one recipe and one process, and what it recorded is what is read."""

import time
from datetime import UTC, date, datetime

import pytest
from filelock import FileLock

from lasa.data.sources import source_hash
from lasa.errors import ArtifactError
from lasa.files.artifacts import read_json, write_json
from lasa.files.record import check_recorded
from lasa.run import folder
from lasa.run.folder import RunFolder, open_run, settled
from lasa.run.recipe import check_recipe

RECIPE = {
    "model": {"path": "embedded"},
    "seen_languages": ["en"],
    "layer_search": {"prompts": ["p.csv"]},
    "interpreter": {"train": ["t.csv"]},
    "alignment": {"preferences": "a.jsonl"},
    "systems": {"base": {}},
    "evaluation": {"benchmarks": {"b": "b.csv"}},
}
STAGES = ["bottleneck", "align lasa", "evaluate base", "evaluate lasa"]


def recipe(**changes):
    return check_recipe({**RECIPE, **changes}, "test")


def write_stages(path) -> RunFolder:
    """A run of four stages that write a file each."""
    run = RunFolder(path, recipe())
    with run.locked():
        for stage in STAGES:
            with run.stage(stage, f"{stage}.json"):
                write_json(path / f"{stage}.json", {"stage": stage})
    return run


def test_finished_stages_are_remembered_by_the_next_process(tmp_path):
    write_stages(tmp_path / "run")
    run = RunFolder(tmp_path / "run", recipe())
    with run.locked():
        assert [run.finished(stage) for stage in (*STAGES, "report")] == [True] * 4 + [False]
        assert list(run.costs) == STAGES


def test_a_stage_that_fails_is_not_finished(tmp_path):
    run = RunFolder(tmp_path, recipe())
    with run.locked():
        with pytest.raises(ValueError, match="broken"), run.stage("bottleneck"):
            raise ValueError("broken")
        assert not run.finished("bottleneck")


def test_a_stage_that_is_done_again_is_unfinished_meanwhile(tmp_path):
    run = write_stages(tmp_path)
    with run.locked():
        with run.stage("evaluate base"):
            assert not run.finished("evaluate base")
        assert run.finished("evaluate base")


@pytest.mark.parametrize("damage", [lambda b: b[:-1] + b"!", lambda b: b[: len(b) // 2], lambda b: b""])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, damage):
    run = write_stages(tmp_path)
    file = tmp_path / "align lasa.json"
    file.write_bytes(damage(file.read_bytes()))
    with run.locked(), pytest.raises(ArtifactError, match=r"align lasa\.json is damaged.*Restore it.*remove"):
        run.finished("align lasa")
    with pytest.raises(ArtifactError, match=r"align lasa\.json is damaged"):
        check_recorded(file)


def test_a_file_that_is_removed_is_made_again_with_what_was_made_from_it(tmp_path):
    run = write_stages(tmp_path)
    (tmp_path / "align lasa.json").unlink()
    with run.locked():
        assert not run.finished("align lasa")
        assert [run.finished(stage) for stage in STAGES] == [True, False, False, False]
        assert not (tmp_path / "evaluate base.json").exists()


def test_the_samples_of_one_system_are_made_again_alone(tmp_path):
    run = write_stages(tmp_path)
    (tmp_path / "evaluate base.json").unlink()
    with run.locked():
        assert [run.finished(stage) for stage in STAGES] == [True, True, False, True]


def test_data_that_a_finished_stage_read_must_not_change_and_all_other_data_may(tmp_path):
    data, other = tmp_path / "data.csv", tmp_path / "other.csv"
    data.write_text("prompt,language\nhello,en\n")
    run = RunFolder(tmp_path / "run", recipe())
    with run.locked():
        with run.stage("bottleneck", reads=[f"{data}?prompt=prompt", str(other), "embedded:layer-search"]):
            pass
        other.write_text("written later")
        assert run.finished("bottleneck")
        data.write_text("prompt,language\nhi,en\n")
        with pytest.raises(ArtifactError, match=r"data\.csv\?prompt=prompt was changed after the stage 'bottleneck'"):
            run.finished("bottleneck")
        data.unlink()  # nothing can be read from it
        assert run.finished("bottleneck")


def test_a_folder_of_a_corpus_is_hashed_with_all_its_files_wherever_it_lies(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "sw").mkdir(parents=True)
        (tmp_path / name / "sw" / "test.jsonl").write_text("{}")
    first = source_hash(f"xcopa:{tmp_path / 'a'}?split=test")
    assert first == source_hash(f"xcopa:{tmp_path / 'b'}")
    (tmp_path / "a" / "sw" / "test.jsonl").write_text("{} ")
    assert first != source_hash(f"xcopa:{tmp_path / 'a'}")


def test_an_edited_record_is_named(tmp_path):
    run = write_stages(tmp_path)
    record = read_json(tmp_path / "stages.json")
    record["stages"]["bottleneck"]["seconds"] += 1
    write_json(tmp_path / "stages.json", record)
    with pytest.raises(ArtifactError, match=r"stages\.json was altered"):
        run.finished("bottleneck")


def test_a_file_outside_of_any_run_has_no_record(tmp_path):
    (tmp_path / "samples.jsonl").write_text("{}\n")
    check_recorded(tmp_path / "samples.jsonl")


def test_another_recipe_is_refused_by_the_names_of_its_settings_and_the_run_is_kept(tmp_path):
    write_stages(tmp_path)
    before = (tmp_path / "recipe.yaml").read_bytes()
    with pytest.raises(ArtifactError, match=r"holds another run.*differs from this recipe in model\.dtype, seed"):
        RunFolder(tmp_path, recipe(seed=1, model={"path": "embedded", "dtype": "float32"}))
    assert (tmp_path / "recipe.yaml").read_bytes() == before


JUDGE = {"kind": "llm", "model": "judge", "url": "http://one/v1"}


def test_what_costs_and_does_not_decide_may_change_in_a_run(tmp_path, monkeypatch):
    evaluation = {"benchmarks": {"b": "b.csv"}, "judge": JUDGE}
    systems = {"base": {}, "lasa": {"method": "kto"}}
    began = recipe(evaluation=evaluation, systems=systems)
    run, said = RunFolder(tmp_path, began), []
    monkeypatch.setattr(folder, "say", said.append)
    with run.locked(), run.stage("bottleneck"):
        pass
    costs = {"url": "http://two/v1", "parallel": 2, "api_key_variable": "KEY", "timeout_s": 5.0, "attempts": 2,
             "prices": [1.0, 2.0], "batch_size": 2}  # fmt: skip
    changed = recipe(
        model={"path": "embedded", "device": "cuda:1"},
        systems={"base": {}, "lasa": {"method": "kto", "gradient_checkpointing": True, "save_steps": 5}},
        evaluation={
            **evaluation, "judge": {**JUDGE, **costs}, "batch_size": 4, "batch_tokens": 1000, "dtype": "bfloat16",
        },
    )  # fmt: skip
    with RunFolder(tmp_path, changed).locked():
        assert run.finished("bottleneck")
    [sentence] = said
    names = ["batch_size", "batch_tokens", "dtype", *(f"judge.{name}" for name in costs)]
    assert all(f"evaluation.{name}" in sentence for name in names)
    assert "model.device" in sentence and "systems.lasa.save_steps" in sentence
    assert open_run(tmp_path) == changed


class TestSecondJudge:
    """It decides nothing, so it may come later: answers that are there are judged, and what that costs is added."""

    WITH = recipe(evaluation={"benchmarks": {"b": "b.csv"}, "second_judge": JUDGE})

    def test_answers_are_kept_and_wait_for_it(self, tmp_path):
        write_stages(tmp_path)
        run = RunFolder(tmp_path, self.WITH)
        with run.locked():
            assert [stage for stage in STAGES if run.finished(stage)] == ["bottleneck", "align lasa"]
            first = run.costs["evaluate base"]["seconds"]
            with run.stage("evaluate base", "evaluate base.json"):
                assert read_json(tmp_path / "evaluate base.json") == {"stage": "evaluate base"}
                time.sleep(0.05)
            assert run.finished("evaluate base") and not run.finished("evaluate lasa")
            assert run.costs["evaluate base"]["seconds"] > first
        with RunFolder(tmp_path, self.WITH).locked():
            assert run.finished("evaluate base") and not run.finished("evaluate lasa")
        assert open_run(tmp_path) == self.WITH

    def test_another_address_of_it_is_no_reason_to_judge_again(self, tmp_path):
        other = {**JUDGE, "url": "http://two/v1"}
        with RunFolder(tmp_path, self.WITH).locked(), RunFolder(tmp_path, self.WITH).stage("evaluate base"):
            pass
        run = RunFolder(tmp_path, recipe(evaluation={"benchmarks": {"b": "b.csv"}, "second_judge": other}))
        with run.locked():
            assert run.finished("evaluate base")

    def test_answers_that_were_altered_are_not_judged(self, tmp_path):
        write_stages(tmp_path)
        write_json(tmp_path / "evaluate lasa.json", {"stage": "another"})
        with pytest.raises(ArtifactError, match=r"evaluate lasa\.json"), RunFolder(tmp_path, self.WITH).locked():
            pass


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"path": "embedded", "dtype": "float32", "device": "cpu"}}, "model.dtype"),
        ({"systems": {"base": {}, "lasa": {"method": "kto", "batch_size": 8}}}, "systems.lasa.batch_size"),
        (
            {"evaluation": {"benchmarks": {"b": "b.csv"}, "batch_size": 2, "judge": {**JUDGE, "model": "another"}}},
            "evaluation.judge.model",
        ),
        (
            {"evaluation": {"benchmarks": {"b": "b.csv"}, "judge": JUDGE, "max_new_tokens": 9}},
            "evaluation.max_new_tokens",
        ),
    ],
)
def test_what_decides_may_not_and_the_message_names_that_alone(changes, named, tmp_path):
    began = {
        "systems": {"base": {}, "lasa": {"method": "kto"}},
        "evaluation": {"benchmarks": {"b": "b.csv"}, "judge": JUDGE},
    }
    with RunFolder(tmp_path, recipe(**began)).locked():
        pass
    with pytest.raises(ArtifactError, match=rf"differs from this recipe in {named}\. Choose .*batch sizes, token"):
        RunFolder(tmp_path, recipe(**{**began, **changes}))


@pytest.mark.parametrize("edit", [("seed: 0", "seed: 7"), ("seed: 0", "seed: ["), ("seed: 0", "sead: 0")])
def test_an_edited_recipe_is_named_with_what_to_do(tmp_path, edit):
    write_stages(tmp_path)
    marker = tmp_path / "recipe.yaml"
    marker.write_text(marker.read_text().replace(*edit))
    for call in (lambda: open_run(tmp_path), lambda: RunFolder(tmp_path, recipe())):
        with pytest.raises(ArtifactError, match=r"recipe\.yaml was edited after the run began.*Restore it"):
            call()


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_text("x")
    with pytest.raises(ArtifactError, match="is not empty and holds no run"):
        RunFolder(tmp_path, recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_process_killed_at_its_first_step_leaves_a_folder_that_can_be_used(tmp_path):
    for name in (".lock", ".recipe.yaml.abc123.tmp", "provenance.json"):
        (tmp_path / name).write_text("")
    with RunFolder(tmp_path, recipe()).locked():
        assert open_run(tmp_path) == recipe()
        assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


def test_a_second_process_on_the_same_run_is_refused(tmp_path):
    run = RunFolder(tmp_path, recipe())
    with FileLock(tmp_path / ".lock"), pytest.raises(ArtifactError, match="Another process"), run.locked():
        pass


def test_a_process_that_waited_for_another_run_to_begin_does_not_take_it_over(tmp_path):
    late = RunFolder(tmp_path, recipe(seed=5))
    write_stages(tmp_path)
    with pytest.raises(ArtifactError, match="holds another run"), late.locked():
        pass


class TestSettled:
    def test_a_local_model_is_found_from_any_working_directory(self, tmp_path, monkeypatch):
        (tmp_path / "model").mkdir()
        monkeypatch.chdir(tmp_path)
        mine = recipe().model_copy(update={"model": recipe().model.model_copy(update={"path": "model"})})
        assert settled(mine, tmp_path / "run").model.path == str(tmp_path / "model")
        assert settled(recipe(), tmp_path / "run").model.path == recipe().model.path

    def test_a_run_that_goes_on_keeps_the_day_on_which_it_began(self, tmp_path):
        day = date(2026, 1, 31)
        began = recipe().model_copy(update={"model": recipe().model.model_copy(update={"template_date": day})})
        with RunFolder(tmp_path / "run", began).locked():
            pass
        assert settled(recipe(), tmp_path / "run").model.template_date == day
        assert settled(recipe(), tmp_path / "other").model.template_date == datetime.now(UTC).date()


class TestTheLayer:
    def other(self):
        return recipe().model_copy(update={"layer_search": recipe().layer_search.model_copy(update={"layer": 2})})

    def test_it_may_be_set_in_the_same_folder_while_no_stage_has_used_one(self, tmp_path):
        with RunFolder(tmp_path / "run", recipe()).locked():
            pass
        with RunFolder(tmp_path / "run", self.other()).locked():
            pass
        assert open_run(tmp_path / "run").layer_search.layer == 2

    def test_it_may_not_be_changed_afterwards(self, tmp_path):
        run = RunFolder(tmp_path / "run", recipe())
        with run.locked(), run.stage("bottleneck"):
            pass
        with pytest.raises(ArtifactError, match=r"differs from this recipe in layer_search\.layer"):
            RunFolder(tmp_path / "run", self.other())
