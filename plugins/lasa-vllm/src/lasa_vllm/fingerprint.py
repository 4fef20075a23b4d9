"""The weights that vLLM loads are those the interpreter was trained on.

vLLM fuses and shards weights, so they are compared while they are read from the checkpoint, whole and by the names
that transformers gives them. Experts are one weight each in a checkpoint and one for all of a layer in transformers.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from lasa.errors import ArtifactError
from lasa.files.artifacts import read_json, sample_bytes, sampled_parts, samples_fingerprint, weight_sample
from lasa.interpreter.probe import InterpreterConfig

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


@dataclass
class _Experts:
    """The sample of a weight `[experts, rows, columns]` of which one expert, or half of one, passes at a time."""

    shape: tuple[int, int, int]
    values: Tensor
    places: list[int]

    @classmethod
    def of(cls, *shape: int) -> "_Experts":
        """Nothing has passed yet."""
        places = list(chain.from_iterable(sampled_parts(range(shape[0] * shape[1] * shape[2]))))
        return cls(shape, torch.zeros(len(places)), places)  # type: ignore[arg-type]

    def pass_by(self, expert: int, row: int, piece: Tensor) -> None:
        """Take the values that lie in a piece, which begins at a row of an expert."""
        start = (expert * self.shape[1] + row) * self.shape[2]
        inside = [(n, place - start) for n, place in enumerate(self.places) if 0 <= place - start < piece.numel()]
        if inside:
            into, out_of = torch.tensor(inside).T
            self.values[into] = piece.detach().reshape(-1)[out_of.to(piece.device)].float().cpu()


class PassingWeights:
    """Iterates over a checkpoint's weights and keeps a sample of each that passes.

    Args:
        weights: By the checkpoint's names.
        experts: How many a layer has, where it has them.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]], experts: int = 0) -> None:
        self._weights, self._count = weights, experts
        self._samples: dict[str, bytes] = {}
        self._experts: dict[str, _Experts] = {}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._weights:
            if found := EXPERT.fullmatch(name):
                self._pass_expert(found[1], int(found[2]), found[3], tensor)
            elif "rotary_emb" not in name:  # old checkpoints store what is computed
                self._samples[name] = weight_sample(tensor)
            yield name, tensor

    def _pass_expert(self, layer: str, expert: int, kind: str, tensor: Tensor) -> None:
        rows, columns = tensor.shape
        name, whole = (f"{layer}.down_proj", rows) if kind == "down" else (f"{layer}.gate_up_proj", 2 * rows)
        fused = self._experts.setdefault(name, _Experts.of(self._count, whole, columns))
        fused.pass_by(expert, rows if kind == "up" else 0, tensor)

    def check(self, config: InterpreterConfig, *, tied: bool) -> None:
        """Compare what has passed with the interpreter's base model.

        Args:
            config: The interpreter's config.
            tied: Whether the model's head is its embeddings, and so not stored twice.

        Raises:
            ArtifactError: These are other weights.
        """
        samples = self._samples | {name: sample_bytes(one.shape, one.values) for name, one in self._experts.items()}
        if tied and EMBEDDINGS in samples:
            samples.setdefault(HEAD, samples[EMBEDDINGS])
        found = samples_fingerprint(samples)
        if found != config.base_fingerprint:
            raise ArtifactError(
                f"This interpreter belongs to another base model: it was trained on {config.base_model!r} "
                f"(fingerprint {config.base_fingerprint}, this model's is {found}). Train one for this model, or "
                'force the pairing with "force": true beside "interpreter".'
            )


def is_aligned(model: str, config: InterpreterConfig) -> bool:
    """Whether a model folder was trained by lasa, so that its weights are not those the interpreter was trained on.

    Raises:
        ArtifactError: It was, but from another base model than the interpreter's.
    """
    card = Path(model) / "lasa.json"
    if not card.is_file():
        return False
    base = read_json(card).get("base_fingerprint")
    if base and base != config.base_fingerprint:  # it does not say where the base was held in 4 bits
        raise ArtifactError(
            f"{model} was aligned from another base model than the one that this interpreter reads. Give the "
            'interpreter of its run, or force the pairing with "force": true beside "interpreter".'
        )
    return True
