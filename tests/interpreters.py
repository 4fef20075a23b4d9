"""Synthetic hidden states in which harm is one direction, and interpreters on them."""

import torch

from lasa.data.prompts import user_prompt
from lasa.interpreter.probe import InterpreterConfig
from lasa.interpreter.training import LabelledStates
from lasa.models.positions import ReadPoint

WIDTH = 16


def labelled_states(
    queries=60, languages=("en", "zh"), *, name="q", source="test", separation=2.0, width=WIDTH, seed=0
) -> LabelledStates:
    """Gaussian states, shifted along the first axis where the prompt is harmful (every other query)."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [
        user_prompt(f"{name}{number}", language, f"{name} {number} {language}", harmful=number % 2 == 0, source=source)
        for number in range(queries)
        for language in languages
    ]
    states = torch.randn(len(prompts), width, generator=generator)
    states[:, 0] += torch.tensor([separation if p.harmful else -separation for p in prompts])
    return LabelledStates(states, prompts)


def config(hidden=8, width=WIDTH, **settings) -> InterpreterConfig:
    """A config at layer 2."""
    return InterpreterConfig(ReadPoint(2, "last", "template"), width, hidden, **settings)
