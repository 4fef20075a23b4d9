from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from conftest import build_model
from lasa.alignment import consistency
from lasa.alignment.consistency import Consistency, rank_one_loss, translations
from lasa.alignment.objectives import TokenizedKTOTrainer
from lasa.errors import RecipeError
from lasa.models.hidden_states import read_hidden_states


def test_the_loss_is_lowest_where_all_directions_agree():
    one = torch.randn(8, generator=torch.Generator().manual_seed(0))
    agreeing = one * torch.tensor([[1.0], [2.0], [0.5]])
    scattered = torch.eye(8)[:3]
    singular = torch.tensor([3**0.5, 0.0, 0.0])
    assert rank_one_loss(agreeing) == pytest.approx(float(-singular.log_softmax(0)[0]), abs=1e-5)
    assert rank_one_loss(scattered) == pytest.approx(float(torch.tensor(3.0).log()), abs=1e-5)


def test_the_term_reads_the_layer_at_the_last_token_and_reaches_the_weights_below_it(tokenizer, prompts):
    model = build_model("llama", tokenizer)
    term = Consistency(2.0, 2, translations(tokenizer, prompts), per_step=1)
    loss = term.loss(model, 0, tokenizer.pad_token_id)
    states = read_hidden_states(model, tokenizer, prompts[:3], [2])[:, 0]
    assert loss.item() == pytest.approx(2 * float(rank_one_loss(states)), abs=1e-4)
    loss.backward()
    reached = [block.mlp.up_proj.weight.grad is not None for block in model.get_decoder().layers]
    assert reached == [True, True, False, False]


def test_states_are_taken_where_they_are_and_not_where_the_tokens_went_in(tokenizer, prompts, monkeypatch):
    """A model that is split over devices gives the states of a layer on that layer's device."""
    model = build_model("llama", tokenizer)
    term = Consistency(1.0, 2, translations(tokenizer, prompts), per_step=1)
    whole, reading = term.loss(model, 0, tokenizer.pad_token_id), consistency.forward_to_layers

    def split(model, layers, visit, input_ids, attention_mask):
        assert input_ids.device.type == attention_mask.device.type == "meta"
        reading(model, layers, visit, **asked)

    asked = {}
    monkeypatch.setattr(
        consistency, "forward_to_layers", lambda *_, **given: asked.update(given) or reading(*_, **given)
    )
    term.loss(model, 0, tokenizer.pad_token_id)
    monkeypatch.setattr(consistency, "forward_to_layers", split)
    monkeypatch.setattr(consistency, "input_device", lambda model: "meta")
    assert term.loss(model, 0, tokenizer.pad_token_id).item() == whole.item()


def test_translations_are_of_one_source(tokenizer, prompts):
    other = [replace(prompt, source="another") for prompt in prompts]
    assert len(translations(tokenizer, [*prompts, *other])) == 2 * len(translations(tokenizer, prompts))


def test_minimising_it_brings_translations_together(tokenizer, prompts):
    model = build_model("llama", tokenizer)
    term = Consistency(1.0, 3, translations(tokenizer, prompts), per_step=5)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(term.loss(model, 0, tokenizer.pad_token_id))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < losses[0].item()


def test_prompts_that_are_not_parallel_are_refused(tokenizer, prompts):
    with pytest.raises(RecipeError, match="needs parallel prompts"):
        translations(tokenizer, [p for p in prompts if p.language == "en"])


def test_every_batch_of_every_step_and_process_reads_queries_of_its_own():
    def numbers(process: int, first: int = 0) -> list[int]:
        state = SimpleNamespace(global_step=first)
        arguments = SimpleNamespace(gradient_accumulation_steps=2, world_size=2, process_index=process)
        trainer, found = SimpleNamespace(state=state, args=arguments, _place=(-1, 0)), []
        for state.global_step in range(first, 3):
            found += [TokenizedKTOTrainer._batch(trainer) for _ in range(2)]
        return found

    assert sorted(numbers(0) + numbers(1)) == list(range(12))
    assert numbers(1, first=2) == numbers(1)[4:]  # a training that was resumed
