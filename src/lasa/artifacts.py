"""Artefacts on disk: safetensors and JSON, written atomically, fingerprinted, verified when read. No pickle."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lasa import __version__
from lasa.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the body succeeds and vanishes when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. NaN and infinity are refused: JSON has neither."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing. The step that writes it has not finished; run it again.") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Remove it and run the step that writes it again.") from error


def write_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Read a safetensors file.

    Raises:
        ArtifactError: The file is missing, truncated or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing. The step that writes it has not finished; run it again.") from None
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Remove it and run the step that writes it again.") from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        ArtifactError: The file is missing.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing.") from None


def fingerprint(value: Any) -> str:
    """A short, stable hash of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_fingerprint(model: "nn.Module") -> str:
    """Identifies a model: names, shapes and a fixed sample of the values of all its weights.

    Reads 192 values of each tensor, so it is fast on any size and differs between a model and its fine-tuned copy.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = (_offloaded(model, name) if tensor.is_meta else tensor).detach().reshape(-1)
        stride = max(1, flat.numel() // 64)
        sample = torch.cat([flat[:64], flat[-64:], flat[::stride][:64]])
        sample = sample.view(torch.uint8) if sample.dtype.itemsize == 1 else sample.float()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sample.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _offloaded(model: "nn.Module", name: str) -> "Tensor":
    """A weight that accelerate keeps off the device until it is used."""
    from accelerate.utils import align_module_device

    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    with align_module_device(module):
        weight: Tensor = getattr(module, leaf).clone()
    return weight


def provenance(**facts: Any) -> dict[str, Any]:
    """What made an artefact: lasa and library versions, git commit, command line, and the caller's facts."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"lasa": __version__, "python": sys.version.split()[0]}
    for name in ("torch", "transformers", "trl", "peft"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "git_commit": _git_commit(), "command": sys.argv, **facts}


@cache
def _git_commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
