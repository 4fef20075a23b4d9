"""Start vLLM's own server with the guard inside, for models that outgrow one machine (see `plugins/lasa-vllm`)."""

import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NoReturn

from lasa.conditioning import Policy
from lasa.errors import GuardError
from lasa.models import model_folder
from lasa.serving.loading import Parts
from lasa.soft_condition import SOFT_CONDITION

PROCESSORS = {"0": "lasa_vllm.processor_v1:ConditionProcessor", "1": "lasa_vllm.processor_v2:ConditionProcessor"}
"""The plugin's logits processors, by `VLLM_USE_V2_MODEL_RUNNER`."""

SERVER = "vllm.entrypoints.openai.api_server"
"""What `vllm serve` runs."""


def vllm_arguments(
    parts: Parts,
    policy: Policy,
    *,
    name: str,
    host: str,
    port: int,
    max_rows: int,
    max_new_tokens: int,
    temperature: float,
    force: bool,
    runner: str = "0",
) -> list[str]:
    """The arguments of `vllm serve`.

    Args:
        parts: What is served.
        policy: Actions.
        name: Name of the model for clients.
        host: Address to bind.
        port: Port.
        max_rows: Answers written at the same time.
        max_new_tokens: Length of an answer where the request does not say, and its limit.
        temperature: Temperature where the request does not say.
        force: Also pair the interpreter with a model that it was not trained on.
        runner: vLLM's model runner, `0` for V1 and `1` for V2.

    Raises:
        GuardError: vLLM cannot serve this, or not guarded in this way.
    """
    folder = model_folder(parts.model)
    if (policy.harmful, policy.controversial, policy.reread_every) != ("condition", "condition", 0):
        raise GuardError(
            "In vLLM the guard conditions and does nothing else; --harmful, --controversial and "
            "--reread-every keep their defaults there. Use --engine lasa for the others."
        )
    if not (folder / "config.json").is_file():
        raise GuardError(f"{folder} is a PEFT adapter. Merge it into its base model, or use --engine lasa.")
    if (folder / SOFT_CONDITION).exists():
        raise GuardError(f"{folder} was aligned with a soft condition, which has no tokens. Use --engine lasa.")
    lasa = {"interpreter": str(parts.interpreter.resolve()), "condition": parts.condition, "force": force}
    generation = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    return [
        *("--model", str(folder), "--served-model-name", name, "--host", host, "--port", str(port)),
        *("--max-num-seqs", str(max_rows), "--override-generation-config", json.dumps(generation)),
        *("--additional-config", json.dumps({"lasa": lasa})),
        *("--logits-processors", PROCESSORS[runner], "--scheduler-cls", "lasa_vllm.scheduler.guarded_scheduler"),
    ]


def serve_with_vllm(
    parts: Parts, policy: Policy, *, api_key: str | None, extra: Sequence[str], **settings: Any
) -> NoReturn:
    """Become `vllm serve`.

    Args:
        parts: What is served.
        policy: Actions.
        api_key: Key that clients must give.
        extra: Further arguments of `vllm serve`.
        settings: As of `vllm_arguments`.

    Raises:
        GuardError: vLLM is not installed, or cannot serve this.
    """
    missing = [package for package in ("vllm", "lasa_vllm") if find_spec(package) is None]
    if missing:
        raise GuardError(
            f"{' and '.join(missing)} cannot be imported here. Install vllm, lasa and lasa-vllm into one environment "
            "(see plugins/lasa-vllm/README.md)."
        )
    environment = {"VLLM_USE_V2_MODEL_RUNNER": "0", **os.environ, **({"VLLM_API_KEY": api_key} if api_key else {})}
    runner = environment["VLLM_USE_V2_MODEL_RUNNER"]
    arguments = vllm_arguments(parts, policy, runner=runner, **settings)
    os.execve(sys.executable, [sys.executable, "-m", SERVER, *arguments, *extra], environment)
