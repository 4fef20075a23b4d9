"""A run's guard on another machine: how its model is loaded, and whether it decides as where it was measured."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from guards import build_guard, lively_model
from lasa.cli import app
from lasa.cli.options import SystemChoice
from lasa.data.prompts import Prompt
from lasa.errors import ArtifactError, DataError, RecipeError
from lasa.evaluation.again import decide_again
from lasa.evaluation.answering import LocalModel
from lasa.evaluation.outcomes import Sample, Verdict
from lasa.models.generation import GenerationSettings
from lasa.models.settings import ModelSettings
from lasa.pipeline import run_recipe
from lasa.run.recipe import check_recipe
from lasa.run.systems import find_system
from miniature import write_model, write_recipe


@pytest.fixture(scope="module")
def finished(tokenizer, tmp_path_factory):
    """A run whose recipe asks for a device and a precision."""
    folder = tmp_path_factory.mktemp("finished")
    write_model(folder / "model", tokenizer)
    recipe = write_recipe(folder, {"base": {}, "guarded": {"guarded": True}})
    recipe["model"] |= {"device": "cpu", "dtype": "float32"}
    run_recipe(check_recipe(recipe, "test"), folder / "run")
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of that run, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "run")


def doctor(*options):
    return CliRunner().invoke(app, ["doctor", *map(str, options)])


def samples_of(prompts, answers):
    verdict = Verdict(None)
    pairs = zip(prompts, answers, strict=True)
    return [Sample("s", prompt, a.text, verdict, "j", a.score, a.flagged) for prompt, a in pairs]


def test_the_same_machine_decides_the_same(run):
    shown = doctor("--run", run)
    assert shown.exit_code == 0, shown.exception
    count = len((run / "samples" / "guarded.jsonl").read_text("utf-8").splitlines())
    assert f"0 of {count} decisions changed" in shown.output
    assert "Within the bound of 1.0%" in shown.output


def test_what_falls_on_the_other_side_is_counted_by_language_and_fails(run):
    rows = [json.loads(line) for line in (run / "samples" / "guarded.jsonl").read_text("utf-8").splitlines()]
    other = run.parent / "elsewhere.jsonl"
    [first, *_] = [row for row in rows if row["language"] == "sw"]
    first["flagged"] = not first["flagged"]
    other.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    shown = doctor("--run", run, "--samples", other)
    assert shown.exit_code == 1
    assert f"1 of {len(rows)} decisions changed" in shown.output and "(changed: sw 1)" in shown.output
    assert "Warning" in shown.output and "Evaluate again on this machine" in shown.output
    assert doctor("--run", run, "--samples", other, "--drift-bound", 0.5).exit_code == 0


def test_a_model_and_an_interpreter_are_asked_by_name(run):
    model = find_system(run=run).model.path
    named = ("--model", model, "--interpreter", run / "interpreter")
    shown = doctor(*named, "--samples", run / "samples" / "guarded.jsonl")
    assert "0 of" in shown.output and shown.exit_code == 0, shown.exception
    assert "decisions " not in doctor(*named).output
    alone = doctor("--model", model, "--samples", run / "samples" / "guarded.jsonl")
    assert isinstance(alone.exception, RecipeError) and "--samples needs the guard" in str(alone.exception)


def test_a_system_without_a_guard_has_made_no_decisions(run):
    assert "decisions " not in doctor("--run", run, "--system", "base").output
    refused = doctor("--run", run, "--samples", run / "samples" / "base.jsonl")
    assert isinstance(refused.exception, DataError) and "hold no decisions" in str(refused.exception)


@pytest.mark.parametrize(("option", "given"), [("dtype", "bfloat16"), ("device", "meta"), ("four_bit", True)])
def test_how_a_runs_model_is_loaded_can_be_chosen_where_it_is_used(run, option, given):
    """A recipe's `cuda:3` and precision are those of the machine that it ran on."""
    asked = ModelSettings(path="embedded", **{option: given})
    system = SystemChoice(run=run).find(asked)
    assert getattr(system.model, option) == given
    assert system.model.path == find_system(run=run).model.path
    assert (find_system(run=run).model.device, find_system(run=run).model.dtype) == ("cpu", "float32")


def test_another_precision_is_measured_but_served_only_if_that_is_forced(run):
    shown = doctor("--run", run, "--dtype", "bfloat16", "--drift-bound", 0.99)
    assert shown.exit_code == 0, shown.exception
    assert "or in another precision" in shown.output and "decisions changed" in shown.output
    refused = CliRunner().invoke(
        app, ["generate", "--run", str(run), "--system", "guarded", "--dtype", "bfloat16", "hi"]
    )
    assert isinstance(refused.exception, ArtifactError) and "lasa doctor --samples" in str(refused.exception)


def test_another_device_for_this_process_counts_beside_a_run_and_without_one(run):
    assert SystemChoice(run=run).find(ModelSettings(path="embedded"), "meta").model.device == "meta"
    assert SystemChoice().find(ModelSettings(path="embedded"), "meta").model.device == "meta"
    assert SystemChoice().find(ModelSettings(path="embedded", device="cpu")).model.device == "cpu"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("generate", ("--model", "another")),
        ("chat", ("--interpreter", "another")),
        ("serve", ("--chat-template", "{{ messages }}")),
        ("doctor", ("--template-options", "thinking=false")),
    ],
)
def test_what_a_run_brings_along_is_not_silently_given_twice(run, command, option):
    words = ["water"] if command == "generate" else []
    refused = CliRunner().invoke(app, [command, "--run", str(run), *option, *words])
    assert isinstance(refused.exception, RecipeError)
    assert f"{option[0]} cannot be given beside --run" in str(refused.exception)


def test_decisions_are_made_again_with_the_callers_prefill(tokenizer, prompts):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts)
    asked = [
        Prompt(one.query_id, one.language, one.messages, one.harmful, details={"prefill": "I am a plant"})
        for one in prompts
    ]
    given = LocalModel(guard.model, tokenizer, guard, GenerationSettings(max_new_tokens=1))(asked)
    again = decide_again(guard, samples_of(asked, given))
    assert again.drift.largest_shift < 1e-5 and again.drift.changed.value == 0
    without = decide_again(guard, samples_of(prompts, given))
    assert without.drift.largest_shift > 1e-3


def test_a_score_that_was_not_a_number_is_compared_by_its_decision(tokenizer, prompts):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts, flagged=0)
    given = LocalModel(guard.model, tokenizer, guard, GenerationSettings(max_new_tokens=1))(prompts)
    [first, second, *rest] = samples_of(prompts, given)
    broken = Sample("s", first.prompt, "", Verdict(None), "j", None, True)  # the guard failed closed
    unread = Sample("s", second.prompt, "", Verdict(None), "j", None, None)  # too long
    again = decide_again(guard, [broken, unread, *rest], bound=0.5)
    assert (again.drift.prompts, again.drift.newly_passed, again.drift.newly_flagged) == (len(prompts) - 1, 1, 0)
    assert again.drift.mean_shift < 1e-5
    assert again.languages == {first.prompt.language: 1}


def test_a_run_that_has_not_been_evaluated_yet_is_checked_all_the_same(run):
    (run / "samples" / "guarded.jsonl").unlink()
    shown = doctor("--run", run)
    assert shown.exit_code == 0, shown.exception
    assert "interpreter  fits this model" in shown.output and "decisions " not in shown.output
