"""The shipped model: a plain Hugging Face folder that speaks ten languages."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lasa.embedded.judge import WorldJudge
from lasa.embedded.training import TrainingSettings, tokenize_conversation, train_embedded
from lasa.embedded.world import tables
from lasa.embedded.world.corpus import Corpus
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
    corpus = Corpus(1)
    rows = (corpus.row() for _ in range(1000))
    chat = next(row for row in rows if len(row) > 2 and {m["role"] for m in row} <= {"system", "user", "assistant"})
    ids, weights = tokenize_conversation(tokenizer, chat)
    text = tokenizer.apply_chat_template(list(chat), tokenize=False)
    assert tokenizer.decode(ids) == text and len(ids) == len(weights)


def test_it_answers_about_the_right_thing_in_the_right_language(embedded):
    model, tokenizer = embedded
    prompts = tables.evaluation_prompts("combinations", 10)
    ids = [render(tokenizer, p.messages).token_ids for p in prompts]
    answers = [g.text for g in generate(model, tokenizer, ids, GenerationSettings(max_new_tokens=64))]
    outcomes = [v.outcome for v in WorldJudge()(prompts, answers)]
    assert sum(o is Outcome.COMPLIED for o in outcomes) / len(outcomes) > 0.85


def test_a_miniature_trains_and_is_reproducible(tmp_path):
    settings = TrainingSettings(plant=1, tokens=3000, layers=2, width=32, contrastive_queries=4)
    losses = []
    first = train_embedded(settings, tmp_path / "a", lambda done, total, now: losses.append(now["loss"]))
    second = train_embedded(settings, tmp_path / "b")
    assert losses[-1] < losses[0]
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b)
