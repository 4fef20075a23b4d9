"""Stage 2: the Safety Semantic Interpreter (SSI), a small probe that reads intent at the semantic bottleneck.

`z = w2 . gelu(w1 . layer_norm(h) + b1) + b2` on the hidden state h of one read point; the probability that the
prompt is harmful is `sigmoid(z / T)` with the temperature T fitted on development data (LASA, section 4).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from lasa.artifacts import file_hash, model_fingerprint, read_json, read_tensors, write_json, write_tensors, write_text
from lasa.errors import ArtifactError, RecipeError
from lasa.hidden_states import Position, ReadPoint
from lasa.layers import check_layer, hidden_size
from lasa.rendering import template_fingerprint

PARAMETER_SHARE = 0.002
"""The paper's bound on the probe's size: 0.2 % of the base model's parameters."""


@dataclass(frozen=True)
class InterpreterConfig:
    """Everything needed to use an interpreter, and to refuse to use it on the wrong model.

    Attributes:
        read_point: Where the hidden state is read.
        width: H, the width of the hidden state.
        hidden: Width of the hidden layer; 0 makes a linear probe.
        dropout: Dropout while training.
        temperature: T, divides the logit.
        threshold: Probability from which a prompt counts as harmful.
        language_thresholds: Thresholds that replace it for single languages.
        controversial: Probability from which a prompt below the threshold counts as controversial, or None.
        parameters: Number of parameters.
        parameter_share: That number over the base model's.
        base_model: Name or path of the base model, for people.
        base_fingerprint: `model_fingerprint` of the base model.
        languages: Languages of the training data.
        data: Fingerprints of the training and development data.
        metrics: What was measured when it was trained.
        provenance: Versions, commit, command line.
    """

    read_point: ReadPoint
    width: int
    hidden: int
    dropout: float = 0.2
    temperature: float = 1.0
    threshold: float = 0.5
    language_thresholds: dict[str, float] = field(default_factory=dict)
    controversial: float | None = None
    parameters: int = 0
    parameter_share: float = 0.0
    base_model: str = ""
    base_fingerprint: str = ""
    languages: tuple[str, ...] = ()
    data: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "InterpreterConfig":
        """The inverse of `dataclasses.asdict` for a config read from JSON.

        Raises:
            ArtifactError: A field is missing or unknown.
        """
        try:
            known = {f.name for f in fields(InterpreterConfig)}
            rest = {k: v for k, v in value.items() if k in known and k not in ("read_point", "languages")}
            return InterpreterConfig(
                read_point=ReadPoint(**value["read_point"]), languages=tuple(value.get("languages", ())), **rest
            )
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"The interpreter's config.json does not have the expected fields: {error}.") from error


class SafetySemanticInterpreter(nn.Module, ModelHubMixin):
    """The probe itself. `from_pretrained`, `save_pretrained` and `push_to_hub` work as for any Hub model."""

    def __init__(self, config: InterpreterConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.norm = nn.LayerNorm(config.width)
        if config.hidden:
            self.hidden: nn.Module = nn.Linear(config.width, config.hidden)
            self.drop = nn.Dropout(config.dropout)
            self.out = nn.Linear(config.hidden, 1)
        else:
            self.out = nn.Linear(config.width, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Logit z of each hidden state: `[..., H]` -> `[...]`, in float32."""
        x = self.norm(states.float())
        if self.config.hidden:
            x = self.drop(nn.functional.gelu(self.hidden(x)))
        return self.out(x).squeeze(-1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def probability(self, states: Tensor) -> Tensor:
        """Calibrated probability that a prompt is harmful: `[..., H]` -> `[...]`."""
        return torch.sigmoid(self(states.to(self.norm.weight.device)) / self.config.temperature)

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
                f"(fingerprint {self.config.base_fingerprint}). Train one for this model, or force the pairing."
            )

    def _save_pretrained(self, save_directory: Path) -> None:
        from lasa.report.cards import interpreter_card

        folder = Path(save_directory)
        write_tensors(folder / "model.safetensors", {name: p.detach() for name, p in self.state_dict().items()})
        config = {**asdict(self.config), "schema": 1, "weights_sha256": file_hash(folder / "model.safetensors")}
        write_json(folder / "config.json", config)
        write_text(folder / "README.md", interpreter_card(config))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **kwargs: Any) -> "SafetySemanticInterpreter":
        folder = Path(model_id)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            hub = {name: kwargs.get(name) for name in ("revision", "cache_dir", "token", "local_files_only")}
            folder = Path(snapshot_download(model_id, allow_patterns=["config.json", "model.safetensors"], **hub))
        return load_interpreter(folder)


def load_interpreter(folder: Path) -> SafetySemanticInterpreter:
    """Load an interpreter folder, verifying every file.

    Raises:
        ArtifactError: A file is missing, truncated, altered, or does not match the config.
    """
    stored = read_json(folder / "config.json")
    if not isinstance(stored, dict) or "read_point" not in stored:
        raise ArtifactError(f"{folder / 'config.json'} is not the config of an interpreter.")
    config = InterpreterConfig.from_json(stored)
    weights = read_tensors(folder / "model.safetensors")
    if file_hash(folder / "model.safetensors") != stored.get("weights_sha256"):
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


def import_official(
    folder: Path, *, layer: int, position: Position, template: str, base_model: str = "", base_fingerprint: str = ""
) -> SafetySemanticInterpreter:
    """Import a checkpoint of the authors' code: `checkpoint.pt` with a stack `mlp.0` .. `mlp.4`, and `config.json`.

    Their stack is Linear, GELU, LayerNorm or Dropout, Linear; only the two linear maps and a LayerNorm carry weights.

    Args:
        folder: Holds `checkpoint.pt` and `config.json`.
        layer: The layer in lasa's convention (`output_hidden_states` index). Their training read
            `hidden_states[k]`, their inference `hidden_states[k + 1]`: say which one is meant.
        position: Token position to read.
        template: Rendering fingerprint to read with.
        base_model: Name of the base model.
        base_fingerprint: Fingerprint of the base model.

    Raises:
        ArtifactError: The checkpoint is not one of that shape.
    """
    path = folder / "checkpoint.pt"
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing; an official LASA interpreter has checkpoint.pt and config.json.") from None
    except Exception as error:
        raise ArtifactError(f"{path} cannot be read as plain weights: {error}") from error
    weights = stored.get("model_state_dict", stored.get("state_dict", stored)) if isinstance(stored, dict) else {}
    linear = sorted(k for k, v in weights.items() if k.endswith(".weight") and getattr(v, "ndim", 0) == 2)
    norms = [k for k, v in weights.items() if k.endswith(".weight") and getattr(v, "ndim", 0) == 1]
    if len(linear) != 2 or len(norms) > 1 or weights[linear[1]].shape[0] != 1:
        raise ArtifactError(f"{path}: expected one hidden layer and one logit (mlp.0 .. mlp.4), found {sorted(weights)}.")
    hidden, width = weights[linear[0]].shape
    if norms and weights[norms[0]].shape[0] != width:
        raise ArtifactError(
            f"{path}: its LayerNorm is {weights[norms[0]].shape[0]} wide and follows the hidden layer; "
            f"lasa's interpreter normalises its input ({width} wide). Train an interpreter instead."
        )
    read_point = ReadPoint(layer, position, template)
    config = InterpreterConfig(read_point, int(width), int(hidden), base_model=base_model, base_fingerprint=base_fingerprint)
    interpreter = SafetySemanticInterpreter(replace(config, parameters=sum(int(v.numel()) for v in weights.values())))
    state = {
        "hidden.weight": weights[linear[0]],
        "hidden.bias": weights[linear[0].replace("weight", "bias")],
        "out.weight": weights[linear[1]],
        "out.bias": weights[linear[1].replace("weight", "bias")],
        "norm.weight": weights[norms[0]] if norms else torch.ones(width),
        "norm.bias": weights[norms[0].replace("weight", "bias")] if norms else torch.zeros(width),
    }
    interpreter.load_state_dict({name: value.float() for name, value in state.items()})
    return interpreter.eval()


def hidden_width(kind: Literal["mlp", "linear"], width: int, base_parameters: int, wanted: int = 256) -> int:
    """Width of the hidden layer: as wanted, or as wide as 0.2 % of the base model's parameters allow.

    Raises:
        RecipeError: Not even one hidden unit fits.
    """
    if kind == "linear":
        return 0
    affordable = int((PARAMETER_SHARE * base_parameters - 2 * width - 1) / (width + 2))
    if affordable < 1:
        raise RecipeError(
            f"An interpreter under {PARAMETER_SHARE:.1%} of {base_parameters:,} parameters has no room for a hidden "
            "layer. Use the linear probe (interpreter.kind: linear)."
        )
    return min(wanted, affordable)


def thresholds_for(config: InterpreterConfig, languages: Sequence[str]) -> Tensor:
    """The threshold of each prompt by its language, `[prompts]`."""
    return torch.tensor([config.language_thresholds.get(code, config.threshold) for code in languages])
