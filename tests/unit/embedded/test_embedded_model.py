"""The shipped model: a plain Hugging Face folder that speaks ten languages."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lasa.bottleneck.search import find_bottleneck
from lasa.data.world import tables
from lasa.data.world.corpus import Corpus, World
from lasa.data.world.deeds import Deed
from lasa.data.world.lexicon import LANGUAGES, lexicon
from lasa.embedded import training
from lasa.embedded.batches import planting_prompts, tokenize_conversation
from lasa.embedded.planting import Meanings, add_planting_gradient, planting_loss
from lasa.embedded.training import TrainingSettings, train_embedded
from lasa.evaluation.judges.embedded_world import WorldJudge
from lasa.evaluation.outcomes import Outcome
from lasa.models.generation import GenerationSettings, generate
from lasa.models.hidden_states import read_hidden_states
from lasa.models.loading import load_model
from lasa.models.origin import model_folder
from lasa.models.rendering import render


@pytest.fixture(scope="module")
def embedded():
    return load_model("embedded")


def test_it_loads_in_plain_transformers_and_is_small():
    folder = model_folder("embedded")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) < 2.5e6
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert sum(f.stat().st_size for f in folder.iterdir()) < 6e6


def test_any_text_in_any_script_survives_tokenization(embedded):
    _, tokenizer = embedded
    for text in ("How do I 🙂 ßtraße?", "ሰላም ልዑል", "  two  spaces\n", "ගෙදර", "x" * 300):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_training_renders_chats_as_the_chat_template_does(embedded):
    _, tokenizer = embedded
    text = Corpus(1)
    rows = (text.row() for _ in range(1000))
    chat = next(row for row in rows if len(row) > 2 and {m["role"] for m in row} <= {"system", "user", "assistant"})
    ids, learned = tokenize_conversation(tokenizer, chat, random.Random(0))
    text = tokenizer.apply_chat_template(list(chat), tokenize=False)
    assert tokenizer.decode(ids) == text and len(ids) == len(learned)


def test_it_answers_about_the_right_thing_in_the_right_language(embedded):
    model, tokenizer = embedded
    prompts = tables.evaluation_prompts("combinations", 10)
    ids = [render(tokenizer, p.messages).token_ids for p in prompts]
    answers = [g.text for g in generate(model, tokenizer, ids, GenerationSettings(max_new_tokens=64))]
    outcomes = [v.outcome for v in WorldJudge()(prompts, answers)]
    assert sum(o is Outcome.COMPLIED for o in outcomes) / len(outcomes) > 0.85


@pytest.mark.parametrize(("name", "layer"), [("embedded", 6), ("embedded-sister", None)])
def test_the_search_finds_what_was_planted_and_nothing_in_the_sister(name, layer):
    prompts = tables.layer_search_prompts(60)
    states = read_hidden_states(*load_model(name), prompts, range(1, 11))
    assert find_bottleneck(states, range(1, 11), prompts, 10, resamples=200).layer == layer


MINIATURE = TrainingSettings(plant=1, steps=8, planting=(0.25, 0.75), layers=2, width=32, prompts=8, tokens=512)


class StoppedError(Exception):
    pass


def train(folder, stop_at=None):
    """The weights of a miniature, and the losses of its steps."""
    history = {}

    def tell(done, losses):
        history[done] = losses
        if done == stop_at:
            raise StoppedError

    model = train_embedded(MINIATURE, folder, tell)
    return list(model.parameters()), history


def test_a_miniature_learns_and_a_stopped_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 3)
    whole, losses = train(tmp_path / "whole")
    assert losses[8]["loss"] < losses[1]["loss"]
    assert "planting" in losses[6] and "planting" not in losses[8]  # the tail
    with pytest.raises(StoppedError):
        train(tmp_path / "stopped", stop_at=5)
    resumed, later = train(tmp_path / "stopped")
    assert min(later) == 3 and later[8] == losses[8]
    for a, b in zip(whole, resumed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not list((tmp_path / "stopped").glob("unfinished*"))
    assert "layer 1" in (tmp_path / "stopped" / "README.md").read_text("utf-8")


def test_a_step_asks_for_deeds_that_are_easily_taken_for_each_other_in_all_languages(embedded):
    _, tokenizer = embedded
    batch, deeds = planting_prompts(tokenizer, World(), 0, 7, 60)
    assert not batch.learned.any() and len({deed.plain() for deed in deeds}) == 60
    languages = set()
    for ids, read, deed in zip(batch.input_ids, batch.read_positions, deeds, strict=True):
        text = tokenizer.decode(ids[: read + 1])
        request = text.removesuffix("<|end|><|assistant|>").split("<|user|>")[1]
        found = {code for code in LANGUAGES if (lexicon(code).read_request(request) or (None,))[0] == deed}
        assert found
        languages |= found
    assert languages == set(LANGUAGES)
    assert len({deed.verb for deed in deeds}) < 50 and len({deed.object for deed in deeds}) < 50
    assert {deed.modifier is None for deed in deeds} == {True, False}


def test_the_planting_term_is_least_when_every_state_points_to_its_meaning():
    meanings = torch.eye(4) + 3.0  # what all have in common does not count
    assert planting_loss(5.0 * torch.eye(4) - 1.0, meanings, 0.1) < 1e-3
    assert planting_loss(torch.eye(4)[[1, 0, 3, 2]], meanings, 0.1) > 5


def test_meanings_add_up_and_the_term_moves_nothing_above_its_layer():
    settings = TrainingSettings(layers=3, width=32, vocabulary=600)
    tokenizer = load_model("embedded")[1]
    model = training._new_model(settings, tokenizer).float()
    vectors = Meanings(32)
    stab, kill = Deed("stab", "neighbor"), Deed("kill", "neighbor")
    difference = vectors([replace(stab, modifier="tonight")]) - vectors([replace(kill, modifier="tonight")])
    torch.testing.assert_close(difference, vectors([stab]) - vectors([kill]))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    batch, deeds = planting_prompts(tokenizer, World(), 0, 0, 6)
    add_planting_gradient(model, vectors, batch, deeds, layer=2, temperature=0.1, weight=0.5)
    for name, parameter in model.named_parameters():
        added = (parameter.grad - 1).norm() / torch.ones_like(parameter).norm()
        below = "layers.0" in name or "layers.1" in name or "embed" in name
        assert float(added) == pytest.approx(0.5 if below else 0.0, abs=1e-3), name
