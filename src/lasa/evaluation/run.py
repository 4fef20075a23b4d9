"""Answer benchmark prompts with one system and judge the answers; resumable, one line per sample."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lasa.errors import RecipeError
from lasa.evaluation.outcomes import Judge, Sample
from lasa.generation import GenerationSettings, generate
from lasa.guard import Guard
from lasa.progress import progress
from lasa.prompts import Prompt
from lasa.rendering import render


def generate_samples(
    path: Path,
    benchmarks: Mapping[str, Sequence[Prompt]],
    judge: Judge,
    model: Any,
    tokenizer: Any,
    guard: Guard | None,
    *,
    max_new_tokens: int,
    batch_size: int,
    name: str = "",
) -> None:
    """Generate and judge every prompt that `path` has no sample of yet, appending as it goes.

    Args:
        path: The samples file of this system.
        benchmarks: Prompts by split.
        judge: Scores the answers.
        model: The system's model.
        tokenizer: Its tokenizer.
        guard: The guard before it, or None for an unguarded system.
        max_new_tokens: Length limit of an answer.
        batch_size: Prompts generated together; prompts of similar length share a batch.
        name: Shown with the progress.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done = _drop_torn_line(path)
    tasks = [(split, p) for split, prompts in benchmarks.items() for p in prompts]
    tasks.sort(key=lambda task: len(task[1].text), reverse=True)  # stable: the same order at every call
    settings = GenerationSettings(max_new_tokens=max_new_tokens)
    with path.open("a", encoding="utf-8") as file, progress(f"Answering as {name}", len(tasks), "prompts") as advance:
        advance(done)
        for start in range(done, len(tasks), batch_size):
            batch = tasks[start : start + batch_size]
            prompts = [prompt for _, prompt in batch]
            answers: list[tuple[str, float | None, bool | None]]
            if guard is None:
                ids = [render(tokenizer, p.messages).token_ids for p in prompts]
                answers = [(one.text, None, None) for one in generate(model, tokenizer, ids, settings)]
            else:
                guarded = guard.generate(
                    [p.messages for p in prompts], settings, languages=[p.language for p in prompts]
                )
                answers = [(one.answer.text, one.decision.score, one.decision.flagged) for one in guarded]
            verdicts = judge(prompts, [text for text, _, _ in answers])
            for (split, prompt), (text, score, flagged), verdict in zip(batch, answers, verdicts, strict=True):
                sample = Sample(split, prompt, text, verdict, judge.name, score, flagged)
                file.write(json.dumps(sample.to_json(), ensure_ascii=False) + "\n")
            file.flush()
            advance(len(batch))


def make_judge(name: str) -> Judge:
    """The judge that a recipe names.

    Raises:
        RecipeError: There is no such judge.
    """
    if name == "embedded-world":
        from lasa.embedded.judge import WorldJudge

        return WorldJudge()
    if name == "refusal-patterns":
        from lasa.evaluation.judges.refusal_patterns import RefusalPatternJudge

        return RefusalPatternJudge()
    raise RecipeError(f"evaluation.judge: there is no judge {name!r}; use embedded-world or refusal-patterns.")


def _drop_torn_line(path: Path) -> int:
    """Number of complete samples in a file; a last line that was cut short is removed."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.count(b"\n")
