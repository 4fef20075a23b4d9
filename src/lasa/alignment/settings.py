"""The settings of stage 3: how one system is trained, if it is, and what all of them share."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from lasa.files.settings import Fraction, Settings, resource

Method = Literal["sft", "kto", "dpo"]
"""`sft` learns the desirable answers, `kto` and `dpo` also what to avoid."""

Signal = Literal["interpreter", "soft", "label", "sampled", "always", "none"]
"""`interpreter`: the SSI's decision; `soft`: its probability, as a learned embedding; `label`: the row's own label (an
oracle); `sampled`: a coin for harmful rows, as in the public code; `always`: every row, so that what is learned is to
trust the condition; `none`: never conditioned (surface tuning)."""

Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adamw_bfloat16"]
"""`adamw` in float32; with moments of 8 bits, also paged to main memory; or all in bfloat16, rounded stochastically."""

Adapter = Literal["everywhere", "behind_condition"]
"""Where a LoRA adapter acts: at every token, or from the condition to the end of the turn, so that the base model reads
every prompt and answers what is not flagged."""


RefusalsFrom = Literal["harmless_text", "preferences"]
"""What refusing in a language is learned from: harmless sentences with the condition, each answered by a refusal in its
language, beside the harmful requests of the preferences; or the preferences as they are."""

OWN = "own"
"""In place of a source of preferences: the model's own answers to labelled prompts."""


class SystemSettings(Settings):
    """One system: how it is trained, if it is, and whether the guard stands before it."""

    method: Method | None = Field(None, description="None leaves the base model as it is")
    signal: Signal = Field("none", description="What decides that a training row is conditioned")
    interpreter_layer: Literal["early", "late"] | Annotated[int, Field(ge=0)] | None = Field(
        None, description="Layer of the interpreter for rows and guard; None is the bottleneck, all else an ablation"
    )
    guarded: bool = Field(False, description="Read, decide and condition while generating")
    action: Literal["condition", "refuse"] = Field(
        "condition", description="What the guard does with what it flags; `refuse` is the fixed refusal"
    )
    learning_rate: float = Field(1e-6, gt=0, le=1, description="Peak rate, reached after the warm-up, then a cosine")
    beta: float = Field(0.1, gt=0, le=10, description="How tightly KTO and DPO hold to the reference model")
    steps: int | None = Field(None, ge=1, description="Optimiser steps; None for `epochs` passes")
    epochs: float = Field(3.0, gt=0, le=1000, description="Passes over the rows")
    batch_size: int = Field(16, ge=1, le=4096, description="Rows per device and forward pass; KTO needs at least 2")
    accumulate: int = Field(1, ge=1, le=4096, description="Batches per optimiser step")
    warmup_steps: int = Field(100, ge=0, description="Steps until the learning rate is reached")
    max_length: int = Field(512, ge=8, description="Longest row in tokens")
    answer_weight: float = Field(
        0.0, ge=0, le=100, description="Weight of the likelihood of desirable answers added to KTO's loss (an anchor)"
    )
    desirable_weight: float = Field(1.0, gt=0, le=100, description="Weight of desirable rows in KTO's loss")
    undesirable_weight: float = Field(1.0, gt=0, le=100, description="Weight of undesirable rows in KTO's loss")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Of AdamW")
    optimizer: Optimizer = Field(
        "adamw",
        description="adamw: 16 bytes a trained parameter; adamw_8bit, paged_adamw_8bit (bitsandbytes): 10; "
        "adamw_bfloat16 (all weights, one GPU): 8",
    )
    consistency: float = Field(0.0, ge=0, le=100, description="Weight of the multi-lingual consistency term; KTO only")
    wrong_language_refusals: float = Field(
        0.0, ge=0, le=1, description="Share of harmful rows with a refusal in another language as undesirable answer"
    )
    lora_rank: int = Field(0, ge=0, le=1024, description="Rank of a LoRA adapter; 0 trains all weights")
    lora_alpha: float | None = Field(
        None, gt=0, description="Scale of the adapter, times its rank; None: twice the rank"
    )
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the adapter's inputs that is dropped in training"
    )
    lora_targets: list[str] = Field(
        default_factory=list, description="Names of the maps that have an adapter (q_proj, ...); none for all in blocks"
    )
    adapter: Adapter = Field("everywhere", description="Where the adapter acts")
    refusals_from: RefusalsFrom | None = Field(
        None,
        description="What refusing is learned from; None: harmless_text for an adapter behind the condition with the "
        "signal always, else preferences",
    )
    second_look: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="With harmless_text: share of the rows that are harmless requests with the condition, answered "
        "helpfully; it buys back false refusals and costs true ones",
    )
    four_bit: bool = Field(False, description="Hold the base model in 4 bits under the adapter (QLoRA)")
    gradient_checkpointing: bool | None = resource(
        None, description="Trade time for memory; None: for models of more than a billion parameters"
    )
    save_steps: int | None = resource(None, ge=1, description="Steps between checkpoints to go on from after a stop")
    preferences: str | None = Field(None, description="Source of preferences; the alignment section's by default")
    sweep: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Points, each with other settings than those above; the best on development data is kept",
    )

    @model_validator(mode="after")
    def _combinations(self) -> "SystemSettings":
        if self.signal == "soft" and not self.guarded:
            raise ValueError("the soft signal is a token in every prompt: set guarded")
        if self.action == "refuse" and not self.guarded:
            raise ValueError("the action refuse is the guard's: set guarded")
        if self.interpreter_layer is not None and self.method is None:
            raise ValueError("interpreter_layer needs a method to train with")
        if self.consistency and self.method != "kto":
            raise ValueError("the consistency term belongs to the method kto")
        if self.method not in (None, "kto") and (self.desirable_weight, self.undesirable_weight) != (1, 1):
            raise ValueError("desirable_weight and undesirable_weight belong to the method kto")
        if not self.lora_rank and (self.lora_alpha or self.lora_dropout or self.lora_targets):
            raise ValueError("lora_alpha, lora_dropout and lora_targets belong to an adapter: set lora_rank")
        if self.four_bit and not self.lora_rank:
            raise ValueError("four_bit trains an adapter on a frozen base: set lora_rank")
        if self.optimizer == "adamw_bfloat16" and (self.lora_rank or self.signal == "soft"):
            raise ValueError("adamw_bfloat16 trains all weights and no adapter or soft condition: leave one out")
        if self.refusals_from == "harmless_text" and self.signal != "always":
            raise ValueError("with refusals_from harmless_text every row has the condition: set the signal always")
        if self.second_look and not self.trusts:
            raise ValueError("second_look belongs to refusals_from harmless_text")
        if self.adapter == "behind_condition":
            if not self.lora_rank:
                raise ValueError("an adapter behind the condition needs a rank: set lora_rank")
            if self.signal in ("none", "soft"):
                raise ValueError(f"with the signal {self.signal!r} no row has a condition that the adapter acts behind")
            if not self.guarded:
                raise ValueError("without the guard an adapter behind the condition never acts: set guarded")
            if self.consistency:
                raise ValueError("the consistency term reads prompts, where an adapter behind the condition never acts")
        return self

    @model_validator(mode="after")
    def _sweep(self) -> "SystemSettings":
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

    @property
    def trusts(self) -> bool:
        """Whether the system learns from harmless text that the condition is to be trusted."""
        if self.refusals_from is None:
            return self.adapter == "behind_condition" and self.signal == "always"
        return self.refusals_from == "harmless_text"

    def points(self) -> list["SystemSettings"]:
        """The system at each point of its sweep."""
        alone = self.model_dump(exclude={"sweep"})
        return [SystemSettings.model_validate({**alone, **override}) for override in self.sweep]


class AlignmentSettings(Settings):
    """Stage 3."""

    preferences: str = Field(
        description="Source of preferences; `own` for the model's own answers to the interpreter's training prompts"
    )
    own_questions: int | None = Field(
        None, ge=1, description="With `own`: questions of each seen language and label, chosen by hash; all by default"
    )
    harmless: list[str] = Field(
        default_factory=list, description="Sources of harmless text in any language, for refusals_from harmless_text"
    )
    refusals: str | None = Field(
        None, description="TOML file with a list of refusals for each language; the shipped ones by default"
    )
    wordings: int | None = Field(
        None, ge=1, description="Refusals of each language that are learned, the first of its list; None: all of them"
    )
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
