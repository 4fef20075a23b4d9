"""The entry point `vllm.general_plugins`: vLLM calls `register` in each of its processes before it builds anything.

vLLM goes on without a plugin that cannot be imported, so this module imports nothing that can fail; what
`register` raises stops it.
"""

from lasa_vllm.architectures import GUARDED, MODELS, RENDERER

TESTED = ">=0.32,<0.33"
"""The versions of vLLM that the plugin's tests have passed with."""

UNTESTED = "LASA_VLLM_UNTESTED"
"""Environment variable that lets the plugin's tests run with another version."""


def register() -> None:
    """Serve nothing but guarded models from now on; none is imported until it is loaded.

    Raises:
        GuardError: The plugin was not tested with this vLLM.
    """
    from vllm import ModelRegistry, __version__
    from vllm.renderers.registry import RENDERER_REGISTRY

    check_version(__version__)
    for architecture, guarded in GUARDED.items():
        ModelRegistry.register_model(architecture, f"{MODELS}:{guarded}")
    RENDERER_REGISTRY.renderers["hf"] = RENDERER
    _check_at_the_start()
    _load_nothing_else()


def check_version(version: str) -> None:
    """Make sure that the plugin was tested with a version of vLLM.

    Raises:
        GuardError: It was not; it replaces parts of vLLM that may have changed.
    """
    import os

    from packaging.specifiers import SpecifierSet

    from lasa.errors import GuardError

    if os.environ.get(UNTESTED) != "1" and not SpecifierSet(TESTED).contains(version, prereleases=True):
        raise GuardError(
            f"lasa-vllm was tested with vLLM {TESTED}, and this is {version}, so nothing is served. Install a version "
            f"that was tested. Where the plugin's own tests pass with this one, {UNTESTED}=1 lets it run."
        )


def _check_at_the_start() -> None:
    """An engine's configuration is checked when it is made, before any process or model is."""
    from vllm.engine.arg_utils import EngineArgs

    create = EngineArgs.create_engine_config
    if hasattr(create, "guarded"):
        return

    def create_engine_config(self, *args, **rest):  # type: ignore[no-untyped-def]
        from lasa_vllm.engine import check_engine
        from lasa_vllm.settings import read_settings

        config = create(self, *args, **rest)
        read_settings(config)
        check_engine(config)
        return config

    create_engine_config.guarded = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config


def _load_nothing_else() -> None:
    """A model of a class that is not guarded is not loaded, whatever way led to it."""
    from vllm import ModelRegistry

    from lasa.errors import GuardError

    registry = type(ModelRegistry)
    resolve = registry.resolve_model_cls
    if hasattr(resolve, "guarded"):
        return

    def resolve_model_cls(self, *args, **rest):  # type: ignore[no-untyped-def]
        model, architecture = resolve(self, *args, **rest)
        if model.__module__ != MODELS:
            raise GuardError(
                f"{architecture} would be served by {model.__module__}.{model.__qualname__}, which is not guarded, so "
                f"nothing is served. Guarded are {', '.join(GUARDED)}, by vLLM's own implementation; VLLM_PLUGINS= "
                "(empty) in the environment serves without a guard."
            )
        return model, architecture

    resolve_model_cls.guarded = True  # type: ignore[attr-defined]
    registry.resolve_model_cls = resolve_model_cls
