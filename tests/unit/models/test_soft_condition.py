import math

import pytest
import torch

from conftest import build_model
from guards import build_guard, conversations
from lasa.alignment.rows import token_rows
from lasa.conditioning.condition import condition_ids
from lasa.conditioning.decision import Policy
from lasa.data.preferences import Preference
from lasa.data.prompts import user_prompt
from lasa.errors import ArtifactError
from lasa.files.artifacts import write_tensors
from lasa.models.generation import GenerationSettings
from lasa.models.loading import load_model
from lasa.models.rendering import render
from lasa.models.soft_condition import SOFT_CONDITION, SoftCondition, soft_condition_of


@pytest.fixture
def model(tokenizer):
    return build_model("llama", tokenizer, layers=3)


def test_the_probability_scales_the_learned_embedding(model, tokenizer):
    plain = model.get_input_embeddings()(torch.tensor([5, 7]))
    soft = SoftCondition(model, torch.stack([torch.zeros(32), torch.ones(32)]))
    ids = torch.tensor([[5, soft.token_id(0.0), soft.token_id(0.25), soft.token_id(1.0), 7]])
    states = model.get_input_embeddings()(ids)[0]
    assert torch.equal(states[[0, 4]], plain)
    assert torch.allclose(states[1:4], torch.tensor([0.0, 0.25, 1.0])[:, None].expand(3, 32))


def test_a_probability_that_is_not_a_number_counts_as_one(model, tokenizer):
    soft = SoftCondition.from_tokens(model, tokenizer, condition_ids(tokenizer))
    assert soft.token_id(math.nan) == soft.token_id(1.0) == soft.first + 100


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_it_starts_between_the_generation_prompt_and_the_text(family, tokenizer):
    model = build_model(family, tokenizer)
    layer = model.get_input_embeddings()
    words = layer(torch.tensor(tokenizer("Stop here.", add_special_tokens=False)["input_ids"])).mean(0)
    last = layer(torch.tensor([tokenizer.convert_tokens_to_ids("<|assistant|>")]))[0]
    soft = SoftCondition.from_tokens(model, tokenizer, condition_ids(tokenizer, "Stop here."))
    ends = layer(torch.tensor([soft.token_id(0), soft.token_id(1)]))
    assert torch.allclose(ends, torch.stack([last, words]), atol=1e-5)


def test_training_rows_and_guard_have_the_same_tokens_and_embeddings(model, tokenizer, prompts):
    SoftCondition.from_tokens(model, tokenizer, condition_ids(tokenizer))
    guard = build_guard(model, tokenizer, prompts)
    soft = soft_condition_of(model)
    scores = [decision.score for decision in guard.decide(conversations(prompts))]
    rows = token_rows(tokenizer, [Preference(p, "a", None) for p in prompts], [[soft.token_id(s)] for s in scores], 0)
    trained = {row.query_id + row.language: row.prompt_ids for row in rows}
    seen = []

    def keep(_, args, kwargs):
        seen.append(args[0].clone())

    handle = model.get_decoder().embed_tokens.register_forward_pre_hook(keep, with_kwargs=True)
    for prompt in prompts:
        seen.clear()
        guard.generate([prompt.messages], GenerationSettings(max_new_tokens=1))
        given = torch.cat(seen, dim=1)[0].tolist()
        assert given[: len(trained[prompt.query_id + prompt.language])] == trained[prompt.query_id + prompt.language]
    handle.remove()
    assert len({tokens[-1] for tokens in trained.values()}) > 1


def test_a_guard_that_only_logs_gives_every_prompt_the_neutral_token(model, tokenizer, prompts):
    soft = SoftCondition.from_tokens(model, tokenizer, condition_ids(tokenizer))
    guard = build_guard(model, tokenizer, prompts, flagged=1, policy=Policy(harmful="log"))
    assert {tuple(guard.condition_for(d)) for d in guard.decide(conversations(prompts))} == {(soft.token_id(0),)}


def test_answers_follow_the_probability(model, tokenizer):
    """The condition is in the context: other probabilities give other next-token distributions."""
    soft = SoftCondition.from_tokens(model, tokenizer, condition_ids(tokenizer))
    ids = render(tokenizer, user_prompt("0", "en", "paint").messages).token_ids
    with torch.no_grad():
        low, high = (model(torch.tensor([[*ids, soft.token_id(p)]])).logits[0, -1] for p in (0.0, 1.0))
    assert not torch.allclose(low, high, atol=1e-3)


def test_a_stored_soft_condition_comes_back_with_its_model(model_folder, tokenizer, llama):
    soft = SoftCondition(build_model("llama", tokenizer), torch.randn(2, 32))
    soft.save(model_folder / SOFT_CONDITION)
    loaded, _ = load_model(str(model_folder))
    assert torch.equal(soft_condition_of(loaded).embeddings, soft.embeddings)


def test_a_soft_condition_of_another_width_is_refused(model_folder, tokenizer):
    write_tensors(model_folder / SOFT_CONDITION, {"embeddings": torch.zeros(2, 31)})
    with pytest.raises(ArtifactError, match="no soft condition of a model of width 32"):
        load_model(str(model_folder))
