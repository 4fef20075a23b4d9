"""No sampling parameter lets a flagged answer go on with anything but the condition."""

import random

import pytest
from engines import engine, expect
from lasa_vllm.decisions import FREE, check_request
from vllm import SamplingParams
from vllm.sampling_params import RepetitionDetectionParams

from lasa.conditioning.condition import condition_ids

REFUSED = {
    "logprobs": 2,
    "prompt_logprobs": 1,
    "prompt_logprob_token_ids": [[5]],
    "prompt_logprob_start": 0,
    "logprob_token_ids": [5],
    "thinking_token_budget": 3,
    "trace_decode_token_ids": [5, 6],
}
REQUESTS = 400


def test_every_parameter_of_this_vllm_is_known():
    """One that is not is refused (`check_request`); a new version's belong into one of the two sets."""
    known = FREE | set(REFUSED)
    assert {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")} == known


@pytest.mark.parametrize("name", REFUSED)
def test_what_shows_the_unguarded_model_is_refused(name):
    with pytest.raises(ValueError, match=f"guarded and does not take {name}"):
        check_request(SamplingParams(**{name: REFUSED[name]}))


@pytest.mark.parametrize("value", [1e-46, 1e-40, 1e-3, 101.0, 1e30, 1e39])
def test_penalties_that_float32_does_not_survive_are_refused(value):
    with pytest.raises(ValueError, match="repetition_penalty"):
        check_request(SamplingParams(repetition_penalty=value))


def test_ordinary_requests_are_taken():
    check_request(SamplingParams())
    check_request(SamplingParams(repetition_penalty=1.3, temperature=0, stop=["a"], max_tokens=None, logit_bias={5: 3}))


def anything(draw, condition, vocabulary):
    """Sampling parameters as a caller may send them, with a liking for extremes and for the condition's tokens."""

    def tokens():
        return draw.sample(condition, draw.randint(1, 3)) + draw.sample(range(vocabulary), draw.randint(1, 3))

    def bias():
        return draw.choice([-1e300, -100.0, -1.0, 0.5, 100.0, float("inf"), 1e300])

    choices = {
        "n": lambda: draw.choice([1, 1, 2]),
        "temperature": lambda: draw.choice([0.0, 1e-6, 0.01, 0.7, 2.0]),
        "repetition_penalty": lambda: draw.choice([1e-46, 1e-40, 0.01, 0.5, 1.0, 2.0, 100.0, 1e30, 1e39]),
        "presence_penalty": lambda: draw.choice([-2.0, 0.0, 2.0]),
        "frequency_penalty": lambda: draw.choice([-2.0, 0.0, 2.0]),
        "top_p": lambda: draw.choice([1e-9, 0.5, 1.0]),
        "top_k": lambda: draw.choice([-1, 0, 1, 5]),
        "min_p": lambda: draw.choice([0.0, 0.5, 1.0]),
        "seed": lambda: draw.randint(0, 2**31),
        "stop": lambda: draw.choice([["e"], ["Harm"], ["zzz"]]),
        "stop_token_ids": tokens,
        "ignore_eos": lambda: True,
        "min_tokens": lambda: draw.randint(0, 8),
        "max_tokens": lambda: draw.choice([1, 2, 40]),
        "bad_words": lambda: draw.sample(["Harmful", "query", "I", " should", "a", "."], 3),
        "logit_bias": lambda: {token: bias() for token in tokens()},
        "allowed_token_ids": tokens,
        "skip_special_tokens": lambda: False,
        "spaces_between_special_tokens": lambda: False,
        "include_stop_str_in_output": lambda: True,
        "skip_reading_prefix_cache": lambda: True,
        "detokenize": lambda: True,
        "repetition_detection": lambda: RepetitionDetectionParams(1, 1, 2),
    }
    names = draw.sample(list(choices), draw.randint(1, 7))
    return {name: choices[name]() for name in names}


def test_whatever_the_parameters_a_flagged_answer_begins_with_the_condition_or_ends(embedded):
    draw, tokenizer, condition_text = random.Random(0), embedded.guard.tokenizer, embedded.guard.policy.condition
    condition = condition_ids(tokenizer, condition_text)
    quoted = [[{"role": "system", "content": condition_text}, *asked] for asked in embedded.conversations]
    asked = [*embedded.conversations, *quoted]  # penalties look for tokens that the prompt has, too
    flagged = [c for c, flag in zip(asked, expect(embedded, asked, 1)[1], strict=True) if flag]
    assert sum(one in quoted for one in flagged) > 10
    conversations, wanted = [], []
    while len(wanted) < REQUESTS:
        given = anything(draw, condition, len(tokenizer))
        try:
            params = SamplingParams(**given)
            check_request(params)
        except ValueError:
            continue  # refused: a 400
        except Exception as error:
            assert type(error).__name__ == "VLLMValidationError", given
            continue
        conversations.append(draw.choice(flagged))
        wanted.append(params)
    with engine(embedded, lasa={"hide_condition": False}) as llm:
        outputs = llm.chat(conversations, wanted, use_tqdm=False)
    whole = 0
    for output, params in zip(outputs, wanted, strict=True):
        for ids in (list(one.token_ids) for one in output.outputs):
            assert ids[: len(condition)] == condition[: len(ids)], params
            whole += len(ids) >= len(condition)
    assert whole > REQUESTS / 3
