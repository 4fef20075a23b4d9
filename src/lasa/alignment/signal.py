"""Rows on a system's signal: which of them begin with the condition, as the interpreter, the labels or a draw say."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lasa.alignment.processes import shared
from lasa.alignment.rows import TrainingExample, decisions, token_rows, wrong_language_refusals
from lasa.alignment.settings import SystemSettings
from lasa.alignment.tables import AlignmentTables
from lasa.alignment.trust import trusting_rows
from lasa.conditioning.condition import condition_ids
from lasa.conditioning.decision import Policy, decide
from lasa.data.prompts import Prompt
from lasa.errors import RecipeError
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.models.hidden_states import read_hidden_states
from lasa.models.soft_condition import SoftCondition


def rows_on_signal(
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
        probe = required(interpreter, what)
        found: list[float] = probe.probability(read_states(model, tokenizer, probe, prompts)).tolist()
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
            config = required(interpreter, "the signal 'interpreter'").config
            given = scores(prompts, "the signal 'interpreter'")
            decided = [decide(config, Policy(), s, [p.language]) for s, p in zip(given, prompts, strict=True)]
            return [decision.action == "condition" for decision in decided]

        flags = decisions(preferences, system.signal, interpret, seed)
        conditions = [condition_ids(tokenizer, condition) if flagged else [] for flagged in flags]
    return token_rows(tokenizer, preferences, conditions, seed)


def required(interpreter: SafetySemanticInterpreter | None, what: str) -> SafetySemanticInterpreter:
    """The interpreter.

    Raises:
        RecipeError: There is none.
    """
    if interpreter is None:
        raise RecipeError(
            f"{what} needs an interpreter. Train one first (`lasa train-interpreter`) and give its folder."
        )
    return interpreter


def read_states(
    model: Any, tokenizer: Any, interpreter: SafetySemanticInterpreter, prompts: Sequence[Prompt]
) -> Tensor:
    """States at the interpreter's read point, `[prompts, H]`, read by all processes of a launch."""
    point = interpreter.config.read_point

    def read(some: Sequence[Prompt]) -> list[Any]:
        return list(read_hidden_states(model, tokenizer, some, [point.layer], point.position)[:, 0].numpy())

    return torch.from_numpy(np.stack(shared(prompts, read)))
