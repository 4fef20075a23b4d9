"""The weights that vLLM loads are those the interpreter was trained on.

vLLM fuses and shards weights, so they are compared while they are read from the checkpoint, whole and by the names
that transformers gives them.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor

from lasa.errors import ArtifactError
from lasa.files.artifacts import samples_fingerprint, weight_sample
from lasa.interpreter.probe import InterpreterConfig

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class PassingWeights:
    """Iterates over a checkpoint's weights and keeps a sample of each that passes."""

    def __init__(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self._weights = weights
        self._samples: dict[str, bytes] = {}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._weights:
            if "rotary_emb" not in name:  # old checkpoints store what is computed
                self._samples[name] = weight_sample(tensor)
            yield name, tensor

    def check(self, config: InterpreterConfig, *, tied: bool) -> None:
        """Compare what has passed with the interpreter's base model.

        Args:
            config: The interpreter's config.
            tied: Whether the model's head is its embeddings, and so not stored twice.

        Raises:
            ArtifactError: These are other weights.
        """
        samples = dict(self._samples)
        if tied and EMBEDDINGS in samples:
            samples.setdefault(HEAD, samples[EMBEDDINGS])
        found = samples_fingerprint(samples)
        if found != config.base_fingerprint:
            raise ArtifactError(
                f"This interpreter belongs to another base model: it was trained on {config.base_model!r} "
                f"(fingerprint {config.base_fingerprint}, this model's is {found}). Train one for this model, or "
                'force the pairing with "force": true beside "interpreter".'
            )
