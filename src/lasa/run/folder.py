"""The run folder: one recipe, one lock, finished stages remembered, so that a run goes on where it stopped.

`stages.json` records, for every finished stage, the hash of the files it wrote: what a later stage, the server or the
report reads is what was written. It records the hash of the data files it read as well: no run goes on with other data
than it began with. It is sealed itself, and holds the hash of the run's recipe.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lasa.data.sources import source_hash
from lasa.errors import ArtifactError, RecipeError
from lasa.files.artifacts import (
    TEMPORARY,
    check_file,
    file_hash,
    provenance,
    write_json,
    write_sealed,
    write_text,
)
from lasa.files.record import RECORD, SCHEMA, read_record
from lasa.files.settings import parse_yaml, resources
from lasa.progress import say
from lasa.run.cost import added, measured
from lasa.run.recipe import Recipe, check_recipe, recipe_text

RECIPE, PROVENANCE = "recipe.yaml", "provenance.json"
LOCK = ".lock"
RECORDING = f".{RECORD}.lock"
SECOND_JUDGE = "evaluation.second_judge"
JUDGED_ANEW = "judged_anew"
"""Of a stage in the record: its answers are there, and wait for another second judge."""


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
        self._check()
        path.mkdir(parents=True, exist_ok=True)

    def _check(self) -> None:
        """Make sure that the folder is this recipe's, or new."""
        if (self.path / RECIPE).exists():
            deciding, _ = self._changes()
            if deciding == ["layer_search.layer"] and "bottleneck" not in self._stages:
                return  # no stage has read it yet
            if deciding:
                raise ArtifactError(
                    f"{self.path} holds another run: its {RECIPE} differs from this recipe in {', '.join(deciding)}. "
                    "Choose another --output, or remove the folder. (What costs and does not decide may change in a "
                    "run: batch sizes, token budgets, the device, a judge's address; and the second judge.)"
                )
        elif self.path.exists() and not all(_is_of_a_new_run(entry) for entry in self.path.iterdir()):
            raise ArtifactError(f"{self.path} is not empty and holds no run. Choose another --output.")

    def _changes(self) -> tuple[list[str], list[str]]:
        """Settings in which this call's recipe differs from the run's: those that decide results, and others.

        A second judge decides nothing: it says what it makes of answers that are there.
        """
        began = open_run(self.path)
        differing, free = _differing(began, self.recipe), resources(began) | resources(self.recipe)
        free |= {name for name in differing if name.startswith(SECOND_JUDGE)}
        return [name for name in differing if name not in free], [name for name in differing if name in free]

    def _has_another_second_judge(self) -> bool:
        began = open_run(self.path)
        deciding = set(_differing(began, self.recipe)) - resources(began) - resources(self.recipe)
        return any(name.startswith(SECOND_JUDGE) for name in deciding)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process alone.

        Raises:
            ArtifactError: Another process is using it, or it has become another run's.
        """
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ArtifactError(f"Another process is working on {self.path}. Wait for it, or stop it.") from None
        try:
            self._check()
            for leftover in self.path.rglob(f".*{TEMPORARY}"):
                leftover.unlink()
            if not (self.path / RECIPE).exists():
                write_json(self.path / PROVENANCE, provenance(began=datetime.now(UTC).isoformat(timespec="seconds")))
                self._write({})
                write_text(self.path / RECIPE, recipe_text(self.recipe))  # last: it is what makes a folder a run
            elif open_run(self.path) != self.recipe:  # in settings that may change, see `_check`
                anew = self._has_another_second_judge()
                if changed := self._changes()[1]:
                    say(f"Going on in {self.path} with this recipe's {', '.join(changed)}.")
                self._write(self._with_answers_to_judge() if anew else self._stages)
                write_text(self.path / RECIPE, recipe_text(self.recipe))
            yield
        finally:
            lock.release()

    @property
    def costs(self) -> dict[str, dict[str, float]]:
        """What each finished stage took: see `lasa.run.cost`."""
        return {
            name: {what: value for what, value in stage.items() if what not in ("files", "read", JUDGED_ANEW)}
            for name, stage in self._stages.items()
        }

    def finished(self, stage: str) -> bool:
        """Whether a stage has been completed; its files, and the data files it read, are verified.

        If one of them was removed, the stage is to be done again, and with it the later stages, which read what it
        wrote. Stages of its own kind (the evaluations of other systems) read nothing of it and stay.

        Raises:
            ArtifactError: A file of the stage is damaged, or one that it read was changed; the message names it.
        """
        stages = self._stages
        if stage not in stages or JUDGED_ANEW in stages[stage]:
            return False
        for source, recorded in stages[stage].get("read", {}).items():
            if source_hash(source) not in (recorded, None):
                raise ArtifactError(
                    f"{source} was changed after the stage {stage!r} of {self.path} read it. Restore it; for other "
                    "data choose another --output."
                )
        files = stages[stage]["files"]
        if all((self.path / name).is_file() for name in files):
            for name, recorded in files.items():
                check_file(self.path / name, recorded)
            return True
        names = list(stages)
        later = [name for name in names[names.index(stage) :] if name == stage or _kind(name) != _kind(stage)]
        self._forget(*later)
        return False

    @contextmanager
    def stage(self, name: str, *files: str, reads: Sequence[str] = ()) -> Iterator[None]:
        """Measure a stage; it counts as finished when the body ends without an error.

        Args:
            name: Its kind, and the system it works on if there are several: `evaluate base`.
            files: What it writes, relative to the run folder: each is verified before it is used later. Of a folder
                that has a manifest with hashes of its own, the manifest.
            reads: Sources of the recipe (see `lasa.data.sources`) that it reads.
        """
        before = self._stages.get(name)
        earlier = {}
        if before and JUDGED_ANEW in before:
            earlier = self.costs[name]
        elif before:
            self._forget(name)
        read = {source: found for source in reads if (found := source_hash(source))}
        with measured() as cost:
            yield
        hashes = {file: file_hash(self.path / file) for file in files}
        with FileLock(self.path / RECORDING):  # another process of the run may record a stage as well
            self._write({**self._stages, name: {**added(earlier, cost), "files": hashes, "read": read}})

    @property
    def _stages(self) -> dict[str, Any]:
        return dict(read_record(self.path)["stages"])

    def _with_answers_to_judge(self) -> dict[str, Any]:
        """The stages, those that hold answers marked; the files are verified a last time before they are written to.

        Raises:
            ArtifactError: One of them is damaged.
        """
        stages = self._stages
        for name, stage in stages.items():
            if _kind(name) == "evaluate" and JUDGED_ANEW not in stage:
                for file, recorded in stage["files"].items():
                    check_file(self.path / file, recorded)
                stages[name] = {**stage, "files": {}, JUDGED_ANEW: True}
        return stages

    def _write(self, stages: dict[str, Any]) -> None:
        recipe = _text_hash(recipe_text(self.recipe))
        write_sealed(self.path / RECORD, {"schema": SCHEMA, "recipe": recipe, "stages": stages})

    def _forget(self, *names: str) -> None:
        with FileLock(self.path / RECORDING):
            stages = self._stages
            for name in names:
                for file in stages.pop(name)["files"]:
                    (self.path / file).unlink(missing_ok=True)
            self._write(stages)


def settled(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with what it leaves to the moment: where a local model lies, and the day that a template prints.

    A run that goes on keeps the day on which it began, and is found from any working directory.
    """
    model = recipe.model
    place = Path(model.path)
    changes: dict[str, Any] = {"path": str(place.resolve())} if place.exists() else {}
    if model.chat_template and Path(model.chat_template).is_file():
        changes["chat_template"] = str(Path(model.chat_template).resolve())
    if model.template_date is None:
        began = open_run(folder).model.template_date if (folder / RECIPE).is_file() else None
        changes["template_date"] = began or datetime.now(UTC).date()
    return recipe.model_copy(update={"model": model.model_copy(update=changes)})


def open_run(path: Path) -> Recipe:
    """The recipe of an existing run.

    Raises:
        ArtifactError: The folder holds no run, or its recipe was edited.
    """
    marker = path / RECIPE
    if not marker.is_file():
        raise ArtifactError(f"{path} holds no run: {RECIPE} is missing.")
    try:
        text = marker.read_text("utf-8")
        if _text_hash(text) != read_record(path)["recipe"]:
            raise ArtifactError(
                f"{marker} was edited after the run began, so it is not what the run was made with. Restore it; for "
                "other settings, change your own recipe and choose another --output."
            )
        return check_recipe(parse_yaml(text, str(marker)), str(marker))
    except (RecipeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{marker} cannot be read ({error}). Restore it, or use another run.") from error


def _is_of_a_new_run(entry: Path) -> bool:
    """Whether a file may lie in a folder before its recipe does: the process may have been killed at its first step."""
    return entry.name in (LOCK, PROVENANCE, RECORD, RECORDING) or entry.name.endswith(TEMPORARY)


def _kind(stage: str) -> str:
    return stage.partition(" ")[0]


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _differing(one: Recipe, other: Recipe) -> list[str]:
    """Names of the settings in which two recipes differ."""
    first, second = (_flat(recipe.model_dump(mode="json")) for recipe in (one, other))
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {k: v for key, child in value.items() for k, v in _flat(child, f"{name}.{key}".lstrip(".")).items()}
