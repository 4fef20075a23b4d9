"""The traps of TRL 1.16's trainers, by the letters of the reference: none of them may be in what the model learns from.

Where TRL still behaves as it did, that is pinned as well, so that a change is noticed.
"""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from conftest import FAMILIES, build_model
from guards import CONDITION, build_guard
from lasa.alignment import methods, trainers
from lasa.alignment.arguments import trainer_arguments
from lasa.alignment.rows import kl_partners, separate_partners, token_rows
from lasa.alignment.settings import SystemSettings
from lasa.conditioning.condition import condition_ids
from lasa.data.preferences import Preference
from lasa.data.prompts import user_prompt
from lasa.models.generation import GenerationSettings
from lasa.models.rendering import render

BATCH = 4


def table(count=8):
    return [
        Preference(user_prompt(str(n), "en", f"how do I paint house {n}", harmful=n % 2 == 0), f"yes {n}", f"no {n}")
        for n in range(count)
    ]


def make_rows(tokenizer, count=8):
    condition = condition_ids(tokenizer, CONDITION)
    return token_rows(tokenizer, table(count), [condition if n % 2 == 0 else [] for n in range(count)], seed=0)


def kto_trainer(model, tokenizer, rows, folder: Path, **changes):
    settings = SystemSettings(**{"method": "kto", "batch_size": BATCH, "warmup_steps": 0, **changes})
    arguments = trainer_arguments(model, settings, folder, 0)
    return trainers.make_trainer(model, tokenizer, rows, settings, arguments)


@pytest.fixture
def model(tokenizer):
    return build_model("llama", tokenizer, layers=2)


def test_a_the_condition_opens_the_assistants_turn_and_no_second_turn_follows(tokenizer):
    row = next(row for row in make_rows(tokenizer) if row.conditioned and row.desirable)
    text = tokenizer.decode(row.prompt_ids + row.completion_ids)
    assert text.count("<|assistant|>") == 1
    assert text.endswith(f"<|assistant|>{CONDITION}yes {row.query_id}<|end|>")


def test_b_there_is_exactly_one_bos(tokenizer):
    adding = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>", chat_template=tokenizer.chat_template
    )
    for row in make_rows(adding):
        assert (row.prompt_ids + row.completion_ids).count(adding.bos_token_id) == 1


def test_c_every_kl_completion_is_of_another_query_and_batches_keep_the_prepared_order(tokenizer, model, tmp_path):
    rows = make_rows(tokenizer, 12)
    kept = separate_partners(rows, BATCH)
    owner = {tuple(row.completion_ids): row.query_id for row in rows}
    loader = kto_trainer(model, tokenizer, rows, tmp_path).get_train_dataloader()
    place = 0
    for batch in loader:
        for index in range(len(batch["label"])):
            ids = batch["input_ids"][index][batch["attention_mask"][index].bool()].tolist()
            partner = batch["KL_input_ids"][index][batch["KL_completion_mask"][index].bool()].tolist()
            assert ids == kept[place].prompt_ids + kept[place].completion_ids
            assert owner[tuple(partner)] != kept[place].query_id
            place += 1
    assert place == len(kept)


def test_d_batches_hold_desirable_and_undesirable_answers(tokenizer):
    kept = separate_partners(make_rows(tokenizer, 40), BATCH)
    batches = [{row.desirable for row in kept[start : start + BATCH]} for start in range(0, len(kept), BATCH)]
    assert sum(len(labels) == 2 for labels in batches) > len(batches) / 2


@pytest.mark.parametrize("answer", ["no", " no", "\nno"])
def test_e_the_condition_never_merges_into_the_first_token_of_the_answer(tokenizer, answer):
    one = Preference(user_prompt("0", "en", "paint", harmful=True), answer, None)
    condition = condition_ids(tokenizer, CONDITION)
    row = token_rows(tokenizer, [one], [condition], seed=0)[0]
    prompt = render(tokenizer, one.prompt.messages).token_ids
    assert row.prompt_ids == prompt + condition
    assert row.completion_ids[:-1] == tokenizer(answer, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("rank", [0, 2])
def test_f_the_reference_is_never_loaded_again(tokenizer, model, tmp_path, rank):
    model.config._name_or_path = str(tmp_path / "there-is-no-such-model")
    trainer = kto_trainer(model, tokenizer, make_rows(tokenizer), tmp_path, lora_rank=rank)
    assert trainer.ref_model is None
    assert list(getattr(trainer.model, "peft_config", {"default": None})) == ["default"]  # no copy of the adapter


def test_f_precomputed_log_probabilities_are_those_of_the_base(tokenizer, model, tmp_path):
    rows = make_rows(tokenizer)
    data = kto_trainer(model, tokenizer, rows, tmp_path).train_dataset
    for row in data:
        own, partner = (log_probability(model, row["prompt_ids"], row[f"{kind}completion_ids"]) for kind in ("", "KL_"))
        assert row["ref_logps"] == pytest.approx(own, abs=1e-3)
        assert row["ref_KL_logps"] == pytest.approx(partner, abs=1e-3)


@pytest.mark.parametrize("method", ["kto", "dpo"])
def test_f_before_a_model_is_sharded_its_own_log_probabilities_are_the_reference(
    method, tokenizer, model, tmp_path, monkeypatch
):
    rows = make_rows(tokenizer)
    usual = kto_trainer(model, tokenizer, rows, tmp_path / "usual", method=method)
    for module in (trainers, methods):
        monkeypatch.setattr(module, "sharding", lambda: True)
    monkeypatch.setattr(trainers, "hand_over", lambda model, dtype: None)
    model.config._name_or_path = str(tmp_path / "there-is-no-such-model")
    spread = kto_trainer(model, tokenizer, rows, tmp_path / "spread", method=method)
    assert spread.ref_model is None
    names = [name for name in usual.train_dataset.column_names if name.startswith("ref_")]
    assert len(names) == 2
    for name in names:
        assert spread.train_dataset[name] == pytest.approx(usual.train_dataset[name], abs=1e-3)
    losses = [one.compute_loss(model, next(iter(one.get_train_dataloader()))).item() for one in (usual, spread)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_no_reference_is_computed_for_rows_that_the_steps_never_reach(tokenizer, model, tmp_path):
    rows = make_rows(tokenizer, 40)
    whole, part = (
        kto_trainer(model, tokenizer, rows, tmp_path / name, accumulate=2, steps=steps).train_dataset
        for name, steps in (("whole", None), ("part", 3))
    )
    assert len(part) == 3 * 2 * BATCH < len(whole)
    assert part.to_list() == whole.select(range(len(part))).to_list()


def log_probability(model, prompt_ids, completion_ids) -> float:
    """Of a completion after a prompt, computed the plain way."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + completion_ids])).logits[0, :-1].log_softmax(-1)
    start = len(prompt_ids) - 1
    return logits[range(start, start + len(completion_ids)), completion_ids].sum().item()


def test_g_an_answer_ends_with_the_turns_terminator_not_with_eos(tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert end != tokenizer.eos_token_id
    for row in make_rows(tokenizer):
        assert row.completion_ids[-1] == end
        assert tokenizer.eos_token_id not in row.completion_ids


def test_h_what_reaches_the_batch_is_exactly_the_tokens_of_the_rows(tokenizer, model, tmp_path):
    rows = make_rows(tokenizer)
    kept = separate_partners(rows, BATCH)
    partners = kl_partners(kept, BATCH)
    batch = next(iter(kto_trainer(model, tokenizer, rows, tmp_path).get_train_dataloader()))
    assert "conditioned" not in batch and "language" not in batch  # whatever matters must be in the tokens
    for index in range(BATCH):
        row, mask = kept[index], batch["attention_mask"][index].bool()
        assert batch["input_ids"][index][mask].tolist() == row.prompt_ids + row.completion_ids
        completion = batch["completion_mask"][index].bool()
        assert batch["input_ids"][index][completion].tolist() == row.completion_ids
        kl = batch["KL_completion_mask"][index].bool()
        assert batch["KL_input_ids"][index][kl].tolist() == partners[index]
        assert batch["label"][index] == row.desirable


def test_sft_learns_the_completion_and_nothing_of_the_prompt(tokenizer, model, tmp_path):
    rows = make_rows(tokenizer)
    settings = SystemSettings(method="sft", batch_size=BATCH, steps=1)
    trainer = trainers.make_trainer(model, tokenizer, rows, settings, trainer_arguments(model, settings, tmp_path, 0))
    expected = {tuple(row.prompt_ids + row.completion_ids): row.completion_ids for row in rows if row.desirable}
    seen = 0
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            whole = tuple(token for token in ids.tolist() if token != tokenizer.pad_token_id)
            assert labels[labels != -100].tolist() == expected[whole]
            seen += 1
    assert seen == len(expected)


def test_dpo_compares_the_completions_of_one_prompt(tokenizer, model, tmp_path):
    rows = make_rows(tokenizer)
    settings = SystemSettings(method="dpo", batch_size=BATCH)
    trainer = trainers.make_trainer(model, tokenizer, rows, settings, trainer_arguments(model, settings, tmp_path, 0))
    expected = {(tuple(row.prompt_ids), tuple(row.completion_ids), row.desirable) for row in rows}
    batch = next(iter(trainer.get_train_dataloader()))
    desirable = [True] * BATCH + [False] * BATCH  # TRL puts the chosen ones first
    given = zip(batch["input_ids"], batch["attention_mask"].bool(), batch["completion_mask"].bool(), strict=True)
    for good, (ids, here, completion) in zip(desirable, given, strict=True):
        assert (tuple(ids[here & ~completion].tolist()), tuple(ids[completion].tolist()), good) in expected


def test_the_anchor_is_the_likelihood_of_the_desirable_answers_and_costs_no_further_pass(tokenizer, model, tmp_path):
    rows = make_rows(tokenizer)
    trainer = kto_trainer(model, tokenizer, rows, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    good = [row for row in separate_partners(rows, BATCH)[:BATCH] if row.desirable]
    tokens = sum(len(row.completion_ids) for row in good)
    expected = -sum(log_probability(model, row.prompt_ids, row.completion_ids) for row in good) / tokens
    passes: list[int] = []
    watch = model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    plain = trainer.compute_loss(model, batch)
    without = len(passes)
    trainer.answer_weight = 0.5
    anchored = trainer.compute_loss(model, batch)
    watch.remove()
    assert 0 < len(good) < BATCH
    assert (anchored - plain).item() == pytest.approx(0.5 * expected, abs=1e-4)
    assert len(passes) == 2 * without  # processes that share a sharded model must make the same passes
    batch["label"][:] = False
    assert torch.isfinite(trainer.compute_loss(model, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_guard_gives_the_model_the_tokens_of_the_training_rows(family, tokenizer, prompts):
    """Id by id, with and without condition, on every family."""
    model = build_model(family, tokenizer)
    guard = build_guard(model, tokenizer, prompts)
    decided = guard.decide([prompt.messages for prompt in prompts])
    conditions = [guard.condition if decision.flagged else [] for decision in decided]
    rows = token_rows(tokenizer, [Preference(prompt, "a", None) for prompt in prompts], conditions, seed=0)
    trained = {(row.query_id, row.language): row.prompt_ids for row in rows}
    assert {row.conditioned for row in rows} == {True, False}
    given: list[torch.Tensor] = []
    watch = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: given.append(args[0].clone()))
    for prompt in prompts:
        given.clear()
        guard.generate([prompt.messages], GenerationSettings(max_new_tokens=2))
        expected = trained[prompt.query_id, prompt.language]
        assert torch.cat(given, dim=1)[0].tolist()[: len(expected)] == expected
    watch.remove()
