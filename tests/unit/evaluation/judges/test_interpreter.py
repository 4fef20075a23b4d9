"""A judge that reads answers as the guard reads requests."""

import pytest
import torch

from conftest import build_model
from guards import build_interpreter
from lasa.data.prompts import user_prompt
from lasa.errors import ArtifactError
from lasa.evaluation.judge_settings import judge_from_text, make_judge
from lasa.evaluation.judges.interpreter import InterpreterJudge
from lasa.evaluation.outcomes import JUDGE_FAILED, Outcome

ANSWERS = [f"the weather in town {number} is {kind}" for number in range(6) for kind in ("bad", "good")]


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_model("llama", tokenizer)


def as_prompts(answers):
    return [user_prompt(f"q{number}", "en", text) for number, text in enumerate(answers)]


def judge_of(model, tokenizer, **settings):
    probe = build_interpreter(model, tokenizer, as_prompts(ANSWERS), **settings)
    return InterpreterJudge(probe, model, tokenizer, identify=lambda text: "en")


def test_what_reads_as_a_refusal_is_one_and_the_rest_is_judged_by_its_language(model, tokenizer):
    judge = judge_of(model, tokenizer)
    asked = [user_prompt("q", language, "Why?") for language in ("en", "sw") for _ in ANSWERS]
    verdicts = judge(asked, [*ANSWERS, *ANSWERS])
    refused = [verdict.outcome is Outcome.REFUSED for verdict in verdicts]
    assert 0 < sum(refused) < len(refused) and refused[: len(ANSWERS)] == refused[len(ANSWERS) :]
    rest = [verdict.outcome for verdict, refuses in zip(verdicts, refused, strict=True) if not refuses]
    assert rest == [Outcome.COMPLIED] * (len(rest) // 2) + [Outcome.WRONG_LANGUAGE] * (len(rest) // 2)
    assert judge(asked[:1], [ANSWERS[0]]) == verdicts[:1], "the company of an answer changes nothing"


def test_only_the_beginning_is_read_and_a_language_may_have_a_threshold_of_its_own(model, tokenizer):
    judge = judge_of(model, tokenizer, flagged=0, language_thresholds={"sw": 0.0})
    long = "word " * 60
    first, second, third = judge(
        [user_prompt("q", code, "Why?") for code in ("en", "en", "sw")], [long, long + "x", long]
    )
    assert first == second and first.outcome is not Outcome.REFUSED and third.outcome is Outcome.REFUSED


def test_a_score_that_is_not_a_number_is_no_verdict(model, tokenizer):
    judge = judge_of(model, tokenizer)
    with torch.no_grad():
        judge._interpreter.out.weight.fill_(torch.nan)
    [verdict] = judge([user_prompt("q", "en", "Why?")], ["the weather"])
    assert verdict.outcome is None and verdict.reason.startswith(JUDGE_FAILED)


def test_it_is_made_of_two_folders_and_named_by_its_weights(model_folder, tokenizer, tmp_path):
    from lasa.models.loading import load_model

    model, own = load_model(str(model_folder))
    for seed in (0, 1):
        build_interpreter(model, own, as_prompts(ANSWERS), seed=seed).save_pretrained(tmp_path / str(seed))
    judges = [make_judge(judge_from_text(f"interpreter:{tmp_path / name}@{model_folder}")) for name in "001"]
    assert judges[0].name == judges[1].name != judges[2].name


def test_an_interpreter_of_another_model_is_refused(model, tokenizer):
    probe = build_interpreter(model, tokenizer, as_prompts(ANSWERS))
    with pytest.raises(ArtifactError, match="belongs to another base model"):
        InterpreterJudge(probe, build_model("llama", tokenizer, vocab_size=model.config.vocab_size + 8), tokenizer)
