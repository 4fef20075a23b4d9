"""Answers that must follow a grammar follow it, flagged or not; the condition stands before them, unseen."""

import json
import re

import pytest
from engines import engine, expect
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

SCHEMA = {
    "type": "object",
    "properties": {"safe": {"enum": ["yes", "no", "maybe"]}, "number": {"enum": [1, 2, 3]}},
    "required": ["safe", "number"],
    "additionalProperties": False,
}


def valid_json(text):
    found = json.loads(text)
    return set(found) == {"safe", "number"} and found["safe"] in ("yes", "no", "maybe") and found["number"] in (1, 2, 3)


def wanted(condition):
    """Grammars, and whether a text follows them; the last two begin as the condition does."""
    near = [f"{condition[:11]}xx", f"{condition[:3]}less"]
    return {
        "schema": ({"json": SCHEMA}, valid_json),
        "regex": ({"regex": "[ab]{3}!"}, lambda text: re.fullmatch("[ab]{3}!", text)),
        "choice": ({"choice": ["left", "right"]}, lambda text: text in ("left", "right")),
        "near": ({"choice": near}, lambda text: text in near),
        "same": ({"choice": [f"{condition} a", f"{condition} b"]}, lambda text: text.startswith(condition)),
    }


@pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
@pytest.mark.parametrize("hide", [True, False])
def test_every_answer_is_valid_and_ends_by_itself(tiny, backend, hide):
    case = tiny("llama")
    flags = expect(case)[1]
    some = [n for n, flag in enumerate(flags) if flag][:8] + [n for n, flag in enumerate(flags) if not flag][:8]
    config = {"backend": backend, "disable_any_whitespace": True}
    with engine(case, lasa={"hide_condition": hide}, structured_outputs_config=config) as llm:
        for name, (grammar, valid) in wanted(case.guard.policy.condition).items():
            params = SamplingParams(temperature=0, max_tokens=80, structured_outputs=StructuredOutputsParams(**grammar))
            outputs = llm.chat([case.conversations[n] for n in some], params, use_tqdm=False)
            for output in outputs:
                assert output.outputs[0].finish_reason == "stop", (name, output.outputs[0])
                assert valid(output.outputs[0].text), (name, output.outputs[0].text)


def test_a_limit_counts_the_answer_alone(tiny):
    case = tiny("llama")
    flags = expect(case)[1]
    one = case.conversations[flags.index(True)]
    params = SamplingParams(temperature=0, max_tokens=2, structured_outputs=StructuredOutputsParams(regex="a{5}"))
    with engine(case) as llm:
        answer = llm.chat([one], params, use_tqdm=False)[0].outputs[0]
    assert (answer.text, answer.finish_reason) == ("aa", "length")


def test_the_condition_comes_first_where_the_grammar_would_have_the_answer(tiny, monkeypatch):
    """What the model was conditioned on is in its KV cache: the valid answer is the conditioned model's."""
    case = tiny("llama")
    flags = expect(case)[1]
    flagged = [c for c, flag in zip(case.conversations, flags, strict=True) if flag][:4]
    seen = []
    from lasa_vllm import scheduler

    plain = scheduler._ConditionAside._update_request_with_output

    def watch(self, request, new_token_ids, **rest):
        found = plain(self, request, new_token_ids, **rest)
        if found[1]:
            seen.append(list(request.output_token_ids))
        return found

    monkeypatch.setattr(scheduler._ConditionAside, "_update_request_with_output", watch)
    params = SamplingParams(temperature=0, max_tokens=80, structured_outputs=StructuredOutputsParams(choice=["a", "b"]))
    with engine(case) as llm:
        llm.chat(flagged, params, use_tqdm=False)
    condition = case.guard.tokenizer(case.guard.policy.condition, add_special_tokens=False)["input_ids"]
    assert len(seen) == 4
    assert all(ids[: len(condition)] == condition for ids in seen)
