import pytest
import yaml
from pydantic import ValidationError

from lasa.errors import ModelError, RecipeError
from lasa.evaluation.judge_settings import JudgeSettings, judge_from_text, make_judge, make_judges
from lasa.evaluation.settings import EvaluationSettings


def test_short_forms_are_settings():
    assert judge_from_text("embedded-world") == JudgeSettings(kind="embedded-world")
    llm = judge_from_text("llm:org/judge@7b@https://api.test/v1")
    assert (llm.kind, llm.model, llm.url) == ("llm", "org/judge@7b", "https://api.test/v1")
    local = judge_from_text("classifier:llama-guard:models/Llama-Guard:8B")
    assert (local.kind, local.format, local.model) == ("classifier", "llama-guard", "models/Llama-Guard:8B")
    other = judge_from_text("classifier:harmbench:models/cls?template=harmbench.txt")
    assert (other.format, other.model, str(other.template)) == ("harmbench", "models/cls", "harmbench.txt")
    read = judge_from_text("interpreter:runs/refusals@models/gemma")
    assert (read.kind, str(read.interpreter), read.model) == ("interpreter", "runs/refusals", "models/gemma")


@pytest.mark.parametrize(
    "text",
    [
        "", "gpt-4o", "llm:", "llm:model", "llm:@https://x.test", "classifier:", "classifier:keywords:dir", "llm",
        "interpreter:folder", "interpreter:@model",
    ],
)  # fmt: skip
def test_what_is_no_judge_is_said(text):
    with pytest.raises(RecipeError, match="is no judge"):
        judge_from_text(text)


@pytest.mark.parametrize("output", ["harmbench", "polyguard"])
def test_a_classifier_with_a_text_of_its_own_is_never_asked_by_a_chat_template(output):
    with pytest.raises(RecipeError, match=rf"{output} is not asked by its chat template.*\?template=FILE"):
        judge_from_text(f"classifier:{output}:folder")


def test_a_recipe_takes_short_forms_and_settings():
    text = """
    benchmarks: {multijail: "multijail:MultiJail.csv"}
    judge: {kind: llm, model: judge, url: "http://localhost:8000/v1", attempts: 2}
    second_judge: refusal-patterns
    """
    section = EvaluationSettings.model_validate(yaml.safe_load(text))
    assert [judge.kind for judge in section.judges] == ["llm", "refusal-patterns"]
    assert EvaluationSettings.model_validate(section.model_dump(mode="json")) == section
    with pytest.raises(ValidationError, match="the judge classifier needs model and format"):
        EvaluationSettings.model_validate({"benchmarks": {"a": "b"}, "judge": {"kind": "classifier"}})


def test_judges_are_made_of_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("LASA_JUDGE_API_KEY", "secret")
    texts = ("embedded-world", "refusal-patterns", "llm:judge@http://localhost:1/v1")
    judges = make_judges([judge_from_text(text) for text in texts], tmp_path)
    assert [judge.name for judge in judges] == ["embedded-world", "refusal-patterns", "llm:judge"]


def test_a_classifier_is_loaded_from_its_folder(model_folder, tmp_path):
    judge = make_judge(judge_from_text(f"classifier:llama-guard:{model_folder}"))
    assert judge.name == f"classifier:{model_folder}"
    template = tmp_path / "template.txt"
    template.write_text("{prompt} / {answer}")
    make_judge(JudgeSettings(kind="classifier", format="harmbench", model=str(model_folder), template=template))
    with pytest.raises(ModelError, match="No such model folder"):
        make_judge(judge_from_text("classifier:llama-guard:nowhere"))
    missing = JudgeSettings(kind="classifier", format="harmbench", model=str(model_folder), template=tmp_path / "no")
    with pytest.raises(RecipeError, match="cannot be read"):
        make_judge(missing)


def test_a_classifier_may_stand_behind_an_endpoint():
    judge = make_judge(judge_from_text("classifier:qwen3guard:Qwen3Guard-Gen-8B@http://localhost:8000/v1"))
    assert judge.name == "classifier:Qwen3Guard-Gen-8B"
