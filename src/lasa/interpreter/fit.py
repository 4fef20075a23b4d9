"""An interpreter from labelled prompts: its config from the model, then read, train, calibrate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lasa.data.prompts import Prompt
from lasa.files.artifacts import fingerprint, model_fingerprint, provenance
from lasa.interpreter.calibration import Calibration, calibrate
from lasa.interpreter.probe import InterpreterConfig, SafetySemanticInterpreter, hidden_width
from lasa.interpreter.settings import CalibrationOptions, TrainingOptions
from lasa.interpreter.training import LabelledStates, Trained, train_probe
from lasa.models.hidden_states import read_hidden_states
from lasa.models.layers import check_layer, hidden_size, num_parameters
from lasa.models.positions import Position, ReadPoint
from lasa.models.rendering import template_fingerprint
from lasa.models.template import fixed_template


@dataclass(frozen=True)
class FittedInterpreter:
    """An interpreter, and what can be said about it.

    Attributes:
        interpreter: Trained and calibrated.
        statements: What holds for its thresholds, in words; see `Calibration`.
        development: Losses, epochs and AUROC on the development prompts; see `Trained.to_json`.
    """

    interpreter: SafetySemanticInterpreter
    statements: dict[str, str]
    development: dict[str, Any]


def train_interpreter(
    model: Any,
    tokenizer: Any,
    train: Sequence[Prompt],
    development: Sequence[Prompt],
    *,
    layer: int,
    position: Position = "last",
    training: TrainingOptions | None = None,
    calibration: CalibrationOptions | None = None,
    base_model: str = "",
    seed: int = 0,
) -> FittedInterpreter:
    """Read labelled prompts, train an interpreter on them, and calibrate it.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
        train: Labelled prompts, in the languages that have labels.
        development: Labelled prompts of other questions, for early stopping, temperature and thresholds.
        layer: The semantic bottleneck.
        position: Token position to read.
        training: How it is trained; the paper's settings by default.
        calibration: What is fitted besides the temperature.
        base_model: Name of the model, for people.
        seed: Of the first training.

    Raises:
        DataError: A table lacks a label, or both ask the same question.
    """
    check_layer(model, layer)

    def read(prompts: Sequence[Prompt]) -> LabelledStates:
        return LabelledStates(read_hidden_states(model, tokenizer, prompts, [layer], position)[:, 0], prompts)

    config = new_config(
        model,
        tokenizer,
        layer,
        position,
        {"train": train, "development": development},
        base_model=base_model,
        seed=seed,
    )
    trained, calibrated = fit_interpreter(
        read(train),
        read(development),
        config,
        training or TrainingOptions(),
        calibration or CalibrationOptions(),
        seed=seed,
    )
    return FittedInterpreter(trained.interpreter, calibrated.statements, trained.to_json())


def read_for(
    interpreter: SafetySemanticInterpreter, model: Any, tokenizer: Any, prompts: Sequence[Prompt]
) -> LabelledStates:
    """Prompts with their states at an interpreter's read point."""
    point = interpreter.config.read_point
    return LabelledStates(read_hidden_states(model, tokenizer, prompts, [point.layer], point.position)[:, 0], prompts)


def fit_interpreter(
    train: LabelledStates,
    development: LabelledStates,
    config: InterpreterConfig,
    training: TrainingOptions,
    calibration: CalibrationOptions,
    more_benign: LabelledStates | None = None,
    seed: int = 0,
) -> tuple[Trained, Calibration]:
    """Train on states that were read already, calibrate, and give the interpreter its calibrated config."""
    trained = train_probe(train, development, config, training, seed)
    calibrated = calibrate(trained.interpreter, development, calibration, more_benign)
    trained.interpreter.config = calibrated.config
    return trained, calibrated


def new_config(
    model: Any,
    tokenizer: Any,
    layer: int,
    position: Position,
    tables: Mapping[str, Sequence[Prompt]],
    *,
    kind: Literal["mlp", "linear", "logistic"] = "mlp",
    hidden: int = 256,
    base_model: str = "",
    seed: int = 0,
) -> InterpreterConfig:
    """The config of an interpreter that is to be trained on a model.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
        layer: Layer to read.
        position: Token position to read.
        tables: The prompts that it learns from, by name; `train` gives the languages.
        kind: A hidden layer, none, or logistic regression.
        hidden: Hidden units, at most; never over 0.2 % of the base model.
        base_model: Name of the model, for people.
        seed: Recorded in the provenance.
    """
    width, base = hidden_size(model), num_parameters(model)
    config = InterpreterConfig(
        ReadPoint(layer, position, template_fingerprint(tokenizer)),
        width,
        hidden_width(kind, width, base, hidden),
        norm="none" if kind == "logistic" else "input",
        base_model=base_model,
        base_fingerprint=model_fingerprint(model),
        chat_template=fixed_template(tokenizer),
        languages=tuple(sorted({p.language for p in tables["train"]})),
        data={name: fingerprint([p.to_json() for p in prompts]) for name, prompts in tables.items() if prompts},
        provenance=provenance(seed=seed),
    )
    size = SafetySemanticInterpreter(config).num_parameters()
    return replace(config, parameters=size, parameter_share=size / base)
