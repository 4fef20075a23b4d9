"""The run folder: one recipe, one lock, finished stages remembered, so that a run goes on where it stopped."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lasa.artifacts import provenance, read_json, write_json, write_text
from lasa.errors import ArtifactError
from lasa.recipe import Recipe, check_recipe, recipe_text


class RunFolder:
    """A folder that belongs to one recipe.

    Args:
        path: The folder; created if it does not exist.
        recipe: The recipe of this call.

    Raises:
        ArtifactError: The folder holds another run, or something else.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        marker = path / "recipe.yaml"
        if marker.exists():
            if marker.read_text("utf-8") != recipe_text(recipe):
                raise ArtifactError(
                    f"{path} holds another run: its recipe.yaml differs from this recipe. "
                    "Choose another --output, or remove the folder."
                )
        elif path.exists() and any(entry.name != ".lock" for entry in path.iterdir()):
            raise ArtifactError(f"{path} is not empty and holds no run. Choose another --output.")
        path.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process alone.

        Raises:
            ArtifactError: Another process is using it.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ArtifactError(f"Another process is working on {self.path}. Wait for it, or stop it.") from None
        try:
            if not (self.path / "recipe.yaml").exists():
                write_text(self.path / "recipe.yaml", recipe_text(self.recipe))
                write_json(self.path / "provenance.json", provenance())
            yield
        finally:
            lock.release()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that each finished stage took."""
        state = self.path / "stages.json"
        return dict(read_json(state)) if state.exists() else {}

    def finished(self, stage: str) -> bool:
        """Whether a stage has been completed."""
        return stage in self.seconds

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; it counts as finished when the body ends without an error."""
        started = time.monotonic()
        yield
        write_json(self.path / "stages.json", {**self.seconds, name: round(time.monotonic() - started, 2)})


def interpreter_folder(run: Path, system: str) -> Path:
    """The interpreter that guards a system of a run: its own, if it was fitted again on it, else the base's."""
    own = run / "systems" / system / "interpreter"
    return own if own.is_dir() else run / "interpreter"


def open_run(path: Path) -> Recipe:
    """The recipe of an existing run.

    Raises:
        ArtifactError: The folder holds no run.
    """
    import yaml

    marker = path / "recipe.yaml"
    if not marker.is_file():
        raise ArtifactError(f"{path} holds no run: recipe.yaml is missing.")
    value: Any = yaml.safe_load(marker.read_text("utf-8"))
    return check_recipe(value, str(marker))
