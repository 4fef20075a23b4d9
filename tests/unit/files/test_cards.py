import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lasa.files.cards import interpreter_card, model_card
from lasa.report.html import write_report
from report_run import write_run

RATE = {"value": 0.041, "low": 0.02, "high": 0.08, "n": 1350}


def test_an_aligned_model_states_what_it_was_made_from_and_what_was_measured() -> None:
    card = model_card(
        {
            "base_model": "Qwen/Qwen2.5-7B-Instruct",
            "layer": 19,
            "languages": ["ko", "en"],
            "metrics": {"unseen": {"asr": RATE}, "languages": {"sw": {"asr": {**RATE, "value": None}}}},
            "data": {"safety": "ab12"},
            "license": "apache-2.0",
        }
    )
    assert "reads layer 19" in card
    assert "English (en), Korean (ko)" in card
    assert "| unseen languages | 4.1 % (2.0–8.0 %, n = 1,350) |" in card
    assert "| Swahili | – |" in card
    assert "- safety: `ab12`" in card
    metadata = ModelCard(card).data
    assert metadata.base_model == "Qwen/Qwen2.5-7B-Instruct"
    assert metadata.license == "apache-2.0" and metadata.library_name == "lasa" and metadata.language == ["en", "ko"]


def test_an_interpreter_states_its_layer_size_and_threshold() -> None:
    card = interpreter_card(
        {
            "base_model": "embedded",
            "read_point": {"layer": 4},
            "parameters": 8321,
            "parameter_share": 0.0019,
            "threshold": 0.62,
            "languages": ("en", "zh"),
            "metrics": {"seen": {"balanced_accuracy": 0.97}},
        }
    )
    assert "It reads layer 4" in card and "8,321 parameters, 0.19 %" in card and "0.620" in card
    assert "| seen languages | 97.0 % |" in card
    assert ModelCard(card).data.base_model is None  # not an address on the Hub


@pytest.mark.parametrize("card", [model_card, interpreter_card])
def test_a_card_says_in_which_languages_the_guard_can_be_expected_to_hold(card: object) -> None:
    text = card({"coverage": {"sw": "not covered", "it": "covered", "en": "covered"}})  # type: ignore[operator]
    assert "covered: English, Italian; not covered: Swahili." in text


@pytest.mark.parametrize("card", [model_card, interpreter_card])
def test_a_card_without_facts_says_that_they_are_missing(card: object) -> None:
    text = card({})  # type: ignore[operator]
    assert "not recorded" in text and "before any evaluation" in text
    assert "Intended use" in text and "Limits" in text and "Licence" in text
    assert "None" not in text


def test_a_system_that_was_trained_without_a_condition_is_not_said_to_have_one() -> None:
    card = model_card({"method": "KTO"})
    assert "used no condition" in card and "behind the guard" not in card


def test_every_trained_system_of_a_run_gets_its_card_with_the_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name, signal in (("lasa", "interpreter"), ("surface-kto", "none")):
        (run / "systems" / name).mkdir(parents=True)
        made = {"signal": signal, "rows": 1200, "conditioned": 300, "settings": {"method": "kto", "guarded": True}}
        (run / "systems" / name / "lasa.json").write_text(json.dumps(made), encoding="utf-8")
    write_report(run)
    card = (run / "systems" / "lasa" / "README.md").read_text(encoding="utf-8")
    assert "`embedded`, aligned with KTO" in card and "reads layer 4" in card
    assert "1,200 rows, 300 of them with the condition" in card
    assert "| unseen languages | 4.0 % (2.4–6.6 %, n = 350)" in card
    assert "measured behind the guard" in card and "Point 1: none reaches the floor" in card
    assert "nothing here is evidence about large models" in card
    surface = (run / "systems" / "surface-kto" / "README.md").read_text(encoding="utf-8")
    assert "used no condition" in surface and "reads layer" not in surface
    assert ModelCard(card).data.language == ["en", "zh", "ko"]


def test_names_cannot_break_the_table_or_the_code_span() -> None:
    card = model_card({"base_model": "a`b|c\nd", "data": {"x\n# y": "`"}})
    assert "`a'b/c d`" in card and "\n# y" not in card


def test_cards_need_neither_torch_nor_matplotlib() -> None:
    code = "import sys, lasa.files.cards; assert not {'torch', 'matplotlib', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
