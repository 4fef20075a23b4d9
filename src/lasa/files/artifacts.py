"""Artefacts on disk: safetensors and JSON, written atomically, fingerprinted, verified when read. No pickle."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lasa.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor, nn


TEMPORARY = ".tmp"
"""Suffix of a file that is being written; a process that is killed leaves it behind, and nothing reads it."""

FILES = "files.json"
"""The manifest that `seal_folder` writes into a folder."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the body succeeds and vanishes when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # the new name must never outlive a power cut that its content does not
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

    with atomic_path(path) as temporary, disk_errors(path):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say that a file could not be written in lasa's words; safetensors has an exception of its own for a full disk.

    Raises:
        ArtifactError: The disk is full, or the place cannot be written to.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ArtifactError(
            f"{path} cannot be written: {error}. Make room, then call the same command again; "
            "what was finished is kept."
        ) from error


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


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with the hash of its own content, under `seal`."""
    write_json(path, {**value, "seal": _seal(value)})


def read_sealed(path: Path, *, by_hand: bool = False) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the seal.

    Args:
        path: The file.
        by_hand: Also take a file without a seal, as a person may write it.

    Raises:
        ArtifactError: The file is missing, damaged, or was altered after it was written.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is not a JSON object. Restore it, or run the step that writes it again.")
    seal = value.pop("seal", None)
    if seal != _seal(value) and not (by_hand and seal is None):
        raise ArtifactError(
            f"{path} was altered after it was written (its seal does not fit its content). "
            "Restore it, or remove it and run the step that writes it again."
        )
    return value


def _seal(value: dict[str, Any]) -> str:
    return fingerprint(json.loads(json.dumps(value)))


def seal_folder(folder: Path) -> None:
    """Write `files.json` into a folder: the hash of every file in it but its card, for `check_folder`."""
    unsealed = (folder / FILES, folder / "README.md")  # the card is written again with what was measured later
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in unsealed)
    write_sealed(folder / FILES, {"files": {path.relative_to(folder).as_posix(): file_hash(path) for path in files}})


def check_folder(folder: Path) -> None:
    """Verify a folder against its `files.json`, where it has one; a folder of another origin has none.

    Raises:
        ArtifactError: A file is missing, truncated, altered, or from another folder; the message names it.
    """
    if (folder / FILES).is_file():
        for name, recorded in read_sealed(folder / FILES)["files"].items():
            check_file(folder / name, recorded, remove=folder)


def check_file(path: Path, recorded: str, remove: Path | None = None) -> None:
    """Compare a file with the hash that was recorded when it was written.

    Args:
        path: The file.
        recorded: Its hash.
        remove: What to remove to have it written again, if that is more than the file.

    Raises:
        ArtifactError: The file is missing or another one.
    """
    if not path.is_file() or file_hash(path) != recorded:
        raise ArtifactError(
            f"{path} is {'damaged, or not the file that was written here' if path.is_file() else 'missing'}. "
            f"Restore it from a copy. If there is none, remove {remove or path} and call the same command again: what "
            "wrote it, and what was made from it, is done again."
        )


def model_fingerprint(model: "nn.Module") -> str:
    """Identifies a model: names, shapes and a fixed sample of the values of all its weights.

    Reads 192 values of each tensor, so it is fast on any size and differs between a model and its fine-tuned copy.
    """
    weights = model.state_dict().items()
    return samples_fingerprint(
        {name: weight_sample(_offloaded(model, name) if tensor.is_meta else tensor) for name, tensor in weights}
    )


def weight_sample(tensor: "Tensor") -> bytes:
    """A weight's shape and 192 of its values, for `samples_fingerprint`."""
    import torch

    flat = tensor.detach().reshape(-1)
    return sample_bytes(tensor.shape, torch.cat(sampled_parts(flat)))


def sampled_parts(flat: Any) -> list[Any]:
    """The parts of a flat weight that `weight_sample` takes; of the range of its places, their places."""
    return [flat[:64], flat[-64:], flat[:: max(1, len(flat) // 64)][:64]]


def sample_bytes(shape: Iterable[int], values: "Tensor") -> bytes:
    """What `weight_sample` makes of a weight's shape and the values at those places."""
    import torch

    values = values.view(torch.uint8) if values.dtype.itemsize == 1 else values.float()
    return f"{tuple(shape)}".encode() + values.cpu().numpy().tobytes()


def samples_fingerprint(samples: Mapping[str, bytes]) -> str:
    """The fingerprint of a model whose weights have these samples, by name."""
    digest = hashlib.sha256()
    for name, sample in sorted(samples.items()):
        digest.update(name.encode() + sample)
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

    versions = {"lasa": version("lasa"), "python": sys.version.split()[0]}
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
