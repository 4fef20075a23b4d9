"""Flags and greedy tokens are those of the transformers guard."""

import pytest
from engines import FAMILIES, ask, engine, expect


def test_the_embedded_model_answers_100_prompts_as_over_transformers(embedded):
    expected, flags = expect(embedded)
    assert 20 <= sum(flags) <= 80
    with engine(embedded) as llm:
        assert ask(llm, embedded.conversations) == expected
    condition = embedded.guard.policy.condition
    with engine(embedded, lasa={"hide_condition": False}) as llm:
        shown = ask(llm, embedded.conversations)
    assert [one.text.startswith(condition) for one in shown] == flags


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_100_prompts_as_over_transformers(tiny, family):
    case = tiny(family)
    expected, flags = expect(case)
    assert 30 <= sum(flags) <= 70
    with engine(case) as llm:
        assert ask(llm, case.conversations) == expected


def test_a_prompt_that_is_read_in_chunks(tiny):
    case = tiny("llama")
    with engine(case, max_num_batched_tokens=64, max_num_seqs=16) as llm:  # prompts are up to 190 tokens long
        assert ask(llm, case.conversations) == expect(case)[0]


def test_prompts_whose_beginnings_are_cached(tiny):
    case = tiny("qwen3")
    with engine(case, block_size=32) as llm:
        assert ask(llm, case.conversations) == expect(case)[0]
        again = llm.chat(case.conversations, use_tqdm=False)
        assert sum(one.num_cached_tokens > 0 for one in again) > 50
        assert ask(llm, case.conversations) == expect(case)[0]


def test_requests_that_are_preempted_and_computed_again(tiny):
    case = tiny("llama")
    with engine(case, block_size=32, kv_cache_memory_bytes=2 << 20, disable_log_stats=False) as llm:
        assert ask(llm, case.conversations) == expect(case)[0]
        preempted = next(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")
    assert preempted > 0


@pytest.mark.parametrize("case", ["embedded", "gemma"])
def test_compiled(case, embedded, tiny):
    case = embedded if case == "embedded" else tiny(case)
    with engine(case, enforce_eager=False) as llm:
        assert ask(llm, case.conversations) == expect(case)[0]
