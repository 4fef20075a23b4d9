from collections import Counter

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lasa.models.generation import GenerationSettings
from lasa.serving.sampling import alternatives, next_tokens

TOKENS, NUMBERS = 12, 4000


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.5, 0, 0.8), (2.0, 6, 0.6)]
)
def test_tokens_are_drawn_as_transformers_draws_them_whoever_else_is_in_the_batch(temperature, top_k, top_p):
    torch.manual_seed(0)
    logits = torch.randn(TOKENS) * 2
    expected = TemperatureLogitsWarper(temperature)(None, logits[None])
    for warper in ([TopKLogitsWarper(top_k)] if top_k else []) + ([TopPLogitsWarper(top_p)] if top_p < 1 else []):
        expected = warper(None, expected)
    settings = GenerationSettings(temperature=temperature, top_k=top_k, top_p=top_p)
    others = [GenerationSettings(), GenerationSettings(temperature=1.0, top_p=0.1)]
    numbers = [(place + 0.5) / NUMBERS for place in range(NUMBERS)]
    drawn = next_tokens(
        torch.cat([torch.randn(2, TOKENS), logits.expand(NUMBERS, -1)]),
        [*others, *[settings] * NUMBERS],
        [0.5, 0.5, *numbers],
    )[2:]
    found = Counter(drawn)
    for token, share in enumerate(expected.softmax(-1)[0].tolist()):
        assert found[token] / NUMBERS == pytest.approx(share, abs=2 / NUMBERS)


def test_no_number_draws_a_token_without_probability():
    logits = torch.tensor([[0.0, 3.0, 1.0, -torch.inf]]).expand(3, -1)
    warm = GenerationSettings(temperature=1.0)
    assert next_tokens(logits, [warm] * 3, [0.0, 1 - 2**-24, 0.5]) == [0, 2, 1]


def test_log_probabilities_are_recorded_where_they_are_asked_for():
    logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0]])
    first, second = alternatives(logits, [2, 1], [None, 2])
    assert first is None
    assert second[0] == pytest.approx(float(logits[1].log_softmax(-1)[1]))
    assert [token for token, _ in second[1]] == [1, 2]
