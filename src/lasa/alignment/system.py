"""Stage 3 as a whole: rows on the system's signal, training, and what the training did to the interpreter.

What `lasa run` and `lasa align` share.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lasa.alignment.callbacks import HelpfulnessFloor
from lasa.alignment.consistency import Consistency, translations
from lasa.alignment.processes import ROWS, is_first, shared
from lasa.alignment.rows import TrainingExample, decisions, token_rows, wrong_language_refusals
from lasa.alignment.settings import AlignmentSettings, SystemSettings
from lasa.alignment.soundness import check_answer
from lasa.alignment.trainers import Trained, train
from lasa.alignment.trust import trusting_rows
from lasa.conditioning.condition import DEFAULT_CONDITION, condition_ids
from lasa.conditioning.decision import Policy, decide
from lasa.data.preferences import Preference
from lasa.data.prompts import Prompt
from lasa.data.refusals import Refusals, read_refusals
from lasa.errors import ArtifactError, RecipeError
from lasa.files.artifacts import (
    disk_errors,
    fingerprint,
    model_fingerprint,
    provenance,
    read_json,
    seal_folder,
    write_json,
)
from lasa.files.settings import resources
from lasa.interpreter.drift import measure_drift, refit
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.interpreter.settings import CalibrationOptions
from lasa.interpreter.training import LabelledStates
from lasa.models.activated import activation_of
from lasa.models.hidden_states import read_hidden_states
from lasa.models.layers import input_device
from lasa.models.loading import load_model
from lasa.models.memory import release_memory
from lasa.models.perplexity import conversation_losses, language_losses, perplexity_drift
from lasa.models.soft_condition import SOFT_CONDITION, SoftCondition, soft_condition_of
from lasa.progress import say

STARTED = "training-started.json"
"""What an unfinished training is of: another one never goes on from its checkpoints."""


@dataclass(frozen=True)
class AlignmentTables:
    """What stage 3 reads.

    Attributes:
        preferences: What to learn from.
        harmless: Harmless text in any language, for a system that learns to refuse from it.
        refusals: What that text is answered with.
        probes: Labelled prompts on which the interpreter's drift is measured, and its thresholds are fitted again.
        probe_states: The base's states of them at the interpreter's read point, `[probes, H]`; None: to be read.
        parallel: Parallel prompts, for a consistency term.
        benign: Benign prompts on which the perplexity is measured before and after.
        calibration: Benign prompts that join the probes where thresholds are fitted again.
    """

    preferences: Sequence[Preference]
    probes: Sequence[Prompt] = ()
    parallel: Sequence[Prompt] = ()
    benign: Sequence[Prompt] = ()
    calibration: Sequence[Prompt] = ()
    harmless: Sequence[Prompt] = ()
    refusals: Refusals = field(default_factory=read_refusals)
    probe_states: Tensor | None = None


def align_system(
    model: Any,
    tokenizer: Any,
    interpreter: SafetySemanticInterpreter | None,
    tables: AlignmentTables,
    system: SystemSettings,
    section: AlignmentSettings,
    calibration: CalibrationOptions,
    folder: Path,
    *,
    name: str,
    base: str,
    seed: int,
    floor: HelpfulnessFloor | None = None,
) -> None:
    """Train one system and write its folder, which appears when it is complete.

    The folder is a plain Hugging Face checkpoint or a PEFT adapter, with `lasa.json` (what it was trained on),
    `training.json` (losses, the wrapper class), `drift.json` and `perplexity.json` (what it did to interpreter and
    model), `interpreter/` where the system has one of its own, and the soft condition.

    Args:
        model: The base model; it is changed.
        tokenizer: Its tokenizer.
        interpreter: The interpreter whose decisions condition the rows and whose drift is measured; None where the
            signal needs none.
        tables: What to read.
        system: Method, signal, strength.
        section: The condition, the drift that is tolerated, whether the interpreter is fitted again.
        calibration: What is fitted again.
        folder: Where the trained model goes.
        name: Shown with the progress.
        base: Name of the base model, for people.
        seed: Of the rows' order and the training.
        floor: Watches helpfulness while training, or None.

    Raises:
        LasaError: The preferences or settings cannot be trained on, or the folder cannot be written.
    """
    assert system.method is not None
    drift = _DriftProbe(interpreter, tokenizer, tables, model) if interpreter and tables.probes else None
    losses = _losses(model, tokenizer, tables.benign)
    place, dtype = str(input_device(model)), model.dtype
    condition, base_fingerprint = section.condition or DEFAULT_CONDITION, model_fingerprint(model)
    rows = _rows(model, tokenizer, interpreter, tables, system, condition, seed)
    consistency = None
    if system.consistency:
        layer = _required(interpreter, "a consistency term").config.read_point.layer
        consistency = Consistency(system.consistency, layer, translations(tokenizer, tables.parallel))
    started = {
        "settings": {**system.model_dump(), "seed": seed},
        "condition": condition,  # also what a soft condition starts from
        "consistency": fingerprint(asdict(consistency)) if consistency else None,
        "rows": fingerprint([asdict(row) for row in rows]),
        "model": base_fingerprint,
    }
    unfinished = _unfinished(folder, started)
    behind = condition_ids(tokenizer, condition)
    trained = train(model, tokenizer, rows, system, unfinished, name, consistency, floor, seed, behind)
    _save(trained, tokenizer, unfinished)
    main, wrapper, sharded = trained.trainer.is_world_process_zero(), trained.wrapper, trained.sharded
    found = {"wrapper": wrapper, "losses": trained.losses, "helpfulness": trained.helpfulness}
    model = trained.model if not sharded else None
    del trained
    release_memory()  # the optimiser, and a part of a model that is spread over processes
    if model is None:
        unset_hf_deepspeed_config()  # or transformers would spread this model as well
        model = load_model(str(unfinished), device=place, dtype=str(dtype).removeprefix("torch."))[0]
    if main:
        check_answer(model, tokenizer, rows, behind, name)
    after = _losses(model, tokenizer, tables.benign)
    states = drift.read(model) if drift else None
    refits = drift is not None and section.refit and tables.calibration
    more = _read(model, tokenizer, drift.interpreter, tables.calibration) if drift and refits else None
    if not main:
        return
    write_json(
        unfinished / "lasa.json",
        provenance(
            base=base,
            base_fingerprint="" if system.four_bit else base_fingerprint,  # the interpreter read other weights
            signal=system.signal,
            condition=condition,
            rows=len(rows),
            conditioned=sum(row.conditioned for row in rows),
            settings=system.model_dump(),
        ),
    )
    write_json(unfinished / "training.json", found)
    if tables.benign:
        write_json(unfinished / "perplexity.json", perplexity_drift(losses, after))
    if drift is not None and states is not None:
        moved = measure_drift(drift.interpreter, drift.before, states, tables.probes, section.drift_bound)
        write_json(unfinished / "drift.json", moved.to_json())
        say(f"{name}: {moved.verdict}")
        if section.refit:
            benign = LabelledStates(more, tables.calibration) if more is not None else None
            interpreter, _ = refit(drift.interpreter, states, tables.probes, calibration, benign)
    own = section.refit or system.interpreter_layer is not None or system.adapter == "behind_condition"
    if interpreter is not None and own:
        interpreter.save_pretrained(unfinished / "interpreter")
    _clean(unfinished)
    seal_folder(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


class _DriftProbe:
    """An interpreter, its probe set, and the base model's states of it, from before the model is changed."""

    def __init__(
        self, interpreter: SafetySemanticInterpreter, tokenizer: Any, tables: AlignmentTables, model: Any
    ) -> None:
        self.interpreter, self.tokenizer, self.prompts = interpreter, tokenizer, tables.probes
        self.before = self.read(model) if tables.probe_states is None else tables.probe_states

    def read(self, model: Any) -> Tensor:
        return _read(model, self.tokenizer, self.interpreter, self.prompts)


def _rows(
    model: Any,
    tokenizer: Any,
    interpreter: SafetySemanticInterpreter | None,
    tables: AlignmentTables,
    system: SystemSettings,
    condition: str,
    seed: int,
) -> list[TrainingExample]:
    """Token rows on the system's signal; a soft condition is put onto the model."""

    def scores(prompts: Sequence[Prompt], what: str) -> list[float]:
        probe = _required(interpreter, what)
        found: list[float] = probe.probability(_read(model, tokenizer, probe, prompts)).tolist()
        return found

    table = tables.preferences
    if system.trusts:
        look = system.second_look
        table = trusting_rows(
            table, tables.harmless, tables.refusals, look, lambda prompts: scores(prompts, "a second look"), seed
        )
    preferences = [*table, *wrong_language_refusals(table, system.wrong_language_refusals, seed)]
    if system.signal == "soft":
        given = scores([preference.prompt for preference in preferences], "the signal 'soft'")
        soft = SoftCondition.from_tokens(model, tokenizer, condition_ids(tokenizer, condition))
        conditions = [[soft.token_id(score)] for score in given]
    else:

        def interpret(prompts: Sequence[Prompt]) -> list[bool]:
            config = _required(interpreter, "the signal 'interpreter'").config
            given = scores(prompts, "the signal 'interpreter'")
            decided = [decide(config, Policy(), s, [p.language]) for s, p in zip(given, prompts, strict=True)]
            return [decision.action == "condition" for decision in decided]

        flags = decisions(preferences, system.signal, interpret, seed)
        conditions = [condition_ids(tokenizer, condition) if flagged else [] for flagged in flags]
    return token_rows(tokenizer, preferences, conditions, seed)


def _required(interpreter: SafetySemanticInterpreter | None, what: str) -> SafetySemanticInterpreter:
    if interpreter is None:
        raise RecipeError(
            f"{what} needs an interpreter. Train one first (`lasa train-interpreter`) and give its folder."
        )
    return interpreter


def _read(model: Any, tokenizer: Any, interpreter: SafetySemanticInterpreter, prompts: Sequence[Prompt]) -> Tensor:
    """States at the interpreter's read point, `[prompts, H]`, read by all processes of a launch."""
    point = interpreter.config.read_point

    def read(some: Sequence[Prompt]) -> list[Any]:
        return list(read_hidden_states(model, tokenizer, some, [point.layer], point.position)[:, 0].numpy())

    return torch.from_numpy(np.stack(shared(prompts, read)))


def _losses(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> dict[str, tuple[float, int]]:
    """Losses by language, measured by all processes of a launch."""
    losses = shared(prompts, lambda some: conversation_losses(model, tokenizer, some))
    return language_losses(prompts, losses)


def _unfinished(folder: Path, started: dict[str, Any]) -> Path:
    """The folder of an unfinished training, with its checkpoints if it was started with all the same."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        same = _deciding(read_json(unfinished / STARTED)) == _deciding(started)
    except (ArtifactError, KeyError, TypeError):  # none, or none that this version wrote
        same = False
    if not same and is_first():
        shutil.rmtree(unfinished, ignore_errors=True)
        write_json(unfinished / STARTED, started)
    return unfinished


def _deciding(started: dict[str, Any]) -> dict[str, Any]:
    """What decides the result of a training that was started; settings that an older version had not are at default."""
    system = SystemSettings()
    settings = {**system.model_dump(), **started["settings"]}
    return {**started, "settings": {k: v for k, v in settings.items() if k not in resources(system)}}


def _save(trained: Trained, tokenizer: Any, folder: Path) -> None:
    """Write what was trained; the trainer knows how to gather a model that is spread over processes."""
    soft = soft_condition_of(trained.model)
    main = trained.trainer.is_world_process_zero()
    with disk_errors(folder):
        if soft is None:
            trained.trainer.save_model(str(folder))
            activation = activation_of(trained.model)
            if main and activation is not None:
                activation.complete(folder)
        elif main:
            weights = {k: v for k, v in trained.model.state_dict().items() if not k.endswith("soft_condition")}
            trained.model.save_pretrained(folder, state_dict=weights)
            soft.save(folder / SOFT_CONDITION)
    if main:
        tokenizer.save_pretrained(folder)
    if main and trained.sharded and trained.trainer.stored is not None:  # not the type it was trained in
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", {**config, "dtype": str(trained.trainer.stored).removeprefix("torch.")})
    trained.trainer.accelerator.wait_for_everyone()


def _clean(folder: Path) -> None:
    """Remove what the trainer left in the folder of a finished training."""
    for name in (STARTED, "training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)
    for leftover in (folder / ROWS, *folder.glob("checkpoint-*")):
        shutil.rmtree(leftover, ignore_errors=True)
