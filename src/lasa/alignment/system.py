"""Stage 3 as a whole: rows on the system's signal, training, and what the training did to the interpreter.

What `lasa run` and `lasa align` share.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lasa.alignment.callbacks import HelpfulnessFloor
from lasa.alignment.checkpoint import clean_up, save_trained, unfinished_folder
from lasa.alignment.consistency import Consistency, translations
from lasa.alignment.processes import shared
from lasa.alignment.settings import AlignmentSettings, SystemSettings
from lasa.alignment.signal import read_states, required, rows_on_signal
from lasa.alignment.soundness import check_answer
from lasa.alignment.tables import AlignmentTables
from lasa.alignment.trainers import train
from lasa.conditioning.condition import DEFAULT_CONDITION, condition_ids
from lasa.data.prompts import Prompt
from lasa.files.artifacts import (
    fingerprint,
    model_fingerprint,
    provenance,
    seal_folder,
    write_json,
)
from lasa.interpreter.drift import measure_drift, refit
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.interpreter.settings import CalibrationOptions
from lasa.interpreter.training import LabelledStates
from lasa.models.layers import input_device
from lasa.models.loading import load_model
from lasa.models.memory import release_memory
from lasa.models.perplexity import conversation_losses, language_losses, perplexity_drift
from lasa.progress import say


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
    rows = rows_on_signal(model, tokenizer, interpreter, tables, system, condition, seed)
    consistency = None
    if system.consistency:
        layer = required(interpreter, "a consistency term").config.read_point.layer
        consistency = Consistency(system.consistency, layer, translations(tokenizer, tables.parallel))
    started = {
        "settings": {**system.model_dump(), "seed": seed},
        "condition": condition,  # also what a soft condition starts from
        "consistency": fingerprint(asdict(consistency)) if consistency else None,
        "rows": fingerprint([asdict(row) for row in rows]),
        "model": base_fingerprint,
    }
    unfinished = unfinished_folder(folder, started)
    behind = condition_ids(tokenizer, condition)
    trained = train(model, tokenizer, rows, system, unfinished, name, consistency, floor, seed, behind)
    save_trained(trained, tokenizer, unfinished)
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
    more = read_states(model, tokenizer, drift.interpreter, tables.calibration) if drift and refits else None
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
    clean_up(unfinished)
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
        return read_states(model, self.tokenizer, self.interpreter, self.prompts)


def _losses(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> dict[str, tuple[float, int]]:
    """Losses by language, measured by all processes of a launch."""
    losses = shared(prompts, lambda some: conversation_losses(model, tokenizer, some))
    return language_losses(prompts, losses)
