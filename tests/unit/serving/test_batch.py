import copy
from itertools import count, pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from guards import CONDITION, build_guard, conversations, lively_model
from lasa.conditioning.decision import Policy
from lasa.errors import GuardError
from lasa.guard.refusals import REFUSALS
from lasa.interpreter.heads import AnswerHead
from lasa.models.generation import GenerationSettings
from lasa.serving.batch import RunningBatch
from lasa.serving.cache import COLUMNS_AHEAD
from lasa.serving.served import ServedAnswer

SETTINGS = GenerationSettings(max_new_tokens=10)
KINDS = {"llama": {}, "qwen2": {}, "qwen3": {}, "gemma": {}, "mistral": {"sliding_window": 16}}


def ask(guard, messages, settings=SETTINGS, **rest):
    return ServedAnswer(guard.question(messages), settings, **rest)


def run(batch, arrivals):
    """Let rows join at given steps, and run until all have ended."""
    step = 0
    while batch.rows or step <= max(arrivals):
        if step in arrivals:
            batch.join(arrivals[step])
        batch.step()
        step += 1


@pytest.mark.parametrize("family", KINDS)
def test_rows_that_come_and_go_say_what_they_say_alone(family, tokenizer, prompts):
    guard = build_guard(lively_model(family, tokenizer, **KINDS[family]), tokenizer, prompts)
    expected = [guard.generate([messages], SETTINGS)[0] for messages in conversations(prompts)]
    rows = [ask(guard, messages) for messages in conversations(prompts)]
    batch = RunningBatch(guard)
    run(batch, {0: rows[:3], 1: rows[3:4], 4: rows[4:9], 13: rows[9:12], 14: rows[12:]})
    assert [row.outcome().answer for row in rows] == [one.answer for one in expected]
    assert [row.outcome().decision.action for row in rows] == [one.decision.action for one in expected]
    assert {one.decision.action for one in expected} == {"off", "condition"}


def test_what_a_row_must_begin_with_is_taken_as_it_joins(tokenizer, prompts):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts)
    prefills = [("", "sure, ", "first of all, ")[n % 3] for n in range(len(prompts))]
    rows = [
        ServedAnswer(guard.question(messages, prefill=prefill), SETTINGS)
        for messages, prefill in zip(conversations(prompts), prefills, strict=True)
    ]
    batch = RunningBatch(guard)
    batch.join(rows)
    assert all(len(row.running.state.token_ids) == 1 for row in rows)
    run(batch, {1: []})
    expected = guard.generate(conversations(prompts), SETTINGS, prefills=prefills)
    assert [row.outcome().answer for row in rows] == [one.answer for one in expected]
    assert {(row.running.conditioned, bool(prefill)) for row, prefill in zip(rows, prefills, strict=True)} == {
        (flagged, prefilled) for flagged in (True, False) for prefilled in (True, False)
    }


def test_a_join_that_fails_in_its_second_pass_leaves_the_batch_as_it_was(tokenizer, prompts, monkeypatch):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts)
    batch = RunningBatch(guard)
    forward, passes = batch._forward, []

    def broken(ids, mask, cache):
        passes.append(ids.shape)
        if len(passes) == 2:
            raise RuntimeError("out of memory")
        return forward(ids, mask, cache)

    monkeypatch.setattr(batch, "_forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        batch.join([ask(guard, messages) for messages in conversations(prompts)])
    assert batch.rows == [] and batch._cache.get_seq_length() == 0


def test_a_row_that_is_dropped_leaves_the_others_alone_and_its_columns_are_freed(tokenizer, prompts):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts)
    rows = [ask(guard, messages) for messages in conversations(prompts)]
    longest = max(rows, key=lambda row: len(row.question.rendered.token_ids))
    batch = RunningBatch(guard)
    batch.join(rows)
    batch.step()
    width = batch._cache.get_seq_length()
    batch.drop([longest])
    assert batch._cache.get_seq_length() < width
    run(batch, {0: [ask(guard, prompts[0].messages)]})
    alone = guard.generate(conversations(prompts), SETTINGS)
    for row, one in zip(rows, alone, strict=True):
        if row is not longest:
            assert row.outcome().answer == one.answer


def test_reasoning_templates_are_conditioned_as_by_the_guard(tokenizer, prompts):
    thinker = copy.deepcopy(tokenizer)
    thinker.add_tokens(["<think>", "</think>"])
    head, end = thinker.chat_template.split("'<|assistant|>'")
    thinker.chat_template = f"{head}'<|assistant|><think>\\n'{end}"
    guard = build_guard(lively_model("llama", thinker), thinker, prompts)
    rows = [ask(guard, messages) for messages in conversations(prompts)]
    run(RunningBatch(guard), {0: rows[:6], 3: rows[6:]})
    expected = guard.generate(conversations(prompts), SETTINGS)
    assert [row.outcome().answer for row in rows] == [one.answer for one in expected]
    assert {one.decision.action for one in expected} == {"off", "condition"}


def test_answers_are_read_again_as_by_the_guard_and_only_cleared_text_is_shown(tokenizer, prompts):
    policy = Policy(condition=CONDITION, reread_every=3)
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts, flagged=0.2, policy=policy)
    rows = [ServedAnswer(guard.question(messages, "sw"), SETTINGS) for messages in conversations(prompts)]
    batch = RunningBatch(guard)
    batch.join(rows)
    shown = {id(row): [row.released] for row in rows}
    while batch.rows:
        batch.step()
        for row in rows:
            shown[id(row)].append(row.released)
    expected = guard.generate(conversations(prompts), SETTINGS, languages=["sw"] * len(prompts))
    stopped = [row for row in rows if row.running.stopped]
    assert 0 < len(stopped) < len(rows)
    for row, one in zip(rows, expected, strict=True):
        assert row.outcome().answer == one.answer
        assert all(later.startswith(earlier) for earlier, later in pairwise(shown[id(row)]))
    plain = build_guard(lively_model("llama", tokenizer), tokenizer, prompts, flagged=0.2)
    for row in stopped:
        tokens = plain.generate([row.question.messages], SETTINGS)[0].answer.token_ids
        read = (len(row.running.state.token_ids) - 1) // 3 * 3
        assert tokenizer.decode(tokens[:read], skip_special_tokens=True).startswith(row.released)


def test_a_stream_holds_back_the_window_so_that_nothing_that_is_stopped_was_sent(tokenizer, prompts):
    policy = Policy(condition=CONDITION, reread_every=1)
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts, flagged=0, policy=policy)
    plain = guard.generate(conversations(prompts), SETTINGS)
    torch.manual_seed(1)
    window = 3
    guard.interpreter.answers = torch.nn.Linear(guard.interpreter.config.width, 1)
    for threshold in (1.0, 0.5, 0.4):
        object.__setattr__(guard.interpreter.config, "answers", AnswerHead(window, threshold))
        rows = [ServedAnswer(guard.question(messages, "sw"), SETTINGS) for messages in conversations(prompts)]
        batch = RunningBatch(guard)
        batch.join(rows)
        shown = {id(row): "" for row in rows}
        while batch.rows:
            batch.step()
            shown |= {id(row): row.released for row in rows if not row.ended}
        for row, before in zip(rows, plain, strict=True):
            if not row.running.stopped:
                assert row.outcome().answer == before.answer
            read = len(row.running.state.token_ids)
            held = max(0, read - window) if row.running.stopped else read
            text = tokenizer.decode(before.answer.token_ids[:held], skip_special_tokens=True)
            assert text.startswith(shown[id(row)].rstrip("\N{REPLACEMENT CHARACTER}"))
    assert any(row.running.stopped for row in rows)


def test_settings_are_the_rows_own_and_a_seed_repeats_in_any_company(tokenizer, prompts):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts, flagged=0)
    wild = GenerationSettings(max_new_tokens=10, temperature=3.0, top_p=0.9, seed=7)

    def answer(others):
        row = ask(guard, prompts[0].messages, wild)
        run(RunningBatch(guard), {0: [row], 2: [ask(guard, p.messages, SETTINGS) for p in others]})
        return row.outcome().answer.token_ids

    assert answer([]) == answer(prompts[:6])
    greedy = guard.generate([prompts[0].messages], SETTINGS)[0].answer.token_ids
    assert answer([]) != greedy


def test_a_small_nucleus_draws_the_likeliest_token(tokenizer, prompts):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts)
    row = ask(guard, prompts[0].messages, GenerationSettings(max_new_tokens=10, temperature=1.0, top_p=1e-9))
    run(RunningBatch(guard), {0: [row]})
    assert row.outcome().answer == guard.generate([prompts[0].messages], SETTINGS)[0].answer


@pytest.mark.parametrize("temperature", [1e-7, 1e-40, 1e-300])
def test_a_temperature_near_zero_is_greedy_and_breaks_nobodys_answer(temperature, tokenizer, prompts):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts)
    cold = GenerationSettings(max_new_tokens=10, temperature=temperature)
    rows = [ask(guard, prompts[0].messages, cold), ask(guard, prompts[6].messages)]
    run(RunningBatch(guard), {0: rows})
    expected = guard.generate([prompts[0].messages, prompts[6].messages], SETTINGS)
    assert [row.outcome().answer for row in rows] == [one.answer for one in expected]


def test_logprobs_are_those_of_the_model(tokenizer, prompts):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts, flagged=0)
    row = ask(guard, prompts[0].messages, top_logprobs=3)
    run(RunningBatch(guard), {0: [row, ask(guard, prompts[6].messages)]})
    ids = [*row.question.rendered.token_ids, *row.outcome().answer.token_ids]
    with torch.inference_mode():
        logprobs = guard.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for offset, one in enumerate(row.logprobs):
        expected = logprobs[len(row.question.rendered.token_ids) + offset - 1]
        assert one.logprob == pytest.approx(float(expected[one.token]), abs=1e-3)
        assert [token for token, _ in one.top] == expected.topk(3).indices.tolist()
    assert [one.token for one in row.logprobs] == row.outcome().answer.token_ids


def test_a_refused_row_never_joins_and_shows_nothing(tokenizer, prompts):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts, flagged=1, policy=Policy("refuse"))
    row = ServedAnswer(guard.question(prompts[0].messages, "sw"), SETTINGS)
    batch = RunningBatch(guard)
    batch.join([row])
    assert batch.rows == []
    assert row.released == ""
    assert row.outcome().answer.text == REFUSALS["sw"]


def test_rows_that_cannot_be_read_do_not_join(tokenizer, prompts, monkeypatch):
    from contextlib import nullcontext

    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts)
    batch = RunningBatch(guard)
    batch.join([ask(guard, prompts[0].messages)])
    monkeypatch.setattr("lasa.serving.batch.observe_layers", lambda *_: nullcontext())
    unread = ask(guard, prompts[1].messages)
    with pytest.raises(GuardError, match="never read"):
        batch.join([unread])
    assert len(batch.rows) == 1
    with pytest.raises(GuardError):
        unread.outcome()


class FailsAt(TorchDispatchMode):
    """Lets so many operations of torch pass, and fails once at the next."""

    def __init__(self, count):
        super().__init__()
        self.left = count

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == -1:
            raise torch.OutOfMemoryError
        return operation(*args, **(kwargs or {}))


def state_of(batch):
    """Everything that a batch goes on from, copied."""
    shown = [states.clone() for layer in batch._cache.layers for states in (layer.keys, layer.values)]
    return [list(batch.rows), [list(row.running.state.token_ids) for row in batch.rows], [batch._mask.clone(), *shown]]


def try_until_it_works(batch, work):
    """Let it fail at every thirteenth operation, then work; how often it failed."""
    before = state_of(batch)
    for tried in count():
        try:
            with FailsAt(13 * tried):
                work()
            return tried
        except torch.OutOfMemoryError:
            after = state_of(batch)
            assert after[:2] == before[:2]
            assert all(torch.equal(*both) for both in zip(after[2], before[2], strict=True))


def test_wherever_a_join_or_a_step_fails_the_batch_is_as_it_was(tokenizer, prompts):
    guard = build_guard(lively_model("llama", tokenizer, layers=2), tokenizer, prompts)
    warm = GenerationSettings(max_new_tokens=10, temperature=1.0, seed=3)
    answers = []
    for failing in (False, True):
        rows = [ask(guard, prompt.messages, warm if place % 2 else SETTINGS) for place, prompt in enumerate(prompts)]
        batch = RunningBatch(guard)
        batch.join(rows[:5])
        for work in (batch.step, lambda to=batch, new=rows[5:]: to.join(new), batch.step):
            if failing:
                assert try_until_it_works(batch, work) > 10
            else:
                work()
        run(batch, {0: []})
        answers.append([row.outcome().answer for row in rows])
    assert answers[0] == answers[1]


def test_answers_to_one_question_are_read_once(tokenizer, prompts, monkeypatch):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts)
    batch, passes = RunningBatch(guard), []
    forward = batch._forward
    monkeypatch.setattr(batch, "_forward", lambda *given: passes.append(tuple(given[0].shape)) or forward(*given))
    for prompt in prompts[:4]:
        question = guard.question(prompt.messages)
        rows = [ServedAnswer(question, SETTINGS) for _ in range(3)]
        passes.clear()
        batch.join([*rows, ask(guard, prompts[6].messages)])
        assert passes[0][0] == 2
        run(batch, {0: []})
        (expected,) = guard.generate([prompt.messages], SETTINGS)
        assert [row.outcome().answer for row in rows] == [expected.answer] * 3


@pytest.mark.parametrize("position", ["last", "mean_user"])
def test_a_long_prompt_is_read_in_pieces_while_the_others_go_on(tokenizer, prompts, monkeypatch, position):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts, position=position)
    texts = [prompts[6].messages, prompts[9].messages]
    expected = guard.generate(texts, SETTINGS, prefills=["", "sure, "])
    batch, widths = RunningBatch(guard), []
    forward = batch._forward
    monkeypatch.setattr(batch, "_forward", lambda *given: widths.append(given[0].shape[1]) or forward(*given))
    first = ask(guard, texts[0])
    second = ServedAnswer(guard.question(texts[1], prefill="sure, "), SETTINGS)
    batch.join([first])
    widths.clear()
    for _ in batch.joining([second], 10):
        if batch.rows:
            batch.step()
    assert max(widths) <= max(10, guard.longest_forced(second.question.prefill_ids))
    assert widths.count(1) > 3  # so often wrote the first one meanwhile
    run(batch, {0: []})
    assert [row.outcome().answer for row in (first, second)] == [one.answer for one in expected]
    assert second.outcome().decision.score == pytest.approx(expected[1].decision.score, abs=1e-4)


def test_memory_follows_what_the_rows_hold(tokenizer, prompts):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts, flagged=0)
    rows = [ask(guard, prompt.messages) for prompt in prompts]
    batch = RunningBatch(guard)
    batch.join(rows)
    for _ in range(5):
        batch.step()
        width = batch._cache.get_seq_length()
        assert batch._cache.reserved <= 1.5 * len(batch.rows) * (width + COLUMNS_AHEAD)
    batch.drop(rows[1:])
    assert batch._cache.reserved <= 1.5 * (batch._cache.get_seq_length() + COLUMNS_AHEAD)
    batch.drop(rows[:1])
    assert batch._cache.reserved == 0


def test_what_a_row_left_behind_does_not_reach_the_next(tokenizer, prompts):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts, flagged=0)
    long = max(prompts, key=lambda prompt: len(prompt.text))
    batch, stays = RunningBatch(guard), ask(guard, prompts[0].messages)
    goes = ask(guard, long.messages)
    batch.join([stays, goes])
    batch.step()
    with torch.inference_mode():
        for layer in batch._cache.layers:
            layer.keys[1], layer.values[1] = torch.nan, torch.nan
    batch.drop([goes])
    new = [ask(guard, long.messages), ask(guard, prompts[3].messages)]
    run(batch, {0: new})
    expected = guard.generate([row.question.messages for row in (stays, *new)], SETTINGS)
    assert [row.outcome().answer for row in (stays, *new)] == [one.answer for one in expected]


def test_a_step_writes_one_column_and_copies_nothing(tokenizer, prompts):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts, flagged=0)
    batch = RunningBatch(guard)
    batch.join([ask(guard, prompt.messages) for prompt in prompts])
    batch.step()
    places = {layer.keys.untyped_storage().data_ptr() for layer in batch._cache.layers}
    for _ in range(4):
        batch.step()
    assert {layer.keys.untyped_storage().data_ptr() for layer in batch._cache.layers} == places
