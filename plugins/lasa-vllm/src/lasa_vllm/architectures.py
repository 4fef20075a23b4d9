"""What is served guarded: vLLM's architectures, the classes that take their place, and the renderer of chats.

It imports nothing, since the entry point needs it: see `lasa_vllm.plugin`.
"""

GUARDED = {
    "LlamaForCausalLM": "GuardedLlama",
    "MistralForCausalLM": "GuardedMistral",
    "Qwen2ForCausalLM": "GuardedQwen2",
    "Qwen3ForCausalLM": "GuardedQwen3",
    "Qwen3MoeForCausalLM": "GuardedQwen3Moe",
    "Phi3ForCausalLM": "GuardedPhi3",
    "GemmaForCausalLM": "GuardedGemma",
    "Gemma2ForCausalLM": "GuardedGemma2",
    "Gemma3ForCausalLM": "GuardedGemma3",
}
"""Architectures as a model's config.json names them, and the classes that serve them."""

MODELS = "lasa_vllm.models"
RENDERER = ("lasa_vllm.renderer", "GuardedRenderer")


def registered(architecture: str) -> bool:
    """Whether this process serves an architecture guarded."""
    from vllm import ModelRegistry
    from vllm.renderers.registry import RENDERER_REGISTRY

    model = ModelRegistry.models.get(architecture)
    return getattr(model, "module_name", None) == MODELS and RENDERER_REGISTRY.renderers["hf"] == RENDERER
