"""The shipped model: a plain Hugging Face folder that speaks ten languages."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lasa.embedded import training
from lasa.embedded.batches import paired_prompts, tokenize_conversation
from lasa.embedded.judge import WorldJudge
from lasa.embedded.training import TrainingSettings, train_embedded
from lasa.embedded.world import corpus, tables
from lasa.embedded.world.corpus import Corpus, World
from lasa.embedded.world.lexicon import LANGUAGES, lexicon
from lasa.evaluation.outcomes import Outcome
from lasa.generation import GenerationSettings, generate
from lasa.models import load_model, model_folder
from lasa.rendering import render


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


MINIATURE = TrainingSettings(plant=1, steps=8, planting=(0.25, 0.75), layers=2, width=32, pairs=4, tokens=512)


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
    assert "contrastive" in losses[6] and "contrastive" not in losses[8]  # the tail
    with pytest.raises(StoppedError):
        train(tmp_path / "stopped", stop_at=5)
    resumed, later = train(tmp_path / "stopped")
    assert min(later) == 3 and later[8] == losses[8]
    for a, b in zip(whole, resumed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not list((tmp_path / "stopped").glob("unfinished*"))
    assert "layer 1" in (tmp_path / "stopped" / "README.md").read_text("utf-8")


def users_words(tokenizer, batch):
    """What the user says in each row of a batch of prompts."""
    texts = [tokenizer.decode(ids[: read + 1]) for ids, read in zip(batch.input_ids, batch.read_positions, strict=True)]
    assert all(text.endswith("<|end|><|assistant|>") for text in texts)
    return [text.split("<|user|>")[1].split("<|end|>")[0] for text in texts]


def test_a_step_asks_for_the_same_deed_in_two_languages(embedded, monkeypatch):
    _, tokenizer = embedded
    monkeypatch.setattr(corpus, "JUDGEMENT_SHARE", 0.0)
    batch = paired_prompts(tokenizer, World(), 0, 7, 6)
    assert not batch.learned.any()
    found = []
    for request in users_words(tokenizer, batch):
        reading = [(code, lexicon(code).read_request(request)) for code in LANGUAGES]
        found += [(code, read[0]) for code, read in reading if read]
    assert [deed for _, deed in found[0::2]] == [deed for _, deed in found[1::2]]
    assert all(a != b for (a, _), (b, _) in zip(found[0::2], found[1::2], strict=True))
    assert len({deed for _, deed in found}) == 6 and len({deed.modifier for _, deed in found}) == 1


def test_a_question_of_right_and_wrong_is_a_prompt_about_the_same_deed(embedded, monkeypatch):
    _, tokenizer = embedded
    monkeypatch.setattr(corpus, "JUDGEMENT_SHARE", 1.0)
    prompts = users_words(tokenizer, paired_prompts(tokenizer, World(), 0, 7, 40))
    requests = [any(lexicon(code).read_request(prompt) for code in LANGUAGES) for prompt in prompts]
    assert requests[0::2] == requests[1::2]  # senseless deeds are neither right nor wrong: they are asked for
    assert 0 < sum(requests) < len(requests)


def test_the_contrastive_term_is_least_when_translations_agree():
    states = torch.eye(3).repeat_interleave(2, 0)[:, None, :]  # three deeds, two rows each
    reads = torch.zeros(6, dtype=torch.long)
    shuffled = states[[0, 2, 1, 4, 3, 5]]
    assert training._contrastive_loss(states, reads, 0.1) < 1e-3
    assert training._contrastive_loss(shuffled, reads, 0.1) > 5
