"""Stage 2: the Safety Semantic Interpreter (SSI), a small probe that reads intent at the semantic bottleneck.

`z = w2 . gelu(w1 . layer_norm(h) + b1) + b2` on the hidden state h of one read point; the probability that the
prompt is harmful is `sigmoid(z / T)` with the temperature T fitted on development data (LASA, section 4).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from lasa.errors import ArtifactError, RecipeError
from lasa.files.artifacts import (
    file_hash,
    fingerprint,
    model_fingerprint,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
    write_text,
)
from lasa.interpreter.heads import AnswerHead, CategoryHead, Grade, Probability, Reading
from lasa.models.layers import check_layer, hidden_size
from lasa.models.positions import ReadPoint
from lasa.models.rendering import template_fingerprint

PARAMETER_SHARE = 0.002
"""The paper's bound on the probe's size: 0.2 % of the base model's parameters."""

CHAT_TEMPLATE = "chat_template.jinja"
"""In an interpreter's folder, where its prompts were not rendered with the tokenizer's own template."""

SCHEMA = 1


@dataclass(frozen=True)
class InterpreterConfig:
    """Everything needed to use an interpreter, and to refuse to use it on the wrong model.

    Attributes:
        read_point: Where the hidden state is read.
        width: H, the width of the hidden state.
        hidden: Width of the hidden layer; 0 makes a linear probe.
        dropout: Dropout while training.
        norm: Where the LayerNorm stands: before the first linear map, (in the authors' checkpoints) after it, or
            nowhere (logistic regression, whose standardisation is part of its weights).
        temperature: T, divides the logit.
        threshold: Probability from which a prompt counts as harmful.
        language_thresholds: Thresholds that replace it for single languages.
        controversial: Probability from which a prompt below the threshold counts as controversial, or None.
        parameters: Number of parameters.
        parameter_share: That number over the base model's.
        base_model: Name or path of the base model, for people.
        base_fingerprint: `model_fingerprint` of the base model.
        chat_template: The template of the prompts, where it is not as the model's maker wrote it (options, a pinned
            date, a template of the user's); "" where it is.
        languages: Languages of the training data.
        data: Fingerprints of the training and development data.
        coverage: Grade of each language in which it was certified; see `lasa.interpreter.coverage`.
        categories: Its head for the kind of harm, where it was trained with labels of that.
        answers: Its head for answers, where it was trained with some.
        metrics: What was measured when it was trained.
        provenance: Versions, commit, command line.
    """

    read_point: ReadPoint
    width: Annotated[int, Field(ge=1)]
    hidden: Annotated[int, Field(ge=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    norm: Literal["input", "hidden", "none"] = "input"
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    threshold: Probability = 0.5
    language_thresholds: dict[str, Probability] = field(default_factory=dict)
    controversial: Probability | None = None
    parameters: Annotated[int, Field(ge=0)] = 0
    parameter_share: Annotated[float, Field(ge=0)] = 0.0
    base_model: str = ""
    base_fingerprint: str = ""
    chat_template: str = ""
    languages: tuple[str, ...] = ()
    data: dict[str, str] = field(default_factory=dict)
    coverage: dict[str, Grade] = field(default_factory=dict)
    categories: CategoryHead | None = None
    answers: AnswerHead | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "InterpreterConfig":
        """The inverse of `dataclasses.asdict` for a config read from JSON.

        Raises:
            ArtifactError: A field is missing, unknown or out of bounds; the message names it.
        """
        unknown = sorted(set(value) - {f.name for f in fields(InterpreterConfig)})
        if unknown:
            raise ArtifactError(
                f"The interpreter's config.json has the unknown field {unknown[0]!r}; it was written by another "
                "version of lasa, or by hand. Use that version, or train the interpreter again."
            )
        try:
            return TypeAdapter(InterpreterConfig).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ArtifactError(f"The interpreter's config.json is wrong at {where!r}: {first['msg']}.") from error


class SafetySemanticInterpreter(nn.Module, ModelHubMixin):
    """The probe itself. `from_pretrained`, `save_pretrained` and `push_to_hub` work as for any Hub model."""

    def __init__(self, config: InterpreterConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        sizes = {"input": config.width, "hidden": config.hidden}
        self.norm = nn.LayerNorm(sizes[config.norm]) if config.norm in sizes else nn.Identity()
        if config.hidden:
            self.hidden: nn.Module = nn.Linear(config.width, config.hidden)
            self.drop = nn.Dropout(config.dropout)
            self.out = nn.Linear(config.hidden, 1)
        else:
            self.out = nn.Linear(config.width, 1)
        self.kinds: nn.Linear | None = None
        if config.categories is not None:
            self.kinds = nn.Linear(config.width, len(config.categories.names))
        self.answers = nn.Linear(config.width, 1) if config.answers is not None else None

    def forward(self, states: Tensor) -> Tensor:
        """Logit z of each hidden state: `[..., H]` -> `[...]`, in float32."""
        x = states.float()
        if self.config.norm == "input":
            x = self.norm(x)
        if self.config.hidden:
            x = self.hidden(x)
            if self.config.norm == "hidden":
                x = self.norm(x)
            x = self.drop(nn.functional.gelu(x))
        return self.out(x).squeeze(-1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def probability(self, states: Tensor) -> Tensor:
        """Calibrated probability that a prompt is harmful: `[..., H]` -> `[...]`."""
        return torch.sigmoid(self(states.to(self.out.weight.device)) / self.config.temperature)

    @torch.no_grad()
    def category_probabilities(self, states: Tensor) -> Tensor:
        """Calibrated probability of each category, if the prompt is harmful: `[..., H]` -> `[..., categories]`."""
        if self.kinds is None or self.config.categories is None:
            return states.new_zeros(*states.shape[:-1], 0)
        logits = self.kinds(states.to(self.out.weight.device).float())
        return torch.softmax(logits / self.config.categories.temperature, -1)

    @torch.no_grad()
    def answer_logits(self, states: Tensor) -> Tensor:
        """Logit of each token of an answer, not smoothed: `[..., H]` -> `[...]`; not a number without such a head."""
        if self.answers is None:
            return torch.full(states.shape[:-1], torch.nan)
        return self.answers(states.to(self.out.weight.device).float()).squeeze(-1)  # type: ignore[no-any-return]

    def read(self, states: Tensor) -> list[Reading]:
        """All that is read in some hidden states, `[rows, H]`."""
        kinds: list[list[float]] = self.category_probabilities(states).tolist()
        scores: list[float] = self.probability(states).tolist()
        return [Reading(score, tuple(kind)) for score, kind in zip(scores, kinds, strict=True)]

    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def check_fits(self, model: nn.Module, tokenizer: Any, *, fingerprint: bool = True) -> None:
        """Make sure that this interpreter was trained on this model, read at this point, rendered this way.

        Args:
            model: The model whose states are to be read.
            tokenizer: Its tokenizer.
            fingerprint: Also compare the weights (off for a model that was aligned on top of the base).

        Raises:
            ArtifactError: Something differs; the message says what.
        """
        point = self.config.read_point
        if hidden_size(model) != self.config.width:
            raise ArtifactError(
                f"This interpreter reads hidden states of width {self.config.width}, but the model's are "
                f"{hidden_size(model)} wide. It was trained on {self.config.base_model!r}."
            )
        check_layer(model, point.layer)
        if template_fingerprint(tokenizer) != point.template:
            raise ArtifactError(
                "The tokenizer renders chats differently from the one this interpreter was trained with "
                "(another chat template or other special tokens). Use that tokenizer, or train the interpreter again."
            )
        if fingerprint and model_fingerprint(model) != self.config.base_fingerprint:
            raise ArtifactError(
                f"This interpreter belongs to another base model: it was trained on {self.config.base_model!r} "
                f"(fingerprint {self.config.base_fingerprint}). Train one for this model; if this one was aligned on "
                "top of that base, or is the same in another precision (`lasa doctor --samples` measures whether it "
                "then decides alike), force the pairing (--force; in Python: `Guard(..., aligned=True)`)."
            )

    def _save_pretrained(self, save_directory: Path) -> None:
        from lasa.files.cards import interpreter_card

        folder = Path(save_directory)
        write_tensors(folder / "model.safetensors", {name: p.detach() for name, p in self.state_dict().items()})
        config = {
            "schema": SCHEMA,
            **asdict(self.config),
            "weights_sha256": file_hash(folder / "model.safetensors"),
        }
        write_json(folder / "config.json", {**config, "fingerprint": _config_fingerprint(config)})
        write_text(folder / "README.md", interpreter_card(config))
        if self.config.chat_template:
            write_text(folder / CHAT_TEMPLATE, self.config.chat_template)  # for servers that render on their own

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **hub: Any) -> "SafetySemanticInterpreter":
        """Load an interpreter from a folder or from the Hugging Face Hub, verifying every file.

        Args:
            pretrained_model_name_or_path: Folder, or id of a Hub repository.
            hub: Arguments of `huggingface_hub.snapshot_download` (`revision`, `token`, `cache_dir`, ...).

        Raises:
            ArtifactError: There is no such folder or repository, or its files are not those of an interpreter.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            name = str(pretrained_model_name_or_path)
            try:
                folder = Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"], **hub))
            except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
                reason = str(error).splitlines()[0]
                raise ArtifactError(
                    f"{name} is neither a folder nor an interpreter on the Hugging Face Hub: {reason}"
                ) from error
        return load_interpreter(folder)


def load_interpreter(folder: Path) -> SafetySemanticInterpreter:
    """Load an interpreter folder, verifying every file.

    Raises:
        ArtifactError: A file is missing, truncated, altered, or does not match the config.
    """
    path = folder / "config.json"
    stored = read_json(path)
    if not isinstance(stored, dict) or not {"schema", "read_point", "weights_sha256", "fingerprint"} <= set(stored):
        raise ArtifactError(f"{path} is not the config of an interpreter.")
    if stored.pop("schema") != SCHEMA:
        raise ArtifactError(f"{path} was written by another version of lasa. Use that version, or train again.")
    recorded = stored.pop("fingerprint")
    if recorded != _config_fingerprint({"schema": SCHEMA, **stored}):
        raise ArtifactError(
            f"{path} was altered after it was written. Restore it; to change a threshold, change it on the loaded "
            "interpreter and save that."
        )
    weights_hash = stored.pop("weights_sha256")
    config = InterpreterConfig.from_json(stored)
    weights = read_tensors(folder / "model.safetensors")
    if file_hash(folder / "model.safetensors") != weights_hash:
        raise ArtifactError(
            f"{folder / 'model.safetensors'} does not match its config (altered, or from another interpreter). "
            "Restore the folder, or train the interpreter again."
        )
    interpreter = SafetySemanticInterpreter(config)
    try:
        interpreter.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactError(f"{folder}: the weights do not have the shapes that config.json states: {error}") from error
    return interpreter.eval()


def hidden_width(
    kind: Literal["mlp", "linear", "logistic"], width: int, base_parameters: int, wanted: int = 256
) -> int:
    """Width of the hidden layer: as wanted, or as wide as 0.2 % of the base model's parameters allow.

    Raises:
        RecipeError: Not even one hidden unit fits.
    """
    if kind != "mlp":
        return 0
    affordable = int((PARAMETER_SHARE * base_parameters - 2 * width - 1) / (width + 2))
    if affordable < 1:
        raise RecipeError(
            f"An interpreter under {PARAMETER_SHARE:.1%} of {base_parameters:,} parameters has no room for a hidden "
            "layer. Use the linear probe (interpreter.kind: linear)."
        )
    return min(wanted, affordable)


def thresholds_for(config: InterpreterConfig, languages: Sequence[str]) -> Tensor:
    """The threshold of each prompt by its language, `[prompts]` float64."""
    thresholds = [config.language_thresholds.get(code, config.threshold) for code in languages]
    return torch.tensor(thresholds, dtype=torch.float64)


def _config_fingerprint(config: dict[str, Any]) -> str:
    return fingerprint(json.loads(json.dumps({k: v for k, v in config.items() if k != "fingerprint"})))
