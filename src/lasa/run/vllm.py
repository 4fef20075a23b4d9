"""A system under evaluation inside vLLM: the server is started for the evaluation, and stopped after it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lasa.evaluation.answering import Answerer
from lasa.evaluation.endpoint import ChatClient, EndpointModel
from lasa.files.artifacts import file_hash, fingerprint
from lasa.guard.system import System
from lasa.models.origin import model_folder
from lasa.serving.vllm import running_vllm


@contextmanager
def vllm_system(
    system: System, *, max_new_tokens: int, max_rows: int, log: Path, extra: Sequence[str]
) -> Iterator[tuple[Answerer, dict[str, Any]]]:
    """A system in a vLLM that runs meanwhile.

    Args:
        system: What is evaluated.
        max_new_tokens: Length limit of an answer.
        max_rows: Answers written at the same time.
        log: File that gets vLLM's output.
        extra: Further arguments of `vllm serve`.

    Yields:
        What answers, and what decides its answers.

    Raises:
        GuardError: vLLM does not serve it.
    """
    stats = {
        file.name: file.stat()
        for file in sorted(model_folder(system.model.path, system.model.revision).glob("*.safetensors"))
    }
    weights = fingerprint([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()])
    vllm = ["--dtype", system.model.dtype, *extra]
    facts = {"system": system.name, "model": weights, "vllm": vllm, "max_new_tokens": max_new_tokens}
    if system.guarded:
        facts |= {"interpreter": file_hash(system.interpreter_folder / "config.json"), "condition": system.condition}
    settings = {"name": system.name, "max_rows": max_rows, "max_new_tokens": max_new_tokens, "temperature": 0.0}
    with running_vllm(system, log=log, extra=extra, **settings) as (url, key):
        client = ChatClient(
            url,
            system.name,
            api_key=key,
            timeout_s=600,
            parallel=max_rows,
            options={"temperature": 0, "max_tokens": max_new_tokens},
        )
        yield EndpointModel(client), facts
