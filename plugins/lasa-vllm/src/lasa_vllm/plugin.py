"""The entry point `vllm.general_plugins`: vLLM calls `register` in each of its processes before it builds anything."""

GUARDED = {
    "LlamaForCausalLM": "GuardedLlama",
    "MistralForCausalLM": "GuardedMistral",
    "Qwen2ForCausalLM": "GuardedQwen2",
    "Qwen3ForCausalLM": "GuardedQwen3",
    "GemmaForCausalLM": "GuardedGemma",
}
"""Architectures as a model's config.json names them, and the classes that serve them."""


def register() -> None:
    """Serve these architectures guarded from now on; nothing is imported until a model of theirs is loaded."""
    from vllm import ModelRegistry

    for architecture, guarded in GUARDED.items():
        ModelRegistry.register_model(architecture, f"lasa_vllm.models:{guarded}")


def registered(architecture: str) -> bool:
    """Whether this process serves an architecture guarded."""
    from vllm import ModelRegistry

    model = ModelRegistry.models.get(architecture)
    return getattr(model, "module_name", None) == "lasa_vllm.models"
