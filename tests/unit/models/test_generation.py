import pytest
import torch
from transformers import GenerationConfig

from conftest import FAMILIES
from guards import lively_model
from lasa.models.generation import GenerationSettings, GrowingAnswer, generate, terminators
from lasa.models.rendering import render

SHORT = GenerationSettings(max_new_tokens=12)


@pytest.fixture(scope="module", params=FAMILIES)
def any_lively(request, tokenizer):
    return lively_model(request.param, tokenizer)


@pytest.fixture(scope="module")
def lively(tokenizer):
    return lively_model("llama", tokenizer)


def plain(model, tokenizer, ids, tokens):
    """What transformers itself generates after some tokens, alone, greedily, up to a terminator."""
    ends = terminators(model, tokenizer)
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=ends, pad_token_id=0)
    with torch.inference_mode():
        output = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), generation_config=config)
    found = output[0, len(ids) :].tolist()
    return found[: next((i for i, token in enumerate(found) if token in ends), len(found))]


def ids_of(tokenizer, prompts):
    return [render(tokenizer, prompt.messages).token_ids for prompt in prompts]


def forced_rows(tokenizer, model, settings, forced, limits=None):
    ends = terminators(model, tokenizer)
    limits = limits or [settings.max_new_tokens] * len(forced)
    return lambda: [
        GrowingAnswer(tokenizer, ends, limit, settings.stop, one) for one, limit in zip(forced, limits, strict=True)
    ]


def test_the_models_used_here_say_different_things(any_lively, tokenizer, prompts):
    answers = [one.token_ids for one in generate(any_lively, tokenizer, ids_of(tokenizer, prompts[:5]), SHORT)]
    assert len({tuple(answer) for answer in answers}) == 5
    assert sum(len(set(answer)) for answer in answers) > 0.6 * sum(map(len, answers))


def test_free_rows_are_what_transformers_generates_alone(any_lively, tokenizer, prompts):
    ids = ids_of(tokenizer, prompts[:5])
    answers = generate(any_lively, tokenizer, ids, SHORT)
    assert [one.token_ids for one in answers] == [plain(any_lively, tokenizer, row, 12) for row in ids]


def test_forced_rows_continue_what_was_forced_beside_free_rows(any_lively, tokenizer, prompts):
    ids = ids_of(tokenizer, prompts[:4])
    forced = [[], [30, 31, 32], [40], []]
    answers = generate(
        any_lively, tokenizer, ids, SHORT, forced_rows(tokenizer, any_lively, SHORT, forced), longest_forced=3
    )
    expected = [plain(any_lively, tokenizer, [*row, *extra], 12) for row, extra in zip(ids, forced, strict=True)]
    assert [one.token_ids for one in answers] == expected


def test_a_model_with_a_static_cache_gives_the_same_tokens(tokenizer, prompts):
    model = lively_model("llama", tokenizer)
    ids = ids_of(tokenizer, prompts[:3])
    rows = [[], [30, 31], []]
    dynamic = generate(model, tokenizer, ids, SHORT, forced_rows(tokenizer, model, SHORT, rows), 2)
    model.generation_config.cache_implementation = "static"
    model.generation_config.disable_compile = True
    static = generate(model, tokenizer, ids, SHORT, forced_rows(tokenizer, model, SHORT, rows), 2)
    assert [one.token_ids for one in static] == [one.token_ids for one in dynamic]


def test_prompts_of_one_token(lively, tokenizer):
    answers = generate(lively, tokenizer, [[30], [31], [32, 33]], SHORT)
    assert [a.token_ids for a in answers] == [plain(lively, tokenizer, ids, 12) for ids in ([30], [31], [32, 33])]


def test_the_limit_counts_the_rows_own_tokens_only(lively, tokenizer, prompts):
    ids = ids_of(tokenizer, prompts[:2])
    rows = forced_rows(tokenizer, lively, SHORT, [list(range(30, 50)), []])
    forced, free = generate(lively, tokenizer, ids, SHORT, rows, longest_forced=20)
    assert len(forced.token_ids) == len(free.token_ids) == 12
    assert forced.finish_reason == free.finish_reason == "length"


def test_rows_that_end_early_leave_the_others_alone(lively, tokenizer, prompts):
    ids = ids_of(tokenizer, prompts[:3])
    whole = generate(lively, tokenizer, ids, SHORT)
    cut = generate(lively, tokenizer, ids, SHORT, forced_rows(tokenizer, lively, SHORT, [[], [], []], [3, 12, 0]))
    assert cut[0].token_ids == whole[0].token_ids[:3]
    assert cut[1] == whole[1]
    assert cut[2].token_ids == []


def test_a_terminator_ends_the_answer_and_is_not_part_of_it(lively, tokenizer, prompts):
    ids = ids_of(tokenizer, prompts[:2])
    whole = generate(lively, tokenizer, ids, SHORT)
    end = whole[0].token_ids[4]
    ends = [*terminators(lively, tokenizer), end]
    rows = [GrowingAnswer(tokenizer, ends, 12) for _ in ids]
    first, second = generate(lively, tokenizer, ids, SHORT, lambda: rows)
    assert first.token_ids == whole[0].token_ids[: whole[0].token_ids.index(end)]
    assert first.finish_reason == "stop"
    expected = whole[1].token_ids
    assert second.token_ids == (expected[: expected.index(end)] if end in expected else expected)


def test_an_empty_answer(lively, tokenizer, prompts):
    ids = ids_of(tokenizer, prompts[:1])
    first = generate(lively, tokenizer, ids, SHORT)[0].token_ids[0]
    rows = [GrowingAnswer(tokenizer, [first], 12)]
    (answer,) = generate(lively, tokenizer, ids, SHORT, lambda: rows)
    assert (answer.token_ids, answer.text, answer.finish_reason) == ([], "", "stop")
    (nothing,) = generate(lively, tokenizer, ids, GenerationSettings(max_new_tokens=0))
    assert (nothing.text, nothing.finish_reason) == ("", "length")


def test_a_stop_text_ends_the_answer_before_it_and_one_in_the_forced_text_does_not(lively, tokenizer, prompts):
    ids = ids_of(tokenizer, prompts[:1])
    forced = tokenizer("paint the house", add_special_tokens=False)["input_ids"]
    (whole,) = generate(lively, tokenizer, ids, SHORT, forced_rows(tokenizer, lively, SHORT, [forced]), len(forced))
    stop = next(char for char in whole.text[2:] if char.isprintable() and char != "\N{REPLACEMENT CHARACTER}")
    stopping = GenerationSettings(max_new_tokens=12, stop=("the house", stop))
    rows = forced_rows(tokenizer, lively, stopping, [forced])
    (answer,) = generate(lively, tokenizer, ids, stopping, rows, len(forced))
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.finish_reason == "stop"
    assert len(answer.token_ids) < len(whole.token_ids)


def test_text_kept_while_decoding_is_the_answers_text(tokenizer):
    ids = tokenizer("how do I water 你好 the plant END and more", add_special_tokens=False)["input_ids"]
    row = GrowingAnswer(tokenizer, [2], 100, ("END",))
    for token in ids:
        row.accept(token)
    assert row.text == row.generated().text == "how do I water 你好 the plant "


def test_sampling_repeats_with_its_seed_and_differs_without(lively, tokenizer, prompts):
    ids = ids_of(tokenizer, prompts[:3])

    def draw(seed):
        settings = GenerationSettings(max_new_tokens=12, temperature=5.0, top_p=0.99, seed=seed)
        return [one.token_ids for one in generate(lively, tokenizer, ids, settings)]

    assert draw(1) == draw(1) != draw(2)


def test_without_a_seed_the_callers_generator_decides(lively, tokenizer, prompts):
    ids = ids_of(tokenizer, prompts[:1])
    settings = GenerationSettings(max_new_tokens=12, temperature=5.0)
    torch.manual_seed(3)
    first = generate(lively, tokenizer, ids, settings)
    torch.manual_seed(3)
    assert generate(lively, tokenizer, ids, settings) == first


def test_a_small_nucleus_is_greedy(lively, tokenizer, prompts):
    ids = ids_of(tokenizer, prompts[:3])
    nucleus = generate(lively, tokenizer, ids, GenerationSettings(max_new_tokens=8, temperature=1.0, top_p=1e-6))
    assert nucleus == generate(lively, tokenizer, ids, GenerationSettings(max_new_tokens=8))


def test_what_the_model_folder_adds_on_its_own_is_off(tokenizer, prompts):
    model = lively_model("llama", tokenizer)
    ids = ids_of(tokenizer, prompts[:2])
    expected = generate(model, tokenizer, ids, SHORT)
    model.generation_config.num_beams = 3
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.use_cache = False
    assert generate(model, tokenizer, ids, SHORT) == expected


@pytest.mark.parametrize("opener", [[30], [30, 31]])
def test_tokens_are_inserted_once_after_an_opener(tokenizer, opener):
    row = GrowingAnswer(tokenizer, [2], 100, inserted=[40, 41], insert_after=[opener])
    for token in [7, *opener]:
        row.accept(token)
    assert row.next_forced == 40
    for token in [40, 41, *opener, 8]:
        row.accept(token)
    assert row.next_forced is None
    assert row.token_ids == [7, *opener, *opener, 8]


@pytest.mark.parametrize("opener", [[30], [30, 31]])
def test_tokens_are_inserted_after_an_opener_among_the_forced_ones_too(tokenizer, opener):
    row = GrowingAnswer(tokenizer, [2], 100, forced=[7, *opener, 9], inserted=[40, 41], insert_after=[opener])
    said = []
    while row.next_forced is not None:
        said.append(row.next_forced)
        row.accept(said[-1])
    assert said == [7, *opener, 40, 41, 9]
    for token in [*opener, 8]:
        row.accept(token)
    assert row.token_ids == [*opener, 8]
