import json
from pathlib import Path

import pytest

from lasa.data.corpora.utility import load_global_mmlu_lite, load_mgsm, load_nusax_sentiment, load_xcopa
from lasa.errors import DataError


def test_mgsm_quotes_are_text_and_thousands_commas_are_not(tmp_path: Path) -> None:
    (tmp_path / "mgsm_en.tsv").write_text('"How many?\t2,125\nA b"?\t3\n', encoding="utf-8")
    (tmp_path / "mgsm_te.tsv").write_text("క\u200cష?\t2125\nB?\t3\n", encoding="utf-8")
    prompts = load_mgsm(tmp_path)
    assert [(p.query_id, p.language, p.text, p.details["answer"]) for p in prompts] == [
        ("mgsm:0", "en", '"How many?', "2125"),
        ("mgsm:1", "en", 'A b"?', "3"),
        ("mgsm:0", "te", "క\u200cష?", "2125"),
        ("mgsm:1", "te", "B?", "3"),
    ]


@pytest.mark.parametrize("line", ["only a question", "q\tten", "\t5"])
def test_mgsm_rows_that_are_no_problem_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "mgsm_en.tsv").write_text(f"Fine?\t1\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 2"):
        load_mgsm(tmp_path / "mgsm_en.tsv")


def mmlu_row(language: str, **changes: object) -> dict[str, object]:
    metadata = {"language": language, "sample_id": "botany/test/3", "subject": "botany", "subject_category": "STEM"}
    options = {f"option_{letter}": f"{letter} leaf" for letter in "abcd"}
    return {
        "id": 0,
        "label": "C",
        "prompts": [{"question": "Which?", **options}],
        "metadata": {**metadata, "cultural_sensitivity_label": "CS", "culture": "[]"},
        **changes,
    }


def test_global_mmlu_is_lettered_options_and_a_letter(tmp_path: Path) -> None:
    for language in ("en", "vi"):
        file = tmp_path / f"global_mmlu_lite_{language}_test.jsonl"
        file.write_text(json.dumps(mmlu_row(language)) + "\n", encoding="utf-8")
    first, second = load_global_mmlu_lite(tmp_path)
    assert first.text == "Which?\nA. a leaf\nB. b leaf\nC. c leaf\nD. d leaf"
    assert first.query_id == second.query_id == "global_mmlu_lite:botany/test/3"
    assert (first.language, second.language, first.harmful, first.category) == ("en", "vi", False, "botany")
    assert first.details["answer"] == "C"
    assert (first.details["split"], first.details["culturally_sensitive"]) == ("test", True)


@pytest.mark.parametrize("changes", [{"label": "E"}, {"prompts": []}, {"metadata": {}}, {"prompts": [{}]}])
def test_a_damaged_global_mmlu_sample_is_named(tmp_path: Path, changes: dict[str, object]) -> None:
    file = tmp_path / "global_mmlu_lite_en_dev.jsonl"
    file.write_text(json.dumps(mmlu_row("en", **changes)) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="row 1"):
        load_global_mmlu_lite(file)


def test_nusax_sentiment_ids_are_shared_by_the_languages(tmp_path: Path) -> None:
    for folder, text in (("javanese", "Enak"), ("english", "Tasty"), ("acehnese", "Mangat")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.csv").write_text(f"id,text,label\n237,{text},positive\n", encoding="utf-8")
    prompts = load_nusax_sentiment(tmp_path)
    assert {(p.query_id, p.language, p.details["answer"]) for p in prompts} == {
        ("nusax_sentiment:237", "jv", "positive"),
        ("nusax_sentiment:237", "en", "positive"),
    }
    assert next(p for p in prompts if p.language == "jv").text.endswith("Enak")


def test_an_unknown_sentiment_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "english").mkdir()
    (tmp_path / "english" / "test.csv").write_text("id,text,label\n1,Tea,fine\n", encoding="utf-8")
    with pytest.raises(DataError, match="column 'label'"):
        load_nusax_sentiment(tmp_path)


def test_xcopa_asks_for_cause_or_effect_and_answers_by_letter(tmp_path: Path) -> None:
    row = {"premise": "The light went out.", "choice1": "I slept.", "choice2": "I pulled the plug.", "changed": False}
    for code in ("it", "sw"):
        (tmp_path / code).mkdir()
        for split, question, label in (("val", "cause", 1), ("test", "effect", 0)):
            line = json.dumps({**row, "question": question, "label": label, "idx": 0})
            (tmp_path / code / f"{split}.{code}.jsonl").write_text(line + "\n", encoding="utf-8")
    prompts = {(p.query_id, p.language): p for p in load_xcopa(tmp_path)}
    assert set(prompts) == {(f"xcopa:{split}/0", code) for split in ("val", "test") for code in ("it", "sw")}
    cause = prompts["xcopa:val/0", "sw"]
    assert cause.text == "The light went out.\nWhat was the cause?\nA. I slept.\nB. I pulled the plug."
    assert cause.details["answer"] == "B"
    assert prompts["xcopa:test/0", "it"].details["answer"] == "A"
