"""`lasa evaluate --engine vllm` starts vLLM, guarded where there is an interpreter, and stops it."""

from engines import expect
from test_server import LIMIT, SMALL
from typer.testing import CliRunner

from lasa.cli import app
from lasa.data.prompt_tables import write_prompts
from lasa.data.prompts import Prompt
from lasa.evaluation.samples import read_samples


def test_the_answers_are_those_of_the_transformers_guard(embedded, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    conversations = embedded.conversations[:16]
    answers, flags = expect(embedded, conversations, LIMIT)
    assert 0 < sum(flags) < 16
    prompts = [Prompt(str(n), "en", tuple(one), harmful=flags[n]) for n, one in enumerate(conversations)]
    write_prompts(tmp_path / "asked.jsonl", prompts)
    command = ["evaluate", "--engine", "vllm", "--model", str(embedded.model), "-o", str(tmp_path / "out")]
    command += ["--interpreter", str(embedded.interpreter), "--benchmark", str(tmp_path / "asked.jsonl")]
    command += ["--judge", "refusal-patterns", "--max-new-tokens", str(LIMIT), "--name", "mine", "--", *SMALL]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, (result.output, result.exception)
    samples = read_samples(tmp_path / "out" / "samples" / "mine.jsonl")
    assert [sample.text for sample in samples] == [one.text for one in answers]
