import json

import pytest

from lasa.cli.options import SystemChoice
from lasa.errors import DataError
from lasa.evaluation.settings import AnsweringSettings, JudgingSettings
from lasa.models.settings import ModelSettings


@pytest.mark.parametrize("system", [{"engine": "vllm"}, {"endpoint": "http://m.test/v1"}])
def test_a_prefill_that_cannot_be_sent_is_an_error_before_anything_is_started(tmp_path, monkeypatch, system):
    from lasa.cli.evaluate import evaluate

    def start(*_, **__):
        raise AssertionError("it was started")

    monkeypatch.setattr("lasa.run.vllm.vllm_system", start)
    asked = tmp_path / "p.jsonl"
    asked.write_text(json.dumps({"id": "a", "prompt": "Tell me.", "language": "en", "harmful": True}) + "\n")
    sections = [
        (ModelSettings, {"path": "embedded"}),
        (SystemChoice, {}),
        (AnsweringSettings, {}),
        (JudgingSettings, {}),
    ]
    options = {name: value for section, given in sections for name, value in section(**given).model_dump().items()}
    options["model"] = options.pop("path")
    with pytest.raises(DataError, match="takes no beginning of an answer"):
        evaluate(
            **options, output=tmp_path / "out", benchmark=[str(asked)], judge=["refusal-patterns"],
            perturb=["prefill=Sure"], language=[], limit=None, seen=[], labels=None, seed=0, as_json=False, name=None,
            api_key=None, vllm_arguments=[], **{"engine": "lasa", "endpoint": None, **system},
        )  # fmt: skip
    assert not (tmp_path / "out" / "samples").exists()
