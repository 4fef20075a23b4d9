"""A run from labelled prompts alone: the model's own answers, drawn once, and what systems learn from them."""

import json

import pytest

from lasa.data.preferences import read_preferences
from lasa.data.prompt_tables import write_prompts
from lasa.data.prompts import user_prompt
from lasa.data.refusals import read_refusals
from lasa.evaluation import answering
from lasa.evaluation.samples import read_samples
from lasa.files.artifacts import read_json
from lasa.guard.refusals import refusal_message
from lasa.pipeline import run_recipe
from lasa.run.recipe import check_recipe
from miniature import write_model, write_recipe

BEHIND = {"method": "sft", "signal": "always", "guarded": True, "lora_rank": 2, "adapter": "behind_condition"}
SYSTEMS = {
    "base": {},
    "surface": {"method": "sft"},
    "floor": {"guarded": True, "action": "refuse"},
    "lasa": {**BEHIND, "second_look": 0.05},
}


@pytest.fixture
def recipe(tokenizer, tmp_path):
    write_model(tmp_path / "model", tokenizer)
    plain = write_recipe(tmp_path, SYSTEMS, batch_size=4)
    text = [user_prompt(f"t{n}", code, f"chai {n}", harmful=False) for n in range(4) for code in ("sw", "th", "jv")]
    write_prompts(tmp_path / "text.jsonl", text)
    harmless = [str(tmp_path / "text.jsonl")]
    plain["alignment"] = {"preferences": "own", "wordings": 2, "own_questions": 5, "harmless": harmless}
    plain["evaluation"]["judge"] = "refusal-patterns"
    return check_recipe(plain, "test")


@pytest.fixture
def asked(monkeypatch):
    """The prompts of each batch that the unguarded model answers."""
    batches, answer = [], answering.LocalModel.__call__

    def counted(self, prompts):
        if self.guard is None:
            batches.append([prompt.query_id for prompt in prompts])
        return answer(self, prompts)

    monkeypatch.setattr(answering.LocalModel, "__call__", counted)
    return batches


def test_a_run_that_is_stopped_while_it_draws_answers_goes_on(recipe, asked, monkeypatch, tmp_path):
    run_recipe(recipe, tmp_path / "whole")
    drawn = (tmp_path / "whole" / "preferences.jsonl").read_bytes()
    batches = 20 // 4
    own, asked[:] = asked[:batches], []

    answer, count = answering.LocalModel.__call__, []

    def stop_in_third(self, prompts):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return answer(self, prompts)

    with monkeypatch.context() as patch:
        patch.setattr(answering.LocalModel, "__call__", stop_in_third)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, tmp_path / "stopped")
    assert asked == own[:2]
    assert len((tmp_path / "stopped" / "own-answers.jsonl").read_text("utf-8").splitlines()) == 8
    asked.clear()
    run_recipe(recipe, tmp_path / "stopped")
    assert asked[: batches - 2] == own[2:] and not any(batch in own for batch in asked[batches - 2 :])
    assert (tmp_path / "stopped" / "preferences.jsonl").read_bytes() == drawn

    refusals = {text for wordings in read_refusals().values() for text in wordings[:2]}
    for one in read_preferences(tmp_path / "whole" / "preferences.jsonl"):
        assert one.prompt.language in ("en", "zh") and (one.chosen in refusals) is one.prompt.harmful
    lasa = read_json(tmp_path / "whole" / "systems" / "lasa" / "lasa.json")
    assert lasa["conditioned"] == lasa["rows"]
    stages = json.loads((tmp_path / "whole" / "stages.json").read_text("utf-8"))["stages"]
    assert set(stages["preferences"]["files"]) == {"own-answers.jsonl", "preferences.jsonl"}
    assert str(tmp_path / "text.jsonl") in stages["align lasa"]["read"]
    assert str(tmp_path / "text.jsonl") not in stages["align surface"]["read"]
    floor = read_samples(tmp_path / "whole" / "samples" / "floor.jsonl")
    assert any(one.flagged for one in floor)
    assert all(one.text == refusal_message(one.prompt.language) for one in floor if one.flagged)


def test_a_head_for_answers_is_measured_on_what_the_bare_model_wrote(recipe, monkeypatch, tmp_path):
    said = "Pour the water over the leaves and wait for a while, then drink it."
    monkeypatch.setattr(answering.LocalModel, "__call__", lambda _, prompts: [answering.Answer(said) for _ in prompts])
    heads = recipe.interpreter.model_copy(update={"answers": [str(tmp_path / "preferences.jsonl")]})
    listening = recipe.model_copy(update={"interpreter": heads, "systems": {"base": recipe.systems["base"]}})
    run_recipe(listening, tmp_path / "run")
    found = read_json(tmp_path / "run" / "metrics.json")["interpreter"]["answers"]
    asked = [one for one in read_samples(tmp_path / "run" / "samples" / "base.jsonl") if one.split == "combinations"]
    harmful = [one for one in asked if one.prompt.harmful]
    assert found["all"]["stopped"]["n"] == len(harmful) > 0
    assert found["all"]["false_stops"]["n"] == len(asked) - len(harmful) > 0
    (tmp_path / "run" / "answers.json").unlink()
    run_recipe(listening, tmp_path / "run")
    assert read_json(tmp_path / "run" / "answers.json") == found
