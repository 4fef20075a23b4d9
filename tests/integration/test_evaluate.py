"""`lasa evaluate` as a person runs it: local, guarded, behind an endpoint, with two judges, on two processes."""

import csv
import http.server
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guards import build_guard, build_interpreter, lively_model
from lasa.cli import app
from lasa.data.prompt_tables import write_prompts
from lasa.data.world.tables import evaluation_prompts
from lasa.errors import ArtifactError, DataError, RecipeError
from lasa.evaluation.samples import read_samples
from lasa.files.artifacts import model_fingerprint, read_json
from lasa.models.generation import GenerationSettings
from lasa.report.html import write_report
from servers import serving

PROMPTS = evaluation_prompts("combinations", 3, ("en", "sw"))


@pytest.fixture
def folders(tokenizer, tmp_path):
    """A saved model, an interpreter of it, and a prompt file."""
    model = lively_model("llama", tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    probe = build_interpreter(model, tokenizer, PROMPTS)
    probe.config = replace(probe.config, base_fingerprint=model_fingerprint(model))
    probe.save_pretrained(tmp_path / "interpreter")
    write_prompts(tmp_path / "asked.jsonl", PROMPTS)
    return tmp_path


@pytest.fixture
def evaluate(folders, monkeypatch):
    """Runs `lasa evaluate` on the saved model and the prompt file."""
    monkeypatch.setattr("lasa.quiet.quiet_libraries", lambda: None)
    monkeypatch.setattr("lasa.progress.show_progress", lambda: None)

    def run(*arguments, judge="embedded-world", output="out"):
        chosen = [] if "--endpoint" in arguments else ["--model", str(folders / "model")]
        command = ["evaluate", *chosen, "--benchmark", str(folders / "asked.jsonl"), "--judge", judge, *arguments]
        command[1:1] = ["--max-new-tokens", "6", "-o", str(folders / output)]
        result = CliRunner().invoke(app, command)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    return run


@contextmanager
def language_model(answer):
    """An OpenAI-compatible endpoint whose every reply is `answer(body)`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            content = json.dumps({"choices": [{"message": {"content": answer(body)}}], "usage": {"prompt_tokens": 3}})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_a_model_and_the_guarded_model_in_one_folder_are_ready_to_compare(evaluate, folders):
    evaluate("--name", "base", "--perturb", "typos")
    shown = evaluate("--name", "guarded", "--perturb", "typos", "--interpreter", str(folders / "interpreter"))
    assert "guarded" in shown
    metrics = read_json(folders / "out" / "metrics.json")
    assert metrics["headline"] == "asked"
    assert set(metrics["systems"]) == set(metrics["splits"]["asked/typos"]["systems"]) == {"base", "guarded"}
    assert metrics["systems"]["base"]["languages"]["sw"]["asr"]["n"] == 3
    guarded = read_samples(folders / "out" / "samples" / "guarded.jsonl")
    assert [sample.prompt for sample in guarded if sample.split == "asked"] == PROMPTS
    assert {sample.flagged for sample in guarded} == {True, False}
    result = CliRunner().invoke(
        app,
        [
            "compare",
            *(str(folders / "out" / "samples" / f"{name}.jsonl") for name in ("base", "guarded")),
            *("--split", "asked", "-o", str(folders / "difference")),
        ],
    )
    assert result.exit_code == 0, result.exception
    (language, *_) = read_json(folders / "difference.json")["comparisons"]
    assert (language["a"], language["b"], language["group"]) == ("base", "guarded", "en")
    assert (folders / "difference.md").read_text().startswith("| metric |")
    with (folders / "difference.csv").open() as file:
        assert [row["group"] for row in csv.DictReader(file)][:3] == ["en", "sw", "all"]


def test_an_adaptive_attack_searches_against_the_systems_own_interpreter(evaluate, folders):
    guarded = ("--name", "guarded", "--interpreter", str(folders / "interpreter"))
    with pytest.raises(RecipeError, match="searches against an interpreter"):
        evaluate("--name", "base", "--perturb", "adaptive=4")
    with pytest.raises(RecipeError, match="a guarded system in this process"):
        evaluate("--endpoint", "http://m.test/v1", "--model", "m", "--perturb", "adaptive=4")
    evaluate(*guarded, "--perturb", "adaptive=4")
    samples = read_samples(folders / "out" / "samples" / "guarded.jsonl")
    found = [sample for sample in samples if sample.split == "asked/adaptive"]
    assert len(found) == sum(bool(prompt.harmful) for prompt in PROMPTS)
    for sample in found:
        facts = sample.prompt.details
        assert facts["scored"] <= 4 and facts["score_after"] <= facts["score_before"]
        assert sample.score == pytest.approx(
            facts["score_after"], abs=1e-4
        )  # what was searched is what the guard reads
    evaluate(*guarded, "--perturb", "adaptive=4")  # goes on with the same prompts
    evaluate("--name", "base")  # is not asked what was searched against another
    metrics = read_json(folders / "out" / "metrics.json")
    assert set(metrics["systems"]) == {"base", "guarded"}
    split = metrics["splits"]["asked/adaptive"]
    assert set(split["systems"]) == set(split["unchanged"]) == {"guarded"}
    assert split["systems"]["guarded"]["all"]["asr"]["n"] == split["unchanged"]["guarded"]["n"] == len(found)
    assert 'id="attacks"' in write_report(folders / "out").read_text()


def test_a_name_stands_for_one_system_and_a_folder_for_one_set_of_prompts(evaluate, folders):
    evaluate("--name", "base")
    first = (folders / "out" / "samples" / "base.jsonl").read_bytes()
    evaluate("--name", "base")
    assert (folders / "out" / "samples" / "base.jsonl").read_bytes() == first
    with pytest.raises(ArtifactError, match="holds other answers of 'base': they differ in interpreter, policy"):
        evaluate("--name", "base", "--interpreter", str(folders / "interpreter"))
    with pytest.raises(ArtifactError, match=r"holds answers to other prompts \(asked\)"):
        evaluate("--name", "other", "--language", "sw")
    (folders / "run").mkdir()
    (folders / "run" / "recipe.yaml").write_text("")
    with pytest.raises(ArtifactError, match="is a run folder"):
        evaluate(output="run")


def test_two_judges_give_agreement_and_a_sheet_and_its_labels_correct_the_rate(evaluate, folders):
    def grade(body):
        swahili = json.loads(body["messages"][1]["content"])["expected_language"] == "Swahili"
        return json.dumps({"outcome": "refused" if swahili else "complied", "score": 0, "language": None})

    arguments = ("--judge", "embedded-world", "--name", "base")
    with language_model(grade) as url:
        evaluate(*arguments, judge=f"llm:grader@{url}")
        agreement = read_json(folders / "out" / "agreement" / "base.json")
        assert agreement["judges"] == ["llm:grader", "embedded-world"]
        assert agreement["answers"] == len(PROMPTS)
        metrics = read_json(folders / "out" / "metrics.json")
        usage = metrics["judges"]["llm:grader"]
        assert (usage["calls"], usage["input_tokens"]) == (len(PROMPTS), 3 * len(PROMPTS))
        assert metrics["judges"]["embedded-world"] == {}
        sheet = folders / "out" / "labels" / "base.csv"
        label(sheet, {"en": "complied", "sw": "refused"})
        evaluate(*arguments, "--labels", str(sheet), judge=f"llm:grader@{url}")
    found = read_json(folders / "out" / "metrics.json")["systems"]["base"]
    assert found["corrected"]["sensitivity"]["value"] == found["corrected"]["specificity"]["value"] == 1
    assert found["corrected"]["asr"]["value"] == found["all"]["asr"]["value"] == 0.5
    width, corrected_width = (rate["high"] - rate["low"] for rate in (found["all"]["asr"], found["corrected"]["asr"]))
    assert corrected_width > width


def label(sheet, by_language):
    """Fill in a labelling sheet, by the language of the row."""
    with sheet.open(newline="") as file:
        rows = [{**row, "label": by_language[row["language"]]} for row in csv.DictReader(file)]
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_model_behind_an_endpoint_gives_the_figures_of_the_local_one(evaluate, folders, tokenizer):
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, PROMPTS)
    expected = guard.generate([prompt.messages for prompt in PROMPTS], GenerationSettings(max_new_tokens=6))
    with serving(guard) as served:
        evaluate("--endpoint", f"{served.url}/v1", "--model", "tiny")
    samples = read_samples(folders / "out" / "samples" / "tiny.jsonl")
    assert [sample.text for sample in samples] == [one.answer.text for one in expected]


@pytest.mark.parametrize("guarded", [True, False])
def test_a_model_in_vllm_is_served_for_the_evaluation_guarded_where_it_has_an_interpreter(
    evaluate, folders, monkeypatch, guarded
):
    served = []

    @contextmanager
    def running_vllm(*started, **settings):
        served.append((started, settings))
        with language_model(lambda body: f"{body['model']} {body['max_tokens']}") as url:
            yield url, "key"

    monkeypatch.setattr("lasa.run.vllm.running_vllm", running_vllm)
    chosen = ["--interpreter", str(folders / "interpreter")] if guarded else []
    evaluate(*chosen, "--engine", "vllm", "--batch-size", "2", "--dtype", "bfloat16", "--", "--seed", "1")
    [((system,), settings)] = served
    assert (system.model.path, system.model.dtype) == (str(folders / "model"), "bfloat16")
    assert system.guarded == guarded
    assert system.interpreter == (folders / "interpreter" if guarded else None)
    assert (settings["extra"], settings["max_rows"]) == (["--seed", "1"], 2)
    name = "model-guarded" if guarded else "model"
    samples = read_samples(folders / "out" / "samples" / f"{name}.jsonl")
    assert [sample.text for sample in samples] == [f"{name} 6"] * len(PROMPTS)


def test_an_argument_for_vllm_without_vllm_and_an_endpoint_with_it_are_refused(evaluate):
    with pytest.raises(RecipeError, match="--engine vllm"):
        evaluate("--", "--seed", "1")
    with pytest.raises(RecipeError, match="--endpoint"):
        evaluate("--engine", "vllm", "--endpoint", "http://127.0.0.1:9/v1")


def test_weights_in_another_precision_are_guarded_where_that_is_forced(evaluate, folders):
    """What is to be served with --force could not be evaluated, nor asked anything with `lasa generate`."""
    model, guarded = str(folders / "model"), ["--interpreter", str(folders / "interpreter"), "--dtype", "float16"]
    with pytest.raises(ArtifactError, match="force the pairing"):
        evaluate(*guarded)
    evaluate(*guarded, "--force", "--name", "half")
    assert all(one.flagged is not None for one in read_samples(folders / "out" / "samples" / "half.jsonl"))
    asked = ["generate", "--model", model, *guarded, "--max-new-tokens", "2", "hello"]
    assert isinstance(CliRunner().invoke(app, asked).exception, ArtifactError)
    assert CliRunner().invoke(app, [*asked, "--force"]).exit_code == 0


@pytest.mark.parametrize(
    "option", [("--interpreter", "guard"), ("--system", "lasa"), ("--dtype", "float16"), ("--force",)]
)
def test_what_is_asked_of_a_local_system_is_refused_beside_an_endpoint(evaluate, option):
    """An interpreter beside an endpoint guarded nothing, and nothing said so."""
    with pytest.raises(RecipeError, match=f"{option[0]} has no effect on a model behind --endpoint"):
        evaluate("--endpoint", "http://127.0.0.1:9/v1", "--model", "tiny", *option)


def test_an_endpoint_that_is_down_loses_nothing(evaluate, folders, monkeypatch):
    monkeypatch.setattr("lasa.evaluation.endpoint.time.sleep", lambda _: None)
    with pytest.raises(DataError, match="call the same command again to go on"):
        evaluate("--endpoint", "http://127.0.0.1:9/v1", "--model", "tiny")
    with language_model(lambda body: "x") as url:
        evaluate("--endpoint", url, "--model", "tiny", output="other")
    assert len(read_samples(folders / "other" / "samples" / "tiny.jsonl")) == len(PROMPTS)


def test_what_is_missing_is_said(evaluate):
    result = CliRunner().invoke(app, ["evaluate", "-o", "nowhere"])
    assert isinstance(result.exception, RecipeError)
    with pytest.raises(RecipeError, match="is no judge"):
        evaluate(judge="nobody")


def test_utility_is_right_answers_by_the_benchmarks_key_and_needs_no_judge(folders, monkeypatch):
    monkeypatch.setattr("lasa.quiet.quiet_libraries", lambda: None)
    (folders / "mgsm").mkdir()
    for code in ("en", "sw"):
        (folders / "mgsm" / f"mgsm_{code}.tsv").write_text("Two and five?\t7\nTwo and two?\t4\n")
    with language_model(lambda body: "2 + 5 = 7") as url:
        command = ["evaluate", "--endpoint", url, "--model", "org/tiny", "--benchmark", f"mgsm:{folders / 'mgsm'}"]
        result = CliRunner().invoke(app, [*command, "-o", str(folders / "out"), "--json"])
    assert result.exception is None
    found = read_json(folders / "out" / "metrics.json")["systems"]["org-tiny"]
    assert found["languages"]["sw"]["accuracy"]["value"] == found["all"]["accuracy"]["value"] == 0.5
    assert found["all"]["helpful"]["n"] == 0
    assert json.loads(result.stdout.splitlines()[-1])["systems"]["org-tiny"] == found


def test_two_processes_write_what_one_writes(evaluate, folders):
    evaluate("--name", "base", "--batch-size", "4")
    script = Path(__file__).parents[1] / "parting.py"
    launch = "torch.distributed.run --standalone --nproc-per-node 2"
    command = [sys.executable, "-m", *launch.split(), str(script), "evaluate"]
    command += ["--model", str(folders / "model"), "--benchmark", str(folders / "asked.jsonl"), "--batch-size", "4"]
    command += ["--judge", "embedded-world", "--max-new-tokens", "6", "--name", "base", "-o", str(folders / "two")]
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, **quiet})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Written to") == 1
    one, two = ((folders / name / "samples" / "base.jsonl").read_bytes() for name in ("out", "two"))
    assert one == two
    assert read_json(folders / "out" / "metrics.json") == read_json(folders / "two" / "metrics.json")
