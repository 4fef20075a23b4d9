"""`lasa locate` as a person calls it: what it writes, what it says, and how it fails."""

import csv
import json
import sys

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from conftest import build_model
from lasa.cli import main
from lasa.data.prompt_tables import write_prompts
from lasa.data.prompts import user_prompt
from lasa.files.artifacts import read_sealed

LANGUAGES = ("en", "it", "sw")
SCORES = ("semantic", "language", "difference", "semantic_interval", "language_interval", "difference_interval")


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the command line; gives the exit code, what was printed, and what was said on standard error."""
    monkeypatch.setattr("lasa.quiet.quiet_libraries", lambda: None)
    monkeypatch.setattr("lasa.progress._console", None)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lasa", "locate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def table(tmp_path):
    """A wide table as people have it: an identifier, a label, and a column per language."""
    path = tmp_path / "parallel.csv"
    rows = [
        {"id": f"q{number}", "harmful": number % 2, **{code: f"{code} {text}" for code in LANGUAGES}}
        for number, text in enumerate(
            ["water the plant", "paint", "read a very long letter", "cook rice", "run", "sit"]
        )
    ]
    rows[2]["sw"] = ""
    return write_table(path, rows)


def write_table(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def assert_fails(result, *said):
    code, out, err = result
    assert code == 2
    assert err.lstrip().startswith("Error: ") and err.count("Error: ") == 1
    assert "Traceback" not in out + err
    for text in said:
        assert text in err


def test_everything_is_written_and_said(call, model_folder, table, tmp_path):
    output = tmp_path / "out"
    code, out, _ = call("--model", model_folder, "--prompts", table, "-o", output, "--panels", "1,3", "--resamples", 50)
    assert code == 0
    found = json.loads((output / "bottleneck.json").read_text(encoding="utf-8"))
    assert [view["layer"] for view in found["layers"]] == [0, 1, 2, 3, 4]
    assert found["layers"][0]["difference"] is None
    for view in found["layers"][1:]:
        assert all(view[name] is not None for name in SCORES)
    assert found["queries"] == 6 and found["languages"] == {"en": 6, "it": 6, "sw": 5}
    assert set(found["without_language"]) == set(LANGUAGES) and set(found["controls"]) == {"harmful", "harmless"}
    assert found["provenance"]["fingerprint"] and found["position"] == "last"
    for name in ("layer_curves", "similarity_curves", "layer_panels"):
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (output / f"{name}.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")
    assert "6 queries in 3 languages: en 6, it 6, sw 5 (1 missing)." in out
    assert found["verdict"] in out
    assert "left out" in out or "Leaving out" in out
    assert "Control: harmful prompts alone give layer" in out


def test_a_second_call_reads_nothing_again(call, model_folder, table, tmp_path, monkeypatch):
    arguments = ("--model", model_folder, "--prompts", table, "-o", tmp_path / "out", "--resamples", 50)
    _, first, _ = call(*arguments)
    monkeypatch.setattr("lasa.models.hidden_states._read_one_batch", lambda *_: pytest.fail("read again"))
    code, second, _ = call(*arguments)
    assert code == 0 and second == first


def test_json_is_printed_for_machines(call, model_folder, table, tmp_path):
    output = tmp_path / "out"
    code, out, _ = call("--model", model_folder, "--prompts", table, "-o", output, "--resamples", 50, "--json")
    assert code == 0
    assert json.loads(out) == read_sealed(output / "bottleneck.json")


def test_a_control_that_cannot_be_made_is_said(call, model_folder, tmp_path):
    prompts = [user_prompt(str(q), code, f"{code} {q}") for q in range(4) for code in LANGUAGES]
    write_prompts(tmp_path / "p.jsonl", prompts)
    arguments = ("--model", model_folder, "--prompts", tmp_path / "p.jsonl", "-o", tmp_path / "out", "--resamples", 50)
    code, out, _ = call(*arguments)
    assert code == 0 and "Control: not possible, since there are no parallel harmful or harmless (labelled)" in out


def test_prompts_of_several_files_are_one_table(call, model_folder, tmp_path):
    files = []
    for code in LANGUAGES:
        files += ["--prompts", tmp_path / f"{code}.jsonl"]
        write_prompts(files[-1], [user_prompt(str(q), code, f"{code} {q}") for q in range(4)])
    code, out, _ = call("--model", model_folder, *files, "-o", tmp_path / "out", "--resamples", 50)
    assert code == 0 and "4 queries in 3 languages" in out


class TestErrors:
    def test_no_such_model_folder(self, call, table, tmp_path):
        assert_fails(
            call("--model", tmp_path / "none", "--prompts", table, "-o", tmp_path / "out"),
            "No such model folder",
            str(tmp_path / "none"),
        )

    def test_a_folder_without_a_model(self, call, table, tmp_path):
        (tmp_path / "empty").mkdir()
        assert_fails(
            call("--model", tmp_path / "empty", "--prompts", table, "-o", tmp_path / "out"), "config.json is missing"
        )

    def test_a_model_that_is_no_language_model(self, call, table, tokenizer, tmp_path):
        (tmp_path / "vision").mkdir()
        (tmp_path / "vision" / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
        tokenizer.save_pretrained(tmp_path / "vision")
        assert_fails(
            call("--model", tmp_path / "vision", "--prompts", table, "-o", tmp_path / "out"),
            "'vit' model, not a causal language model",
        )

    def test_a_language_model_that_looks_ahead(self, call, table, tokenizer, tmp_path):
        """transformers would load BERT as a causal language model that is none."""
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=2, num_attention_heads=1, intermediate_size=8
        )
        BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
        tokenizer.save_pretrained(tmp_path / "bert")
        assert_fails(
            call("--model", tmp_path / "bert", "--prompts", table, "-o", tmp_path / "out"),
            "not a causal language model",
        )

    def test_a_tokenizer_without_a_chat_template(self, call, table, model_folder, tmp_path):
        (model_folder / "chat_template.jinja").unlink()
        assert_fails(
            call("--model", model_folder, "--prompts", table, "-o", tmp_path / "out"),
            "has no chat template",
            "instruct",
        )

    def test_weights_that_are_cut_off(self, call, table, model_folder, tmp_path):
        weights = model_folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        assert_fails(
            call("--model", model_folder, "--prompts", table, "-o", tmp_path / "out"), str(model_folder), "loaded"
        )

    def test_no_such_prompt_file(self, call, model_folder, tmp_path):
        assert_fails(
            call("--model", model_folder, "--prompts", tmp_path / "no.csv", "-o", tmp_path / "out"),
            "No such prompt file",
        )

    def test_a_prompt_file_without_the_columns(self, call, model_folder, tmp_path):
        path = write_table(tmp_path / "p.csv", [{"question": "a", "answer": "b"}])
        assert_fails(
            call("--model", model_folder, "--prompts", path, "-o", tmp_path / "out"),
            "p.csv: no column 'prompt' and no column named after a language code",
            "The file has: 'question', 'answer'",
        )

    def test_an_unknown_language_code(self, call, model_folder, tmp_path):
        path = write_table(tmp_path / "p.csv", [{"prompt": "a", "language": "en"}, {"prompt": "b", "language": "xx"}])
        assert_fails(
            call("--model", model_folder, "--prompts", path, "-o", tmp_path / "out"),
            "p.csv: row 2, column 'language'",
            "Unknown language code 'xx'",
        )

    @pytest.mark.parametrize("empty", ["", "   "])
    def test_an_empty_prompt(self, call, model_folder, tmp_path, empty):
        rows = [{"prompt": text, "language": "en"} for text in ("a", "b", empty)]
        path = write_table(tmp_path / "p.csv", rows)
        assert_fails(
            call("--model", model_folder, "--prompts", path, "-o", tmp_path / "out"),
            "p.csv: row 3, column 'prompt': the prompt is empty",
        )

    def test_a_blank_cell_of_a_wide_table(self, call, model_folder, tmp_path):
        path = write_table(tmp_path / "p.csv", [{"en": "a", "sw": "b"}, {"en": "c", "sw": "   "}])
        assert_fails(
            call("--model", model_folder, "--prompts", path, "-o", tmp_path / "out"),
            "p.csv: row 2, column 'sw': the prompt is empty",
        )

    def test_one_language_only(self, call, model_folder, tmp_path):
        path = write_table(tmp_path / "p.csv", [{"prompt": text, "language": "en"} for text in ("a", "b")])
        assert_fails(
            call("--model", model_folder, "--prompts", path, "-o", tmp_path / "out"), "all in one language (en)"
        )

    def test_one_query_only(self, call, model_folder, tmp_path):
        path = write_table(tmp_path / "p.csv", [{"en": "a", "sw": "b"}])
        assert_fails(call("--model", model_folder, "--prompts", path, "-o", tmp_path / "out"), "one query only")

    def test_query_ids_that_two_files_use_for_different_questions(self, call, model_folder, table, tmp_path):
        other = write_table(tmp_path / "other.csv", [{"id": "q0", "en": "something else", "sw": "b"}])
        assert_fails(
            call("--model", model_folder, "--prompts", table, "--prompts", other, "-o", tmp_path / "out"),
            "Query 'q0' is in",
            "other.csv",
            "rename them",
        )

    def test_an_output_folder_that_holds_another_read(self, call, model_folder, tokenizer, table, tmp_path):
        output = tmp_path / "out"
        call("--model", model_folder, "--prompts", table, "-o", output, "--resamples", 50)
        before = (output / "bottleneck.json").read_bytes()
        build_model("llama", tokenizer, seed=1).save_pretrained(model_folder)
        assert_fails(
            call("--model", model_folder, "--prompts", table, "-o", output, "--resamples", 50),
            "holds hidden states that differ in: model",
            "Choose another folder",
        )
        assert_fails(
            call("--model", model_folder, "--prompts", table, "-o", output, "--position", "last_user"), "position"
        )
        assert (output / "bottleneck.json").read_bytes() == before

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (("--panels", "1,x"), "--panels takes layer numbers such as 1,6,10, not '1,x'"),
            (("--panels", "5"), "Layer 5 does not exist"),
            (("--position", "first"), "position: Input should be 'last', 'last_user' or 'mean_user', not 'first'"),
            (("--dtype", "float8"), "float8"),
            (("--device", "cuda:7"), "cuda:7"),
        ],
    )
    def test_a_setting_out_of_bounds(self, call, model_folder, table, tmp_path, flags, said):
        if "cuda:7" in flags and torch.cuda.device_count() > 7:
            pytest.skip("there is such a device here")
        assert_fails(call("--model", model_folder, "--prompts", table, "-o", tmp_path / "out", *flags), said)

    def test_a_prompt_that_the_model_cannot_hold(self, call, model_folder, tmp_path):
        rows = [{"id": "a", "en": "x", "sw": "y"}, {"id": "long", "en": "z", "sw": "water xyz " * 400}]
        path = write_table(tmp_path / "p.csv", rows)
        assert_fails(
            call("--model", model_folder, "--prompts", path, "-o", tmp_path / "out"),
            "'long' (sw)",
            "more than the model's 512",
        )


def test_multijail_as_published(call, tokenizer, shared, tmp_path):
    """315 questions in ten languages from the plain file: its `id` column is no Indonesian."""
    model = build_model("llama", tokenizer, layers=3, max_position_embeddings=4096)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    output = tmp_path / "out"
    file = shared / "multijail" / "MultiJail.csv"
    code, *_ = call("--model", tmp_path / "model", "--prompts", file, "-o", output, "--resamples", 100)
    assert code == 0
    found = json.loads((output / "bottleneck.json").read_text(encoding="utf-8"))
    assert found["queries"] == 315
    assert found["languages"] == dict.fromkeys(("en", "zh", "ko", "it", "vi", "ar", "th", "bn", "sw", "jv"), 315)
    for view in found["layers"][1:]:
        assert view["semantic"] is not None and view["language"] is not None
        low, high = view["difference_interval"]
        assert low <= view["difference"] <= high
