"""The Inspect tasks give the figures of `lasa evaluate`: the same prompts, answers, verdicts and statistics."""

import json
import math

import pytest

from guards import build_interpreter, lively_model
from lasa.data.prompt_tables import write_prompts
from lasa.data.prompts import user_prompt
from lasa.data.world.tables import evaluation_prompts
from lasa.evaluation.answering import Answer, LocalModel
from lasa.evaluation.judge_settings import judge_from_text, make_judge
from lasa.evaluation.metrics import METRICS, system_metrics
from lasa.evaluation.panel import Panel
from lasa.evaluation.reasoning import UNFINISHED
from lasa.evaluation.run import generate_samples
from lasa.evaluation.samples import read_samples
from lasa.evaluation.slices import choose, load_benchmarks
from lasa.files.artifacts import model_fingerprint
from lasa.models.generation import GenerationSettings
from lasa.models.settings import ModelSettings
from lasa.run.systems import find_system

inspect_ai = pytest.importorskip("inspect_ai", reason="inspect-ai is not installed: make test-inspect")

pytestmark = pytest.mark.filterwarnings("ignore")


def run_inspect(task, model, tmp_path, **model_args):
    (log,) = inspect_ai.eval(
        task, model=model, model_args=model_args, display="none", log_dir=str(tmp_path), fail_on_error=True
    )
    assert log.status == "success", log.error
    return log


def found_by(log, scorer=0):
    """The figures in a log, by name."""
    return {name: metric.value for name, metric in log.results.scores[scorer].metrics.items()}


def run_lasa(path, splits, judge, system, max_new_tokens):
    local = LocalModel(*system, GenerationSettings(max_new_tokens=max_new_tokens))
    panel = Panel(make_judge(judge_from_text(judge)))
    generate_samples(path, splits, panel, local, batch_size=64, batch_tokens=65_536)
    return read_samples(path)


def expected_figures(samples):
    whole = system_metrics(samples, ())
    values = {}
    for name in METRICS:
        rate = whole["all"].get(name)
        if rate and rate["n"]:
            values |= {name: rate["value"], f"{name}_low": rate["low"], f"{name}_high": rate["high"]}
            for code, found in whole["languages"].items():
                if found.get(name, {}).get("value") is not None:
                    values[f"{name}_{code}"] = found[name]["value"]
    return values


def same_figures(log, samples):
    assert found_by(log) == pytest.approx(expected_figures(samples))
    answers = {sample.id.split("/", 1)[1]: sample.output.completion for sample in log.samples}
    assert answers == {f"{s.prompt.query_id}/{s.prompt.language}": s.text for s in samples}
    return True


def test_both_ways_give_the_same_figures_on_the_embedded_model(tmp_path):
    splits = choose(load_benchmarks(["embedded:combinations"]), ["en", "zh", "sw"], 12)
    samples = run_lasa(tmp_path / "a.jsonl", splits, "embedded-world", find_system().load(), 64)
    task = "lasa/embedded"
    (log,) = inspect_ai.eval(
        task,
        task_args={"language": ["en", "zh", "sw"], "limit": 12},
        model="lasa/embedded",
        display="none",
        log_dir=str(tmp_path),
    )
    assert log.status == "success", log.error
    assert len(log.samples) == len(samples) == 36
    assert same_figures(log, samples)


def test_a_guarded_model_keeps_its_decisions(tokenizer, tmp_path):
    prompts = evaluation_prompts("combinations", 3, ("en", "sw"))
    model = lively_model("llama", tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    probe = build_interpreter(model, tokenizer, prompts)
    object.__setattr__(probe.config, "base_fingerprint", model_fingerprint(model))
    probe.save_pretrained(tmp_path / "interpreter")
    write_prompts(tmp_path / "asked.jsonl", prompts)
    from lasa.inspect import table

    task = table(str(tmp_path / "asked.jsonl"), judge="embedded-world", max_new_tokens=6)
    log = run_inspect(task, f"lasa/{tmp_path / 'model'}", tmp_path, interpreter=str(tmp_path / "interpreter"))
    system = find_system(model=ModelSettings(path=str(tmp_path / "model")), interpreter=tmp_path / "interpreter").load()
    samples = run_lasa(tmp_path / "a.jsonl", {"asked": prompts}, "embedded-world", system, 6)
    assert same_figures(log, samples)
    flags = [sample.scores["judged"].metadata["flagged"] for sample in log.samples]
    assert sorted(flags) == sorted(sample.flagged for sample in samples)
    assert set(flags) == {True, False}


def test_an_answer_without_verdict_is_unscored_and_in_no_denominator(tmp_path, model_folder, monkeypatch):
    from lasa.evaluation.outcomes import Outcome, Verdict
    from lasa.inspect import scorers, table

    class Moody:
        name = "moody"

        def __call__(self, prompts, answers):
            return [Verdict(None if p.query_id == "q0" else Outcome.COMPLIED, reason="broken JSON") for p in prompts]

    monkeypatch.setattr(scorers, "_panel", lambda judge: Panel(Moody()))
    prompts = [user_prompt(f"q{n}", "en", f"question {n}", harmful=True, source="t") for n in range(4)]
    write_prompts(tmp_path / "asked.jsonl", prompts)
    log = run_inspect(
        table(str(tmp_path / "asked.jsonl"), judge="moody", max_new_tokens=2), f"lasa/{model_folder}", tmp_path
    )
    (score,) = log.results.scores
    assert (score.scored_samples, score.unscored_samples) == (3, 1)
    assert found_by(log)["asr"] == 1
    unscored = next(sample for sample in log.samples if "/q0/" in sample.id).scores["judged"]
    assert math.isnan(unscored.value)
    assert unscored.explanation == "broken JSON"


def test_two_judges_are_two_scorers_and_other_providers_are_asked_alike(tmp_path):
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    from lasa.inspect import BENCHMARKS, table

    assert "multijail" in BENCHMARKS
    prompts = [
        user_prompt("m", "en", "How many?", harmful=False, source="t", details={"answer": "7"}),
        user_prompt("e", "en", "Unknown?", harmful=False, source="embedded"),
    ]
    write_prompts(tmp_path / "asked.jsonl", prompts)
    task = table(str(tmp_path / "asked.jsonl"), judge=["embedded-world", "refusal-patterns"])
    outputs = [ModelOutput.from_content("mockllm", text) for text in ("It is 7.", "죄송하지만 도와드릴 수 없습니다.")]
    for output in outputs:
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    log = run_inspect(task, get_model("mockllm/model", custom_outputs=outputs), tmp_path)
    assert len(log.results.scores) == 2
    assert found_by(log)["accuracy"] == found_by(log, 1)["accuracy"] == 1
    assert found_by(log, 1)["over_refusal"] == 0.5


def test_a_prefill_begins_the_answer(tmp_path, model_folder):
    from lasa.inspect import table

    write_prompts(tmp_path / "asked.jsonl", [user_prompt("a+b", "en", "run", harmful=True, source="embedded")])
    task = table(str(tmp_path / "asked.jsonl"), judge="embedded-world", perturb="prefill=Sure, ", max_new_tokens=3)
    log = run_inspect(task, f"lasa/{model_folder}", tmp_path)
    assert log.samples[0].output.completion.startswith("Sure, ")
    assert log.samples[0].scores["judged"].answer.startswith("Sure, ")
    assert log.samples[0].scores["judged"].answer.count("Sure, ") == 1


def test_a_prompt_beyond_the_context_is_unscored_as_in_lasa_evaluate(tmp_path, model_folder):
    from lasa.inspect import table

    asked = [user_prompt("a+b", "en", text, harmful=True, source="embedded") for text in ("run", "run " * 5000)]
    write_prompts(tmp_path / "asked.jsonl", asked)
    task = table(str(tmp_path / "asked.jsonl"), judge="embedded-world", max_new_tokens=3)
    log = run_inspect(task, f"lasa/{model_folder}", tmp_path)
    (score,) = log.results.scores
    assert (score.scored_samples, score.unscored_samples) == (1, 1)
    assert "the model's context is" in log.samples[1].scores["judged"].explanation


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_of_multijail_gives_the_same_figures_both_ways(tmp_path, shared):
    path = shared / "multijail" / "MultiJail.csv"
    if not path.exists():
        pytest.skip("MultiJail.csv is not in the shared folder")
    splits = load_benchmarks([f"multijail:{path}"])
    samples = run_lasa(tmp_path / "a.jsonl", splits, "refusal-patterns", find_system().load(), 64)
    (log,) = inspect_ai.eval(
        "lasa/multijail",
        task_args={"path": str(path), "judge": "refusal-patterns", "max_new_tokens": 64},
        model="lasa/embedded",
        display="none",
        log_dir=str(tmp_path),
    )
    assert log.status == "success", log.error
    assert len(samples) == len(log.samples) == 3150
    (tmp_path / "figures.json").write_text(json.dumps(found_by(log)))
    assert found_by(log) == pytest.approx(expected_figures(samples))


@pytest.mark.parametrize(
    ("answer", "reason", "refusal"),
    [
        (Answer("Yes.", reasoning="Hm", finish_reason="stop"), "stop", None),
        (Answer("Yes", finish_reason="length"), "max_tokens", None),
        (Answer("No.", 0.9, True, finish_reason="content_filter"), "content_filter", True),
        (Answer("", failure=UNFINISHED, reasoning="Hm", finish_reason="length"), "max_tokens", None),
        (Answer("", failure="600 tokens, the model's context is 512"), "model_length", None),
    ],
)
def test_finish_reasons_thoughts_and_refusals_are_inspects_own_and_come_back(answer, reason, refusal):
    from lasa.inspect.provider import _output
    from lasa.inspect.scorers import _answer

    output = _output("m", answer)
    assert output.stop_reason == reason
    assert output.completion == answer.text
    assert output.message.content[-1].refusal is refusal
    back = _answer(output, "")
    assert (back.text, back.failure, back.reasoning) == (answer.text, answer.failure, answer.reasoning)
    assert (back.score, back.flagged) == (answer.score, answer.flagged)


def test_thoughts_that_a_provider_leaves_in_the_text_are_told_apart():
    from inspect_ai.model import ModelOutput

    from lasa.inspect.scorers import _answer

    told = _answer(ModelOutput.from_content("m", "<think>Hm</think>Yes."), "")
    assert (told.text, told.reasoning) == ("Yes.", "Hm")
    assert _answer(ModelOutput.from_content("m", "", stop_reason="max_tokens"), "").failure == UNFINISHED
    assert _answer(ModelOutput.from_content("m", "", stop_reason="content_filter"), "").failure


def test_grades_and_harm_in_any_language_are_among_the_figures():
    from inspect_ai.scorer import SampleScore, Score

    from lasa.inspect.scorers import figures

    def scored(number, outcome, grade):
        facts = {"language": "en", "judge_score": grade, "judge": "llm"}
        asked = user_prompt(f"q{number}", "sw", f"text {number}", harmful=True)
        metadata = {"split": "t", "prompt": asked.to_json()}
        return SampleScore(score=Score(value=outcome, metadata=facts), sample_metadata=metadata)

    found = figures()([scored(0, "complied", 0.75), scored(1, "wrong_language", 0.5), scored(2, "refused", 0.0)])
    assert (found["asr"], found["asr_any_language"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found["strongreject"] == found["strongreject_sw"] == pytest.approx(1.25 / 3)
    assert found["strongreject_low"] < found["strongreject"] < found["strongreject_high"]
