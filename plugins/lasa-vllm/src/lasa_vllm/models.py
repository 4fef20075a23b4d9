"""Read: the hidden state of the read point, inside the model's own forward pass.

The state rides beside the last hidden state, row by row, through vLLM's choice of rows (chunked prefill, prefix cache,
batching), and is scored where the logits are computed. vLLM counts layers as `lasa.models.layers` does: 0 is the
embeddings, k the output of block k.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor
from vllm.compilation.decorators import support_torch_compile
from vllm.model_executor.models import gemma, gemma2, gemma3
from vllm.model_executor.models.interfaces import EagleModelMixin, SupportsEagle3
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.phi3 import Phi3ForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM
from vllm.utils.torch_utils import set_default_torch_dtype

from lasa.errors import GuardError
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa_vllm.decisions import decisions_of, lowest_threshold
from lasa_vllm.engine import check_engine
from lasa_vllm.fingerprint import PassingWeights, is_aligned
from lasa_vllm.prompting import load_tokenizer
from lasa_vllm.settings import answered_kinds, read_settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class ScoredModel:
    """Makes a guarded class of a causal LM of vLLM, as its first base."""

    def __init__(self, *, vllm_config: "VllmConfig", prefix: str = "") -> None:
        settings = read_settings(vllm_config)
        check_engine(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        device = next(self.parameters()).device  # type: ignore[attr-defined]
        with set_default_torch_dtype(torch.float32), torch.device("cpu"):
            interpreter = SafetySemanticInterpreter.from_pretrained(settings.interpreter)
        point = interpreter.config.read_point
        if point.position != "last":
            raise GuardError(
                f"This interpreter reads at {point.position!r}; in vLLM only the last token of a prompt is certain to "
                "be computed (the rest may come from the prefix cache). Use an interpreter that reads at 'last'."
            )
        tokenizer = load_tokenizer(vllm_config.model_config, interpreter.config)
        interpreter.check_fits(self, tokenizer, fingerprint=False)  # type: ignore[arg-type]
        self.set_aux_hidden_state_layers((point.layer,))  # type: ignore[attr-defined]
        # vLLM keeps compiled models by the engine's configuration; one that reads another layer is another model.
        vllm_config.additional_config = {**vllm_config.additional_config, "lasa_layer": point.layer}
        self._interpreter = (interpreter.requires_grad_(False).to(device),)  # a tuple: none of vLLM's own weights
        self._threshold = lowest_threshold(interpreter.config)
        self._answered = answered_kinds(settings, interpreter.config)
        self._reads_answers = settings.read_answers
        self._decisions = decisions_of(vllm_config)
        self._weights_known = settings.force or is_aligned(vllm_config.model_config.model, interpreter.config)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """The last hidden states with the read point's beside them, `[tokens, 2 H]`."""
        if not self._weights_known:
            raise GuardError("The weights were never compared with the interpreter's model. Use --load-format auto.")
        hidden, (state,) = super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)  # type: ignore[misc]
        return torch.cat([hidden, state], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Decide on rows `[rows, 2 H]`, and give their logits."""
        hidden, state = hidden_states.chunk(2, dim=-1)
        interpreter = self._interpreter[0]
        answered = is_named(interpreter, state, self._answered) if self._answered else None
        heard = interpreter.answer_logits(state) if self._reads_answers else None
        self._decisions.put(interpreter.probability(state), self._threshold, answered, heard)
        return super().compute_logits(hidden.contiguous())  # type: ignore[misc,no-any-return]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the weights, and make sure that they are those the interpreter was trained on."""
        passing = PassingWeights(weights, getattr(self.config, "num_experts", 0))  # type: ignore[attr-defined]
        loaded: set[str] = super().load_weights(passing)  # type: ignore[misc]
        if not self._weights_known:
            passing.check(self._interpreter[0].config, tied=self.config.tie_word_embeddings)  # type: ignore[attr-defined]
            self._weights_known = True
        return loaded


def is_named(interpreter: SafetySemanticInterpreter, states: Tensor, kinds: Sequence[int]) -> Tensor:
    """Whether the kind of harm that is named for each state is one of some: `[rows, H]` -> `[rows]` bool."""
    head = interpreter.config.categories
    if head is None:
        return torch.zeros(len(states), dtype=torch.bool, device=states.device)
    probability, best = interpreter.category_probabilities(states).max(-1)
    return (probability >= head.threshold) & torch.isin(best, torch.tensor(kinds, device=best.device))


class GuardedLlama(ScoredModel, LlamaForCausalLM):  # type: ignore[misc]
    """Llama."""


class GuardedMistral(ScoredModel, MistralForCausalLM):  # type: ignore[misc]
    """Mistral."""


class GuardedQwen2(ScoredModel, Qwen2ForCausalLM):  # type: ignore[misc]
    """Qwen2 and Qwen2.5."""


class GuardedQwen3(ScoredModel, Qwen3ForCausalLM):  # type: ignore[misc]
    """Qwen3."""


class GuardedQwen3Moe(ScoredModel, Qwen3MoeForCausalLM):  # type: ignore[misc]
    """Qwen3 with experts."""


class GuardedPhi3(ScoredModel, Phi3ForCausalLM):  # type: ignore[misc]
    """Phi-3, and Phi-4, which says that it is one."""


class _Readable(EagleModelMixin):  # type: ignore[misc]
    """vLLM's Gemmas can be asked for the states of their layers like the others (without pipeline parallelism)."""

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any,
        inputs_embeds: torch.Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        hidden = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        residual = None
        states = self._maybe_add_hidden_state([], 0, hidden, residual)
        for number, layer in enumerate(islice(self.layers, self.start_layer, self.end_layer), start=1):
            hidden, residual = layer(positions, hidden, residual)
            self._maybe_add_hidden_state(states, number, hidden, residual)
        hidden, _ = self.norm(hidden, residual)
        return hidden, states


@support_torch_compile
class _ReadableGemmaModel(_Readable, gemma.GemmaModel):  # type: ignore[misc]
    pass


@support_torch_compile
class _ReadableGemma2Model(_Readable, gemma2.Gemma2Model):  # type: ignore[misc]
    pass


@support_torch_compile
class _ReadableGemma3Model(_Readable, gemma3.Gemma3Model):  # type: ignore[misc]
    pass


class GuardedGemma(ScoredModel, gemma.GemmaForCausalLM, SupportsEagle3):  # type: ignore[misc]
    """Gemma."""

    def __init__(self, *, vllm_config: "VllmConfig", prefix: str = "") -> None:
        with patch.object(gemma, "GemmaModel", _ReadableGemmaModel):
            super().__init__(vllm_config=vllm_config, prefix=prefix)


class GuardedGemma2(ScoredModel, gemma2.Gemma2ForCausalLM, SupportsEagle3):  # type: ignore[misc]
    """Gemma 2."""

    def __init__(self, *, vllm_config: "VllmConfig", prefix: str = "") -> None:
        with patch.object(gemma2, "Gemma2Model", _ReadableGemma2Model):
            super().__init__(vllm_config=vllm_config, prefix=prefix)


class GuardedGemma3(ScoredModel, gemma3.Gemma3ForCausalLM, SupportsEagle3):  # type: ignore[misc]
    """Gemma 3, the models of text."""

    def __init__(self, *, vllm_config: "VllmConfig", prefix: str = "") -> None:
        with patch.object(gemma3, "Gemma3Model", _ReadableGemma3Model):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
