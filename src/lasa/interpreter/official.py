"""Import an interpreter that was trained with the authors' public code: `checkpoint.pt` and `config.json`.

Their stack is Linear, LayerNorm, GELU, Dropout, Linear (`mlp.0` .. `mlp.4`), with the LayerNorm on the hidden layer.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from lasa.errors import ArtifactError
from lasa.files.artifacts import read_json
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter
from lasa.models.positions import Position, ReadPoint

NAMES = {"mlp.0": "hidden", "mlp.1": "norm", "mlp.4": "out"}
"""The authors' layers that carry weights, and ours."""


def import_official(
    folder: Path, *, layer: int, position: Position, template: str, base_model: str = "", base_fingerprint: str = ""
) -> SafetySemanticInterpreter:
    """Import a checkpoint of the authors' code, with its threshold.

    Their probes read the bare prompt, without a chat template: calibrate and evaluate again at the read point that is
    given here before relying on one.

    Args:
        folder: Holds `checkpoint.pt` and `config.json`.
        layer: The layer in lasa's convention (`output_hidden_states` index). Their training reads
            `hidden_states[layer_idx]` and their inference `hidden_states[layer_idx + 1]`; the weights belong to the
            former, so it is `layer_idx` of their config unless you know better.
        position: Token position to read.
        template: Rendering fingerprint to read with (`lasa.models.rendering.template_fingerprint`).
        base_model: Name of the base model.
        base_fingerprint: Fingerprint of the base model (`lasa.files.artifacts.model_fingerprint`).

    Raises:
        ArtifactError: A file is missing or damaged, or the checkpoint is not one of that shape.
    """
    if position not in get_args(Position) or layer < 0:
        raise ArtifactError(f"There is no read point at layer {layer}, position {position!r}.")
    weights = _weights(folder / "checkpoint.pt")
    hidden, width = weights["mlp.0.weight"].shape
    config = InterpreterConfig(
        ReadPoint(layer, position, template),
        int(width),
        int(hidden),
        norm="hidden",
        threshold=_threshold(folder / "config.json"),
        base_model=base_model,
        base_fingerprint=base_fingerprint,
        provenance={"imported_from": "checkpoint of the authors' code"},
    )
    interpreter = SafetySemanticInterpreter(config)
    interpreter.config = replace(config, parameters=interpreter.num_parameters())
    ours = {f"{NAMES[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": v.float() for name, v in weights.items()}
    interpreter.load_state_dict(ours)
    return interpreter.eval()


def _weights(path: Path) -> dict[str, Tensor]:
    """The six tensors of the stack, their shapes checked."""
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing; an official interpreter is checkpoint.pt with config.json.") from None
    except Exception as error:  # a damaged or hostile pickle can raise anything
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path} cannot be read as plain weights: {reason}") from error
    weights = stored.get("model_state_dict") if isinstance(stored, dict) else None
    expected = {f"{layer}.{kind}" for layer in NAMES for kind in ("weight", "bias")}
    if not isinstance(weights, dict) or set(weights) != expected:
        found = ", ".join(sorted(map(str, weights))) if isinstance(weights, dict) else "no model_state_dict"
        raise ArtifactError(
            f"{path}: expected one hidden layer ({', '.join(sorted(expected))}), found {found}. "
            "Only the authors' one-layer interpreter can be imported; train one with lasa instead."
        )
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    hidden, width = shapes["mlp.0.weight"] if len(shapes["mlp.0.weight"]) == 2 else (0, 0)
    fitting = {
        "mlp.0.weight": (hidden, width),
        "mlp.0.bias": (hidden,),
        "mlp.1.weight": (hidden,),
        "mlp.1.bias": (hidden,),
        "mlp.4.weight": (1, hidden),
        "mlp.4.bias": (1,),
    }
    wrong = [name for name, shape in fitting.items() if shapes[name] != shape]
    if wrong:
        raise ArtifactError(f"{path}: {wrong[0]} has the shape {shapes[wrong[0]]}, which does not fit the others.")
    return weights


def _threshold(path: Path) -> float:
    """Their threshold; they flag what lies above it, we what lies at or above."""
    config = read_json(path)
    threshold = config.get("threshold") if isinstance(config, dict) else None
    if not isinstance(threshold, int | float) or not 0 <= threshold < 1:
        raise ArtifactError(f"{path}: the threshold must be a number from 0 to below 1, found {threshold!r}.")
    return math.nextafter(threshold, 2.0)
