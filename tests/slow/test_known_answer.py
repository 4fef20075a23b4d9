"""Miniatures of the embedded model, planted at a known layer or nowhere: the search must give the right answer.

The second control: harm, labelled in two languages, can be read in two others where meaning was planted, and not at
an early layer.
"""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from lasa.bottleneck.search import find_bottleneck
from lasa.data.world import tables
from lasa.data.world.corpus import World
from lasa.data.world.deeds import CONCEPTS
from lasa.embedded.training import TrainingSettings, train_embedded
from lasa.interpreter.probe import InterpreterConfig
from lasa.interpreter.settings import TrainingOptions
from lasa.interpreter.training import LabelledStates, train_probe
from lasa.models.hidden_states import read_hidden_states
from lasa.models.layers import hidden_size
from lasa.models.loading import load_model
from lasa.models.positions import ReadPoint
from lasa.models.rendering import template_fingerprint

pytestmark = pytest.mark.slow

LABELLED, OTHER = ("en", "zh"), ("it", "sw")
WORLD = World(languages=LABELLED + OTHER, concept_share=0.4)
SETTINGS = TrainingSettings(
    steps=700, tokens=1536, prompts=48, width=64, vocabulary=1024, world=WORLD, planting=(0.25, 0.9)
)


LAYERS = range(1, SETTINGS.layers + 1)


class Miniature:
    """A trained miniature and its hidden states."""

    def __init__(self, folder):
        self.model, self.tokenizer = load_model(str(folder))

    def states(self, prompts, layers):
        return read_hidden_states(self.model, self.tokenizer, prompts, layers)

    def bottleneck(self):
        prompts = tables.parallel_prompts(held_out_deeds(), WORLD.languages, templates=(0,))
        return find_bottleneck(self.states(prompts, LAYERS), LAYERS, prompts, SETTINGS.layers)

    def accuracy_in_other_languages(self, layer):
        """Balanced accuracy of an interpreter of the labelled languages, on held-out deeds in the others."""

        def labelled(deeds):
            circumstances = [None, *CONCEPTS.modifiers[:5]]
            varied = [replace(deed, modifier=modifier) for deed in deeds for modifier in circumstances]
            prompts = tables.parallel_prompts(varied, LABELLED, same_template=False)
            return LabelledStates(self.states(prompts, [layer])[:, 0], prompts)

        point = ReadPoint(layer, "last", template_fingerprint(self.tokenizer))
        train = [deed for number, deed in enumerate(WORLD.deeds) if number % 5]
        trained = train_probe(
            labelled(train),
            labelled(WORLD.deeds[::5]),
            InterpreterConfig(point, hidden_size(self.model), 32),
            TrainingOptions(learning_rate=2e-3, epochs=80, patience=80, seeds=1, noise=0.5),
        )
        prompts = tables.parallel_prompts(held_out_deeds(), OTHER)
        with torch.no_grad():
            flagged = trained.interpreter(self.states(prompts, [layer])[:, 0]) > 0
        return balanced_accuracy_score([p.harmful for p in prompts], flagged)


def held_out_deeds():
    """The deeds of the miniature world that no text of its training mentions."""
    verbs, objects = {d.verb for d in WORLD.deeds}, {d.object for d in WORLD.deeds}
    return [d for d in CONCEPTS.deeds if d.share != "train" and d.verb in verbs and d.object in objects]


@pytest.fixture(scope="module", params=[4, 6, 8])
def planted(request, tmp_path_factory):
    """The layer that was planted at, and the miniature."""
    folder = tmp_path_factory.mktemp(f"planted-{request.param}")
    train_embedded(replace(SETTINGS, plant=request.param), folder)
    return request.param, Miniature(folder)


def test_the_search_finds_the_planted_layer(planted):
    layer, miniature = planted
    found = miniature.bottleneck()
    assert found.layer == layer, found.verdict


def test_harm_can_be_read_in_unlabelled_languages_at_the_planted_layer_and_not_at_an_early_one(planted):
    layer, miniature = planted
    there, early = miniature.accuracy_in_other_languages(layer), miniature.accuracy_in_other_languages(1)
    assert there > 0.9 and there > early + 0.2, (there, early)


def test_the_search_finds_nothing_where_nothing_was_planted(tmp_path):
    train_embedded(replace(SETTINGS, plant=None), tmp_path)
    found = Miniature(tmp_path).bottleneck()
    assert found.layer is None, found.verdict
