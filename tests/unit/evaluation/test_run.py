import json
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace

import pytest

from lasa.data.prompts import user_prompt
from lasa.errors import ArtifactError, DataError, RecipeError
from lasa.evaluation.answering import Answer
from lasa.evaluation.outcomes import Outcome, Verdict
from lasa.evaluation.panel import Panel
from lasa.evaluation.run import Processes, generate_samples, launched_processes, plan_batches
from lasa.evaluation.samples import read_samples

PROMPTS = [user_prompt(f"q{n}", "en", "word " * (n % 7 + 1) + str(n), harmful=True, source="t") for n in range(20)]


@dataclass
class Echo:
    """Answers with the prompt and its company in the batch; stops after some batches, as if it were killed."""

    stop_after: int = 10**9
    batches: list[list[str]] = field(default_factory=list)

    def tokens(self, prompt):
        return len(prompt.text.split()) + 10

    def __call__(self, prompts):
        if len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        self.batches.append([prompt.query_id for prompt in prompts])
        return [Answer(f"{prompt.text} of {len(prompts)}", 0.5, True) for prompt in prompts]


@dataclass
class Rule:
    """Complied; unscored for the texts it fails on."""

    name: str = "rule"
    fails: tuple[str, ...] = ()

    def __call__(self, prompts, answers):
        return [
            Verdict(None, reason="failed") if prompt.query_id in self.fails else Verdict(Outcome.COMPLIED)
            for prompt in prompts
        ]


def run(path, system, judge=None, processes=None):
    panel = Panel(judge or Rule())
    generate_samples(path, {"a": PROMPTS}, panel, system, batch_size=4, batch_tokens=60, processes=processes)
    return path.read_bytes()


def test_batches_keep_to_rows_and_tokens_and_a_long_prompt_is_alone():
    long = user_prompt("long", "en", "word " * 100, harmful=True)
    tasks = [("a", prompt) for prompt in [*PROMPTS, long]]
    batches = plan_batches(tasks, Echo(), 4, 60)
    assert sorted(row for batch in batches for row in batch) == list(range(21))
    sizes = [[Echo().tokens(tasks[row][1]) for row in batch] for batch in batches]
    assert all(len(batch) <= 4 for batch in sizes)
    assert all(max(batch) * len(batch) <= 60 for batch in sizes if len(batch) > 1)
    assert batches[0] == [20]


def test_samples_stand_in_the_order_of_the_benchmark(tmp_path):
    run(tmp_path / "a.jsonl", Echo())
    samples = read_samples(tmp_path / "a.jsonl")
    assert [sample.prompt for sample in samples] == PROMPTS
    assert {(sample.score, sample.flagged, sample.judge) for sample in samples} == {(0.5, True, "rule")}


@pytest.mark.parametrize("torn", [False, True])
def test_a_stopped_run_goes_on_with_the_same_batches_and_answers_none_twice(tmp_path, torn):
    whole = run(tmp_path / "whole.jsonl", uninterrupted := Echo())
    path = tmp_path / "stopped.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(path, first := Echo(stop_after=2))
    if torn:  # killed while a batch was written
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    assert run(path, second := Echo()) == whole
    kept = first.batches[:1] if torn else first.batches
    assert sorted(kept + second.batches) == sorted(uninterrupted.batches)
    run(path, third := Echo())
    assert third.batches == []


def test_several_processes_write_what_one_writes(tmp_path):
    whole = run(tmp_path / "whole.jsonl", Echo())
    barrier = threading.Barrier(2)
    systems = [Echo(), Echo()]
    threads = [
        threading.Thread(target=run, args=(tmp_path / "shared.jsonl", systems[index]),
                         kwargs={"processes": Processes(index, 2, lambda: barrier.wait(20))})
        for index in range(2)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (tmp_path / "shared.jsonl").read_bytes() == whole
    assert all(system.batches for system in systems)
    assert [path.name for path in tmp_path.glob("shared*")] == ["shared.jsonl"]


def test_a_process_waits_for_slower_ones_longer_than_a_training_step(monkeypatch):
    def state(**settings):
        waits.append(settings["timeout"])
        return SimpleNamespace(
            process_index=1, num_processes=2, wait_for_everyone=None, device=SimpleNamespace(type="cpu")
        )

    waits = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", state)
    assert launched_processes() == Processes(1, 2, None, "cpu")
    assert waits[0] >= timedelta(days=1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match="3 processes were started, and accelerate sees 2"):
        launched_processes()


def test_what_other_processes_left_behind_counts(tmp_path):
    whole = run(tmp_path / "whole.jsonl", Echo())
    lines = whole.splitlines(keepends=True)
    (tmp_path / "killed.jsonl").write_bytes(b"".join(lines[:10]))
    (tmp_path / "killed.jsonl.1").write_bytes(b"".join(lines[8:]))  # two of them had been taken over already
    assert run(tmp_path / "killed.jsonl", system := Echo()) == whole
    assert system.batches == []
    assert not (tmp_path / "killed.jsonl.1").exists()


def test_an_answer_without_verdict_is_judged_again_and_not_asked_again(tmp_path):
    path = tmp_path / "a.jsonl"
    run(path, Echo(), Rule(fails=("q3", "q4")))
    assert sum(sample.verdict.outcome is None for sample in read_samples(path)) == 2
    run(path, again := Echo(), Rule(fails=("q4",)))
    unscored = [sample.prompt.query_id for sample in read_samples(path) if sample.verdict.outcome is None]
    assert (unscored, again.batches) == (["q4"], [])


def test_another_judge_judges_the_answers_that_are_there(tmp_path):
    path = tmp_path / "a.jsonl"
    run(path, Echo())
    run(path, again := Echo(), Rule("other"))
    assert {sample.judge for sample in read_samples(path)} == {"other"}
    assert again.batches == []


def test_damaged_and_foreign_rows_are_named_and_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    whole = run(path, Echo())
    row = json.loads(whole.splitlines()[0])
    for line in (b'{"split": "a"}\n', b"{}\n", json.dumps({**row, "split": "b"}).encode() + b"\n"):
        path.write_bytes(whole + line)
        with pytest.raises(ArtifactError, match=r"a\.jsonl: row 21 is damaged, or answers another prompt"):
            run(path, Echo())
        assert path.read_bytes() == whole + line


class Failing:
    """A judge whose endpoint is down for some questions."""

    name = "llm:j"

    def __init__(self, *works):
        self.works, self.asked = works, 0

    def __call__(self, prompts, answers):
        self.asked += len(prompts)
        return [
            Verdict(Outcome.COMPLIED)
            if p.query_id in self.works
            else Verdict(None, reason="judge failed: HTTP 401 (key)")
            for p in prompts
        ]


def test_a_judge_that_fails_stops_the_run_before_it_is_wasted_and_the_answers_are_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    judge, system = Failing(), Echo()
    with pytest.raises(
        DataError, match=r"(\d+) of \1 judgements failed, most recently: judge failed: HTTP 401 \(key\)"
    ):
        run(path, system, judge)
    answered = sum(map(len, system.batches))
    assert judge.asked == answered < 16
    run(path, again := Echo(), Rule("llm:j"))
    assert sum(map(len, again.batches)) == 20 - answered
    assert all(sample.verdict.outcome for sample in read_samples(path))


def test_a_few_failures_are_counted_and_stop_nothing(tmp_path):
    run(tmp_path / "a.jsonl", Echo(), Failing(*(f"q{n}" for n in range(2, 20))))
    assert sum(sample.verdict.outcome is None for sample in read_samples(tmp_path / "a.jsonl")) == 2


def test_a_batch_is_judged_while_the_next_one_is_answered(tmp_path):
    answering_second, judged_first = threading.Event(), threading.Event()

    class Slow(Rule):
        def __call__(self, prompts, answers):
            assert judged_first.is_set() or answering_second.wait(10)  # it would wait in vain for what comes after it
            judged_first.set()
            return super().__call__(prompts, answers)

    class Watched(Echo):
        def __call__(self, prompts):
            if self.batches:
                answering_second.set()
                assert judged_first.wait(10)
            return super().__call__(prompts)

    assert run(tmp_path / "b.jsonl", Watched(), Slow()) == run(tmp_path / "c.jsonl", Echo())
