"""An adapter that acts behind the condition: where it acts, and that it acts nowhere else."""

import copy

import pytest
import torch
from peft import PeftModel

from conftest import FAMILIES
from guards import CONDITION, behind_condition, build_guard, conversations, lively_model
from lasa.conditioning.decision import Policy
from lasa.data.prompts import user_prompt
from lasa.errors import ArtifactError, ModelError
from lasa.evaluation.answering import LocalModel
from lasa.guard.guard import Guard
from lasa.models.activated import acting_before_labels, acting_in_rows, activation_of, stored_tokens
from lasa.models.generation import GenerationSettings, generate
from lasa.models.hidden_states import read_hidden_states
from lasa.models.loading import load_model
from lasa.models.rendering import render
from lasa.serving.batch import RunningBatch
from lasa.serving.served import ServedAnswer

SETTINGS = GenerationSettings(max_new_tokens=10)
STEPS_AGREE = 1e-4
"""Logits of a pass over whole rows and of the same rows step by step agree to this, in float32."""


@pytest.fixture(params=FAMILIES)
def base(request, tokenizer):
    return lively_model(request.param, tokenizer)


def by_hand(adapted, guard, tokenizer, messages) -> list[int]:
    """The greedy answer behind the condition without caches or batches: every token by a pass over one whole row."""
    ids = [*guard.question(messages).rendered.token_ids]
    begin = len(ids)
    ids += guard.condition
    answer: list[int] = []
    activation = activation_of(adapted)
    while len(answer) < SETTINGS.max_new_tokens:
        activation.mask = torch.arange(len(ids))[None] >= begin
        with torch.inference_mode():
            token = int(adapted(torch.tensor([ids])).logits[0, -1].argmax())
        if token in guard.ends:
            break
        answer.append(token)
        ids.append(token)
    activation.mask = None
    return answer


def test_each_row_of_a_mixed_batch_is_the_bases_or_the_adapters_alone(base, tokenizer, prompts):
    adapted = behind_condition(base, tokenizer)
    plain, guard = (build_guard(model, tokenizer, prompts) for model in (base, adapted))
    expected = plain.generate(conversations(prompts), SETTINGS)
    mixed = guard.generate(conversations(prompts), SETTINGS)
    changed = 0
    for messages, before, after in zip(conversations(prompts), expected, mixed, strict=True):
        assert before.decision == after.decision  # the prompt is read by the base
        if before.decision.action == "off":
            assert after.answer == before.answer
        else:
            assert after.answer.token_ids == by_hand(adapted, guard, tokenizer, messages)
            changed += after.answer != before.answer
    assert changed
    assert {one.decision.action for one in mixed} == {"off", "condition"}


def test_rows_that_come_and_go_have_the_adapter_that_they_have_alone(base, tokenizer, prompts):
    guard = build_guard(behind_condition(base, tokenizer), tokenizer, prompts)
    prefills = [("", "sure, ")[n % 2] for n in range(len(prompts))]
    expected = [
        guard.generate([messages], SETTINGS, prefills=[prefill])[0].answer
        for messages, prefill in zip(conversations(prompts), prefills, strict=True)
    ]
    rows = [
        ServedAnswer(guard.question(messages, prefill=prefill), SETTINGS)
        for messages, prefill in zip(conversations(prompts), prefills, strict=True)
    ]
    batch, arrivals = RunningBatch(guard), {0: rows[:3], 1: rows[3:4], 4: rows[4:9], 13: rows[9:]}
    for step in range(40):
        batch.join(arrivals.get(step, []))
        batch.step()
    assert [row.outcome().answer for row in rows] == expected
    assert {row.running.conditioned for row in rows} == {True, False}


def test_a_user_who_types_the_condition_does_not_switch_the_adapter_on(base, tokenizer):
    typed = [
        user_prompt("1", "en", CONDITION),
        user_prompt("2", "en", f"how do I paint? {CONDITION} {CONDITION}"),
        user_prompt("3", "en", "run"),
    ]
    earlier = (*typed[2].messages, {"role": "assistant", "content": f"{CONDITION} No."}, *typed[2].messages)
    asked = [*conversations(typed), earlier]
    plain, guard = (
        build_guard(model, tokenizer, typed, flagged=0) for model in (base, behind_condition(base, tokenizer))
    )
    assert guard.generate(asked, SETTINGS) == plain.generate(asked, SETTINGS)
    rows = [ServedAnswer(guard.question(messages), SETTINGS) for messages in asked]
    batch = RunningBatch(guard)
    batch.join(rows)
    while batch.rows:
        batch.step()
    assert [row.outcome() for row in rows] == plain.generate(asked, SETTINGS)


def test_nor_does_typing_it_move_where_a_flagged_row_begins(base, tokenizer):
    typed = [user_prompt(str(n), "en", f"how do I paint {n}? {CONDITION}") for n in range(2)]
    adapted = behind_condition(base, tokenizer)
    guard = build_guard(adapted, tokenizer, typed, flagged=1)
    answer = guard.generate(conversations(typed), SETTINGS)[0].answer
    assert answer.token_ids == by_hand(adapted, guard, tokenizer, typed[0].messages)


def test_without_a_guard_the_model_is_its_base(base, tokenizer, prompts):
    adapted = behind_condition(base, tokenizer)
    unguarded = LocalModel(adapted, tokenizer, None, SETTINGS)
    assert unguarded(prompts) == LocalModel(base, tokenizer, None, SETTINGS)(prompts)
    build_guard(adapted, tokenizer, prompts, flagged=1).generate(conversations(prompts), SETTINGS)
    assert unguarded(prompts) == LocalModel(base, tokenizer, None, SETTINGS)(prompts)  # nothing is left of a guard


def test_a_guard_that_fails_leaves_the_adapter_off(tokenizer, prompts, monkeypatch):
    adapted = behind_condition(lively_model("llama", tokenizer), tokenizer)
    guard = build_guard(adapted, tokenizer, prompts, flagged=1)
    monkeypatch.setattr("lasa.models.generation.GrowingAnswer.accept", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        guard.generate(conversations(prompts), SETTINGS)
    assert activation_of(adapted).mask is None


def test_the_interpreter_reads_the_bases_states(base, tokenizer, prompts):
    layers = [0, 1, 2, 3]
    adapted = behind_condition(base, tokenizer)
    read = [read_hidden_states(model, tokenizer, prompts, layers) for model in (base, adapted)]
    assert torch.equal(*read)


def test_a_reasoning_template_is_behind_its_first_condition(tokenizer, prompts):
    thinker = copy.deepcopy(tokenizer)
    thinker.add_tokens(["<think>", "</think>"])
    head, end = thinker.chat_template.split("'<|assistant|>'")
    thinker.chat_template = f"{head}'<|assistant|><think>\\n'{end}"
    adapted = behind_condition(lively_model("llama", thinker), thinker)
    guard = build_guard(adapted, thinker, prompts, flagged=1)
    answers = guard.generate(conversations(prompts), SETTINGS)
    ids = guard.question(prompts[0].messages).rendered.token_ids[: -len(guard.thinking_tail)]
    begin = len(ids)
    ids = [*ids, *guard.condition, *guard.thinking_tail, *guard.condition]
    with torch.inference_mode():
        for token in answers[0].answer.token_ids:
            activation_of(adapted).mask = torch.arange(len(ids))[None] >= begin
            assert token == int(adapted(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
    activation_of(adapted).mask = None
    rows = [ServedAnswer(guard.question(messages), SETTINGS) for messages in conversations(prompts)]
    batch = RunningBatch(guard)
    batch.join(rows)
    while batch.rows:
        batch.step()
    assert [row.outcome().answer for row in rows] == [one.answer for one in answers]


def test_right_padded_rows_act_from_their_own_condition_to_their_end(base, tokenizer, prompts):
    """As in training, where labels say where the answer begins."""
    adapted = behind_condition(base, tokenizer)
    guard = build_guard(adapted, tokenizer, prompts)
    width, answer = len(guard.condition), tokenizer("no, never", add_special_tokens=False)["input_ids"]
    begins = [guard.question(p.messages).rendered.token_ids for p in prompts[:4]]
    rows = [[*begin, *guard.condition, *answer] for begin in begins]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = torch.full_like(ids, -100)
    for row, begin in enumerate(begins):
        labels[row, len(begin) + width : len(rows[row])] = torch.tensor(answer)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.inference_mode(), acting_before_labels(adapted, width):
        together = adapted(input_ids=ids, attention_mask=mask, labels=labels).logits
    for row, begin in enumerate(begins):
        activation_of(adapted).mask = torch.arange(len(rows[row]))[None] >= len(begin)
        with torch.inference_mode():
            alone = adapted(torch.tensor([rows[row]])).logits[0]
            before = base(torch.tensor([rows[row]])).logits[0]
        activation_of(adapted).mask = None
        assert torch.allclose(together[row, : len(rows[row])], alone, atol=STEPS_AGREE)
        assert torch.allclose(together[row, : len(begin)], before[: len(begin)], atol=STEPS_AGREE)
        assert not torch.allclose(together[row, len(begin)], before[len(begin)], atol=STEPS_AGREE)


def test_it_is_stored_as_an_adapter_with_its_condition_and_loaded_closed(tokenizer, prompts, model_folder, tmp_path):
    base, _ = load_model(str(model_folder))
    adapted = behind_condition(base, tokenizer)
    adapted.peft_config["default"].base_model_name_or_path = str(model_folder)
    adapted.save_pretrained(tmp_path / "system")
    activation_of(adapted).complete(tmp_path / "system")
    loaded, _ = load_model(str(tmp_path / "system"))
    assert isinstance(loaded, PeftModel)
    assert stored_tokens(tmp_path / "system") == activation_of(loaded).tokens == activation_of(adapted).tokens
    ids = [render(tokenizer, p.messages).token_ids for p in prompts[:4]]
    assert generate(loaded, tokenizer, ids, SETTINGS) == generate(base, tokenizer, ids, SETTINGS)
    guards = [build_guard(model, tokenizer, prompts, flagged=1) for model in (adapted, loaded)]
    first, second = (guard.generate(conversations(prompts), SETTINGS) for guard in guards)
    assert [one.answer for one in first] == [one.answer for one in second]


def test_a_guard_with_another_condition_is_refused(tokenizer, prompts):
    adapted = behind_condition(lively_model("llama", tokenizer), tokenizer)
    interpreter = build_guard(adapted, tokenizer, prompts).interpreter
    with pytest.raises(ArtifactError, match="behind another condition than 'Say no"):
        Guard(adapted, tokenizer, interpreter, Policy(condition="Say no."))


def test_a_mask_that_does_not_fit_the_pass_is_an_error(tokenizer):
    adapted = behind_condition(lively_model("llama", tokenizer), tokenizer)
    with acting_in_rows(adapted, [True]), pytest.raises(ModelError, match=r"act at \(1, 1\) rows and tokens"):
        adapted(torch.tensor([[1, 2], [3, 4]]))
