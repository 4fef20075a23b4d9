"""Start vLLM's own server with the guard inside, for models that outgrow one machine (see `plugins/lasa-vllm`)."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn
from urllib.request import ProxyHandler, build_opener

from lasa.conditioning.decision import Policy
from lasa.errors import GuardError
from lasa.guard.system import System
from lasa.interpreter.probe import CHAT_TEMPLATE
from lasa.models.activated import stored_tokens
from lasa.models.origin import model_folder
from lasa.models.settings import ModelSettings
from lasa.models.soft_condition import SOFT_CONDITION

PROCESSORS = {"0": "lasa_vllm.processor_v1:ConditionProcessor", "1": "lasa_vllm.processor_v2:ConditionProcessor"}
"""The plugin's logits processors, by `VLLM_USE_V2_MODEL_RUNNER`."""

SERVER = "vllm.entrypoints.openai.api_server"
"""What `vllm serve` runs."""

SHUTDOWN_S = 60


def vllm_arguments(
    model: ModelSettings, *, name: str, host: str, port: int, max_rows: int, max_new_tokens: int, temperature: float
) -> list[str]:
    """The arguments of `vllm serve` for a model, without a guard.

    Args:
        model: Which model, and how its weights are held.
        name: Name of the model for clients.
        host: Address to bind.
        port: Port.
        max_rows: Answers written at the same time.
        max_new_tokens: Length of an answer where the request does not say, and its limit.
        temperature: Temperature where the request does not say.

    Raises:
        GuardError: vLLM cannot serve this.
    """
    folder = model_folder(model.path, model.revision)
    if stored_tokens(folder):
        raise GuardError(
            f"The adapter in {folder} acts only behind the condition, which vLLM does not do, nor can it be merged. "
            "Use --engine lasa, or align with adapter: everywhere and merge (`lasa merge`)."
        )
    if not (folder / "config.json").is_file():
        raise GuardError(
            f"{folder} is a PEFT adapter. Merge it into its base model (`lasa merge`), or use --engine lasa."
        )
    if (folder / SOFT_CONDITION).exists():
        raise GuardError(f"{folder} was aligned with a soft condition, which has no tokens. Use --engine lasa.")
    generation = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    return [
        *("--model", str(folder), "--dtype", model.dtype, "--tokenizer-mode", "hf", "--served-model-name", name),
        *("--host", host, "--port", str(port)),
        *("--max-num-seqs", str(max_rows), "--override-generation-config", json.dumps(generation)),
    ]


def guard_arguments(system: System, policy: Policy, *, runner: str = "0") -> list[str]:
    """The arguments of `vllm serve` that put the guard inside.

    Args:
        system: What is served.
        policy: Actions.
        runner: vLLM's model runner, `0` for V1 and `1` for V2.

    Raises:
        GuardError: vLLM does not guard in this way.
    """
    answered = [name for name, action in policy.categories.items() if action == "off"]
    others = replace(policy, categories={}, reread_every=0)
    if others != Policy(condition=policy.condition) or len(answered) < len(policy.categories):
        raise GuardError(
            "In vLLM the guard conditions and does nothing else; --harmful, --controversial and --uncovered keep their "
            "defaults there, and --category may only be NAME=off. Use --engine lasa for the others."
        )
    if policy.reread_every > 1:
        raise GuardError("In vLLM answers are read at every token: --reread-every is 0 or 1 there.")
    lasa: dict[str, Any] = {"interpreter": str(system.interpreter_folder.resolve())}
    lasa |= {"condition": system.condition, "force": system.forced}
    lasa |= {"answered": answered, "read_answers": policy.reread_every == 1}
    template = system.interpreter_folder / CHAT_TEMPLATE
    return [
        *(["--chat-template", str(template.resolve())] if template.is_file() else []),
        *("--additional-config", json.dumps({"lasa": lasa})),
        *("--logits-processors", PROCESSORS[runner], "--scheduler-cls", "lasa_vllm.scheduler.guarded_scheduler"),
    ]


def serve_with_vllm(
    system: System, policy: Policy, *, api_key: str | None, extra: Sequence[str], **settings: Any
) -> NoReturn:
    """Become `vllm serve`.

    Args:
        system: What is served.
        policy: Actions.
        api_key: Key that clients must give.
        extra: Further arguments of `vllm serve`.
        settings: As of `vllm_arguments`.

    Raises:
        GuardError: vLLM is not installed, or cannot serve this.
    """
    _check_installed("vllm", "lasa_vllm")
    environment = {**_environment(), **({"VLLM_API_KEY": api_key} if api_key else {})}
    guard = guard_arguments(system, policy, runner=environment["VLLM_USE_V2_MODEL_RUNNER"])
    arguments = [*vllm_arguments(system.model, **settings), *guard, *extra]
    os.execve(sys.executable, [sys.executable, "-m", SERVER, *arguments], environment)


@contextmanager
def running_vllm(system: System, *, log: Path, extra: Sequence[str], **settings: Any) -> Iterator[tuple[str, str]]:
    """A `vllm serve` of one's own on this machine, for as long as the context lasts.

    Args:
        system: What is served, with the guard inside where it is evaluated behind one.
        log: File that gets vLLM's output.
        extra: Further arguments of `vllm serve`.
        settings: `name`, `max_rows`, `max_new_tokens` and `temperature` of `vllm_arguments`.

    Yields:
        Its URL, and the key that it asks for.

    Raises:
        GuardError: vLLM is not installed, cannot serve this, or does not start.
    """
    _check_installed("vllm", *(["lasa_vllm"] if system.guarded else []))
    key, port = secrets.token_urlsafe(), _free_port()
    environment = {**_environment(), "VLLM_API_KEY": key}
    if not system.guarded:
        environment["VLLM_PLUGINS"] = ""  # the plugin, where it is installed, serves nothing without a guard
        guard = []
    else:
        guard = guard_arguments(system, Policy(), runner=environment["VLLM_USE_V2_MODEL_RUNNER"])
    arguments = [*vllm_arguments(system.model, host="127.0.0.1", port=port, **settings), *guard, *extra]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", SERVER, *arguments], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while not _is_up(f"http://127.0.0.1:{port}/health"):
                if server.poll() is not None:
                    last = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
                    raise GuardError(f"vLLM did not start: {''.join(last)} (all of its output is in {log}).")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1", key
        finally:
            server.terminate()
            try:
                server.wait(SHUTDOWN_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _check_installed(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise GuardError(
            f"{' and '.join(missing)} cannot be imported here. Install vllm, lasa and lasa-vllm into one environment "
            "(see plugins/lasa-vllm/README.md)."
        )


def _environment() -> dict[str, str]:
    return {"VLLM_USE_V2_MODEL_RUNNER": "0", **os.environ}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _is_up(url: str) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=5):
            return True
    except OSError:
        return False
