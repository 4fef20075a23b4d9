"""A system under evaluation inside vLLM: the server is started for the evaluation, and stopped after it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lasa.artifacts import file_hash, fingerprint
from lasa.evaluation.answering import Answerer
from lasa.models import model_folder
from lasa.run_folder import open_run
from lasa.serving.loading import find_parts
from lasa.serving.vllm import running_vllm


@contextmanager
def vllm_system(
    *,
    run: Path | None,
    system: str | None,
    model: str,
    interpreter: Path | None,
    dtype: str,
    max_new_tokens: int,
    max_rows: int,
    log: Path,
    extra: Sequence[str],
) -> Iterator[tuple[Answerer, dict[str, Any]]]:
    """A run's system, or a model with or without an interpreter, in a vLLM that runs meanwhile.

    Args:
        run: Run folder; its recipe says whether the system is guarded.
        system: Name of the run's system.
        model: Model folder, or a shipped model, when there is no run.
        interpreter: Interpreter folder, when there is no run; without it the model is not guarded.
        dtype: Of the weights, when there is no run.
        max_new_tokens: Length limit of an answer.
        max_rows: Answers written at the same time.
        log: File that gets vLLM's output.
        extra: Further arguments of `vllm serve`.

    Yields:
        What answers, and what decides its answers.

    Raises:
        GuardError: There is no such system, or vLLM does not serve it.
    """
    from lasa.evaluation.endpoint import ChatClient, EndpointModel

    parts = None
    called = Path(model).name
    if run and system:
        parts = find_parts(run=run, system=system)
        model, dtype, called = parts.model, parts.dtype, system
        parts = parts if open_run(run).systems[system].guarded else None
    elif interpreter:
        parts = find_parts(model=model, interpreter=interpreter)
        called = f"{called}-guarded"
    files = {file.name: file.stat() for file in sorted(model_folder(model).glob("*.safetensors"))}
    weights = fingerprint([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files.items()])
    facts = {"system": called, "model": weights, "vllm": ["--dtype", dtype, *extra], "max_new_tokens": max_new_tokens}
    if parts is not None:
        facts |= {"interpreter": file_hash(parts.interpreter / "config.json"), "condition": parts.condition}
    settings = {"name": called, "max_rows": max_rows, "max_new_tokens": max_new_tokens, "temperature": 0.0}
    with running_vllm(model, dtype, parts, log=log, extra=extra, **settings) as (url, key):
        client = ChatClient(
            url,
            called,
            api_key=key,
            timeout_s=600,
            parallel=max_rows,
            options={"temperature": 0, "max_tokens": max_new_tokens},
        )
        yield EndpointModel(client), facts
