"""The recipe: every setting of a run, with its unit, default and bound. YAML, read by a safe loader."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lasa.errors import RecipeError
from lasa.evaluation.judge_settings import JudgeSetting, JudgeSettings, judge_from_text
from lasa.evaluation.perturbations import Perturbation
from lasa.languages import canonical_language

Fraction = Annotated[float, Field(gt=0, lt=1)]

BATCH_TOKENS = 65_536
"""Tokens of prompts and answers that a batch of an evaluation holds at once, where nothing else is said."""

MAX_VALUES = 100_000
"""Characters of a recipe, and values once its aliases are written out; a recipe has some hundred."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """The base model."""

    path: str = Field(description="Local Hugging Face folder, or `embedded`")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = Field("auto", description="`auto` or a torch device")
    trust_remote_code: bool = Field(False, description="Run code that the model folder brings along")


class LayerSearchSection(_Section):
    """Stage 1."""

    prompts: list[str] = Field(min_length=1, description="Sources of parallel prompts")
    position: Literal["last", "last_user", "mean_user"] = "last"
    layer: int | None = Field(None, ge=0, description="Use this layer instead of the one that the search finds")
    resamples: int = Field(1000, ge=50, le=100_000, description="Bootstrap resamples over queries")


class InterpreterSection(_Section):
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
    kind: Literal["mlp", "linear"] = "mlp"
    hidden: int = Field(256, ge=1, le=8192, description="Hidden units, at most; never over 0.2 % of the base model")
    noise: float = Field(0.0, ge=0, le=5, description="Input noise, in standard deviations of each feature")
    learning_rate: float = Field(1e-3, gt=0, le=1)
    epochs: int = Field(20, ge=1, le=1000)
    patience: int = Field(4, ge=1, description="Stop after this many epochs without a better development loss")
    seeds: int = Field(3, ge=1, le=50, description="Independent trainings, the best on development data is used")
    false_refusals: Fraction | None = Field(
        None, description="Target share of flagged benign prompts; without it the best balanced accuracy"
    )
    per_language: bool = Field(
        False, description="With false_refusals: a threshold for each development language that has enough prompts"
    )
    controversial_misses: Fraction | None = Field(
        None, description="Target share of harmful prompts below the controversial band; without it no band"
    )
    perturbed_copies: list[Perturbation] = Field(
        default_factory=list, description="Train on copies of the training prompts that are changed in these ways, too"
    )
    perturbations: list[Perturbation] = Field(
        default_factory=lambda: list(get_args(Perturbation)), description="Changes to measure the headline benchmark on"
    )
    all_layers: bool = Field(False, description="Measure an interpreter at every layer, for information only")
    early_layer: int = Field(1, ge=0, description="Layer of the control interpreter")
    allow_leaks: bool = Field(False, description="Evaluate in spite of training queries in the benchmarks")

    @model_validator(mode="after")
    def _thresholds(self) -> "InterpreterSection":
        if (self.per_language or self.calibration) and self.false_refusals is None:
            raise ValueError("per_language and calibration need a target: set false_refusals")
        return self


class SystemSection(_Section):
    """One system: how it is trained, if it is, and whether the guard stands before it."""

    method: Literal["sft", "kto", "dpo"] | None = Field(None, description="None leaves the base model as it is")
    signal: Literal["interpreter", "soft", "label", "sampled", "none"] = Field(
        "none", description="What decides that a training row is conditioned"
    )
    interpreter_layer: Literal["early", "late"] | Annotated[int, Field(ge=0)] | None = Field(
        None, description="Layer of the interpreter for rows and guard; None is the bottleneck, all else an ablation"
    )
    guarded: bool = Field(False, description="Read, decide and condition while generating")
    learning_rate: float = Field(1e-6, gt=0, le=1)
    beta: float = Field(0.1, gt=0, le=10)
    steps: int | None = Field(None, ge=1)
    epochs: float = Field(3.0, gt=0, le=1000)
    batch_size: int = Field(16, ge=1, le=4096)
    accumulate: int = Field(1, ge=1, le=4096)
    warmup_steps: int = Field(100, ge=0)
    max_length: int = Field(512, ge=8)
    answer_weight: float = Field(0.0, ge=0, le=100)
    consistency: float = Field(0.0, ge=0, le=100, description="Weight of the multi-lingual consistency term; KTO only")
    wrong_language_refusals: float = Field(
        0.0, ge=0, le=1, description="Share of harmful rows with a refusal in another language as undesirable answer"
    )
    lora_rank: int = Field(0, ge=0, le=1024)
    four_bit: bool = Field(False, description="Hold the base model in 4 bits under the adapter (QLoRA)")
    gradient_checkpointing: bool = False
    save_steps: int | None = Field(None, ge=1, description="Steps between checkpoints to go on from after a stop")
    preferences: str | None = Field(None, description="Source of preferences; the alignment section's by default")
    sweep: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Points, each with other settings than those above; the best on development data is kept",
    )

    @model_validator(mode="after")
    def _combinations(self) -> "SystemSection":
        if self.signal == "soft" and not self.guarded:
            raise ValueError("the soft signal is a token in every prompt: set guarded")
        if self.interpreter_layer is not None and self.method is None:
            raise ValueError("interpreter_layer needs a method to train with")
        if self.consistency and self.method != "kto":
            raise ValueError("the consistency term belongs to the method kto")
        if self.four_bit and not self.lora_rank:
            raise ValueError("four_bit trains an adapter on a frozen base: set lora_rank")
        return self

    @model_validator(mode="after")
    def _sweep(self) -> "SystemSection":
        if not self.sweep:
            return self
        if self.method is None:
            raise ValueError("a sweep needs a method to train with")
        for override in self.sweep:
            fixed = {"method", "guarded", "sweep"} & set(override)
            if fixed:
                raise ValueError(f"a point of a sweep cannot set {sorted(fixed)[0]!r}; make it another system")
        try:
            self.points()
        except ValidationError as error:
            problem = error.errors()[0]
            raise ValueError(f"a point of the sweep: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
        return self

    def points(self) -> list["SystemSection"]:
        """The system at each point of its sweep."""
        alone = self.model_dump(exclude={"sweep"})
        return [SystemSection.model_validate({**alone, **override}) for override in self.sweep]


class AlignmentSection(_Section):
    """Stage 3."""

    preferences: str = Field(description="Source of preferences")
    development: list[str] = Field(
        default_factory=list, description="Sources of labelled prompts on which sweeps are decided; never a benchmark"
    )
    helpfulness_floor: Fraction = Field(0.9, description="Least helpfulness, on development data, of a chosen point")
    watch_every: int | None = Field(
        None, ge=1, description="Steps between measurements of helpfulness in training, on benign development prompts"
    )
    stop_at_floor: bool = Field(False, description="End a training that crosses the floor, instead of a warning")
    condition: str | None = Field(None, description="The conditional text; the paper's by default")
    drift_bound: Fraction = Field(0.02, description="Warn when training changes more of the interpreter's decisions")
    refit: bool = Field(False, description="Fit temperature and thresholds again on each trained model")


class EvaluationSection(_Section):
    """Stage 4: what is asked, and who judges."""

    benchmarks: dict[str, str] = Field(min_length=1, description="Name and source; the first is the headline")
    judge: JudgeSetting = Field(
        default_factory=lambda: judge_from_text("refusal-patterns"),
        description="embedded-world, refusal-patterns, llm:MODEL@URL, classifier:FORMAT:FOLDER, or its settings",
    )
    second_judge: JudgeSetting | None = Field(None, description="Another judge of the same answers, for agreement")
    max_new_tokens: int = Field(256, ge=1, le=32_768)
    batch_size: int = Field(64, ge=1, le=4096, description="Prompts answered together, at most")
    batch_tokens: int = Field(BATCH_TOKENS, ge=1, description="Tokens of prompts and answers in a batch, at most")

    @property
    def judges(self) -> list[JudgeSettings]:
        """One judge, or two."""
        return [self.judge, *([self.second_judge] if self.second_judge else [])]


class Recipe(_Section):
    """A whole run."""

    model: ModelSection
    seed: int = Field(0, ge=0)
    seen_languages: list[str] = Field(min_length=1, description="Languages of the safety data")
    layer_search: LayerSearchSection
    interpreter: InterpreterSection
    alignment: AlignmentSection
    systems: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")], SystemSection] = Field(min_length=1)
    evaluation: EvaluationSection

    @field_validator("seen_languages")
    @classmethod
    def _canonical(cls, value: list[str]) -> list[str]:
        return [canonical_language(code) for code in value]

    @model_validator(mode="after")
    def _sweeps(self) -> "Recipe":
        swept = [name for name, system in self.systems.items() if system.sweep]
        if swept and not self.alignment.development:
            raise ValueError(f"systems.{swept[0]} is swept: set alignment.development to decide on")
        if self.alignment.watch_every and not self.alignment.development:
            raise ValueError("alignment.watch_every needs alignment.development to measure on")
        return self


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: The file is missing, no YAML, or a setting is missing, unknown or out of bounds.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"No such recipe: {path}.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text at byte {error.start}. Save the file as UTF-8.") from error
    return check_recipe(parse_recipe(text, str(path)), str(path))


def parse_recipe(text: str, where: str) -> Any:
    """The plain values of a YAML text. No tag makes an object, and no chain of aliases grows beyond all bounds.

    Raises:
        RecipeError: It is not YAML, or too large.
    """
    try:
        document = yaml.compose(text, yaml.SafeLoader) if len(text) <= MAX_VALUES else None
        if len(text) > MAX_VALUES or _size(document, {}) > MAX_VALUES:
            raise RecipeError(
                f"{where} is larger than any recipe (over {MAX_VALUES:,} values). Is this the right file?"
            )
        return yaml.safe_load(text)
    except RecipeError:
        raise
    except Exception as error:  # besides YAMLError whatever PyYAML's constructors of tagged values raise
        raise RecipeError(f"{where} is not a readable YAML file: {error}") from error


def _size(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Number of values of a node with its aliases written out; infinite if it contains itself."""
    if node is None:
        return 0
    if id(node) not in known:
        known[id(node)] = math.inf
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def check_recipe(value: Any, where: str) -> Recipe:
    """Validate a recipe given as plain values.

    Raises:
        RecipeError: With one line per wrong setting.
    """
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of settings.")
    return check_settings(Recipe, value, where)


Settings = TypeVar("Settings", bound=_Section)


def check_settings(section: type[Settings], value: dict[str, Any], where: str) -> Settings:
    """Validate a recipe, or one section of it, given as plain values.

    Raises:
        RecipeError: With one line per wrong setting.
    """
    try:
        return section.model_validate(value)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, problem['loc'])) or '(recipe)'}: {problem['msg']}" for problem in error.errors()
        ]
        raise RecipeError(f"{where} has {len(lines)} wrong setting(s):\n" + "\n".join(lines)) from error
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"{where}: {error}") from error


def recipe_text(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
