"""Answer benchmark prompts with one system and judge the answers: in batches, resumable, on several processes.

The batches follow from the prompts alone, and a batch is answered as a whole or not at all: a run that was stopped, or
that is spread over more processes, gives every prompt the same company and so the same answer.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from lasa.data.prompts import Prompt
from lasa.errors import ArtifactError, DataError, RecipeError
from lasa.evaluation.answering import Answer, Answerer
from lasa.evaluation.outcomes import Sample
from lasa.evaluation.panel import Panel, Task
from lasa.evaluation.samples import parse_sample, sample_line
from lasa.files.artifacts import write_text
from lasa.launch import launched, started
from lasa.progress import progress, say

LONGEST_WAIT = timedelta(days=7)
"""Of a process for the others: one may still answer, or judge again, when the rest is done."""


@dataclass(frozen=True)
class Processes:
    """The processes that share an evaluation.

    Attributes:
        index: This process, from 0.
        count: How many there are.
        wait: Returns when all of them have called it.
        device: Where this process computes, as `load_model` takes it.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None
    device: str = "auto"


def launched_processes() -> Processes:
    """The processes that `accelerate launch` (or torchrun) started; one where none did.

    Raises:
        RecipeError: They do not know of each other, and each would answer everything.
    """
    if not launched():
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)  # it has to be told of CPUs
    if state.num_processes != started():
        raise RecipeError(
            f"{started()} processes were started, and accelerate sees {state.num_processes}. Start them "
            "with `accelerate launch --num_processes N` or torchrun, without a configuration of another machine."
        )
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone, state.device.type)


def generate_samples(
    path: Path,
    benchmarks: Mapping[str, Sequence[Prompt]],
    panel: Panel,
    system: Answerer,
    *,
    batch_size: int,
    batch_tokens: int | None = None,
    name: str = "",
    processes: Processes | None = None,
) -> None:
    """Generate and judge every prompt that `path` has no sample of yet, appending as it goes.

    A batch is judged while the next one is answered. Answers that are there without a verdict of these judges (a call
    failed, or others judged them) are judged again. At the end the samples stand in the order of the benchmarks.

    Args:
        path: The samples file of this system.
        benchmarks: Prompts by split.
        panel: Judges the answers.
        system: Answers the prompts.
        batch_size: Prompts answered together, at most.
        batch_tokens: Tokens that the prompts and answers of a batch hold, at most; a longer prompt is alone. None:
            the system's own budget.
        name: Shown with the progress.
        processes: The processes that share the work; each calls this function with the same arguments.

    Raises:
        ArtifactError: A stored sample is damaged, or answers a prompt that is not in the benchmarks.
        DataError: Too many judgements failed; see `Panel.check_failures`.
    """
    processes = processes or Processes()
    tasks = [(split, prompt) for split, prompts in benchmarks.items() for prompt in prompts]
    batches = plan_batches(tasks, system, batch_size, batch_tokens or system.budget)
    if processes.index == 0:
        for caveat in panel.check(tasks):
            say(f"Caution: {caveat}")
        path.parent.mkdir(parents=True, exist_ok=True)
        _keep_whole_batches(path, tasks, batches, panel)
    processes.wait()
    done = set(_stored([path], tasks))
    todo = [batch for batch in batches if not done.issuperset(batch)]
    processes.wait()  # all have read the file before the first one writes to it
    mine = todo[processes.index :: processes.count]
    written = path if processes.index == 0 else path.with_name(f"{path.name}.{processes.index}")
    total = sum(map(len, mine))
    with written.open("a", encoding="utf-8") as file, progress(f"Answering as {name}", total, "prompts") as advance:

        def write(judged: Sequence[Sample]) -> None:
            file.write("".join(map(sample_line, judged)))
            file.flush()
            advance(len(judged))
            panel.check_failures(judged)

        with _JudgingBeside(panel, write) as judging:
            for batch in mine:
                chosen = [tasks[row] for row in batch]
                judging.give(chosen, system([prompt for _, prompt in chosen]))
    processes.wait()
    if processes.index == 0:
        samples = _stored([path, *_parts(path)], tasks)
        write_text(path, "".join(sample_line(samples[row]) for row in sorted(samples)))
        _remove_parts(path)
    processes.wait()


class _JudgingBeside:
    """Judges one batch in a thread while the next one is answered; batches are written in their order.

    What was answered is judged and written even where answering ends early.
    """

    def __init__(self, panel: Panel, write: Callable[[Sequence[Sample]], None]) -> None:
        self._panel, self._write = panel, write
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._waiting: Future[list[Sample]] | None = None

    def __enter__(self) -> "_JudgingBeside":
        return self

    def give(self, tasks: Sequence[Task], answers: Sequence[Answer]) -> None:
        """Have a batch judged, and write the one before."""
        before, self._waiting = self._waiting, self._pool.submit(self._panel.samples, tasks, answers)
        if before is not None:
            self._write(before.result())

    def __exit__(self, *_: object) -> None:
        with self._pool:
            if self._waiting is not None:
                self._write(self._waiting.result())


def plan_batches(tasks: Sequence[Task], system: Answerer, batch_size: int, batch_tokens: int) -> list[list[int]]:
    """Positions of the prompts of each batch; prompts of similar length share one, the longest come first.

    A batch is padded to its longest row, so it holds as many tokens as rows times that.
    """
    sizes = [system.tokens(prompt) for _, prompt in tasks]
    order = sorted(range(len(tasks)), key=lambda row: (-sizes[row], -len(tasks[row][1].text)))  # stable
    batches: list[list[int]] = []
    for row in order:
        widest = sizes[batches[-1][0]] if batches else 0
        if not batches or len(batches[-1]) == batch_size or widest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _keep_whole_batches(path: Path, tasks: Sequence[Task], batches: Sequence[Sequence[int]], panel: Panel) -> None:
    """Bring what a stopped call left into one file: whole batches only, each answer with a verdict of these judges."""
    samples = _stored([path, *_parts(path)], tasks)
    kept = [row for batch in batches if all(row in samples for row in batch) for row in batch]
    before = [samples[row] for row in kept]
    judged = panel.again(before)
    if samples or path.exists():  # it may hold nothing but a line that was cut short
        write_text(path, "".join(map(sample_line, judged)))
    _remove_parts(path)
    panel.check_failures([new for new, old in zip(judged, before, strict=True) if new is not old])


def _stored(paths: Sequence[Path], tasks: Sequence[Task]) -> dict[int, Sample]:
    """The samples of the first file, and those of the others that it lacks, by the position of their prompt.

    A last line that was cut short is no sample.
    """
    waiting: dict[str, list[int]] = {}
    for row in reversed(range(len(tasks))):
        waiting.setdefault(_key(*tasks[row]), []).append(row)
    found: dict[int, Sample] = {}
    for path in paths:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break
            try:
                sample = parse_sample(f"{path}: row {number}", line.decode())
                rows = waiting[_key(sample.split, sample.prompt)]
                if rows or path == paths[0]:
                    found[rows.pop()] = sample
            except (DataError, UnicodeDecodeError, LookupError):
                raise ArtifactError(
                    f"{path}: row {number} is damaged, or answers another prompt than the benchmarks hold there. "
                    "Restore it, or remove the file to have all prompts answered again."
                ) from None
    return found


def _key(split: str, prompt: Prompt) -> str:
    return json.dumps([split, prompt.to_json()], sort_keys=True)


def _parts(path: Path) -> list[Path]:
    """What other processes than the first wrote."""
    return sorted(part for part in path.parent.glob(f"{path.name}.*") if part.suffix[1:].isdigit())


def _remove_parts(path: Path) -> None:
    for part in _parts(path):
        part.unlink()
