"""Where a model's files are: shipped, in a local folder, a GGUF file, or on the Hugging Face Hub through its cache."""

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lasa.errors import ModelError

SHIPPED = {"embedded": "planted", "embedded-sister": "sister"}
"""Models inside the package; the sister was trained in the same way, without a planted bottleneck."""

NEEDED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"]
"""Files of a repository that are fetched; code among them is run if it is trusted only."""

HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
HUB_GGUF = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)/([^/]+\.gguf)")


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model on this machine.

    Attributes:
        folder: Their folder.
        gguf: Name of the GGUF file in it that holds everything, or None.
        name: What to record as the model's name: an absolute path, or its id on the Hub.
    """

    folder: Path
    gguf: str | None
    name: str

    @property
    def gguf_option(self) -> dict[str, str]:
        """What transformers' loaders are told about a GGUF file."""
        return {"gguf_file": self.gguf} if self.gguf else {}


def find_model(name: str, revision: str | None = None) -> ModelFiles:
    """The files of a model, fetched into the Hub's cache where they are not on this machine.

    Args:
        name: A shipped model, a local folder, a local GGUF file, an id on the Hub, or `owner/name/FILE.gguf` there.
        revision: Commit, tag or branch, for an id on the Hub.

    Raises:
        ModelError: There is no such model, it is gated, it cannot be reached, or its folder holds no model.
    """
    if name in SHIPPED:
        return ModelFiles(Path(str(files("lasa.embedded").joinpath("weights", SHIPPED[name]))), None, name)
    place = Path(name)
    if place.is_file() and place.suffix == ".gguf":
        return ModelFiles(place.resolve().parent, place.name, str(place.resolve()))
    if place.is_dir():
        if not (place / "config.json").is_file() and not (place / "adapter_config.json").is_file():
            raise ModelError(f"{name} holds no model: config.json is missing.")
        return ModelFiles(place.resolve(), None, str(place.resolve()))
    if (gguf := HUB_GGUF.fullmatch(name)) is not None:
        return ModelFiles(_fetched(gguf[1], revision, gguf[2]), gguf[2], name)
    if HUB_ID.fullmatch(name) and place.suffix != ".gguf":
        return ModelFiles(_fetched(name, revision), None, name)
    raise ModelError(f"No such model folder: {name}. {_WHAT}")


def model_folder(name: str, revision: str | None = None) -> Path:
    """The folder of a model; see `find_model`."""
    return find_model(name, revision).folder


_WHAT = (
    "Give the path of a local Hugging Face model (config.json, weights, tokenizer), an id on the Hugging Face Hub, a "
    f"GGUF file, or one of: {', '.join(SHIPPED)}."
)


def _fetched(name: str, revision: str | None, file: str | None = None) -> Path:
    try:
        if file is not None:
            return Path(hf_hub_download(name, file, revision=revision)).parent
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=NEEDED, ignore_patterns="original/*"))
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated on the Hugging Face Hub. Accept its terms on its page there, log in (hf auth login), and "
            "call the same command again."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name} has no revision {revision!r} on the Hugging Face Hub.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"No such model folder: {name}, and no such model on the Hugging Face Hub (or it is private: hf auth "
            f"login). {_WHAT}"
        ) from error
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"No such model folder: {name}; and as an id on the Hugging Face Hub it is not in the cache of this "
            f"machine and cannot be fetched ({str(error).splitlines()[0]:.200}). {_WHAT}"
        ) from error
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{name} on the Hugging Face Hub holds no model that transformers reads: no config.json.")
    return folder
