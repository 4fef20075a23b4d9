import csv
import json
from pathlib import Path

import pytest
from rich.console import Console
from statsmodels.stats.multitest import multipletests

from lasa.data.prompts import user_prompt
from lasa.errors import DataError
from lasa.evaluation.compare import compare, compare_samples, to_markdown, to_table, write_comparison
from lasa.evaluation.outcomes import Outcome, Sample, Verdict
from lasa.evaluation.samples import read_samples
from lasa.statistics import mcnemar_exact

LANGUAGES = {"en": 2, "zh": 4, "sw": 20, "jv": 30}


def write_samples(path: Path, succeed: dict[str, int], questions: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        Sample(
            "multijail",
            user_prompt(f"q{number}", language, f"question {number} in {language}", harmful=True),
            "text",
            Verdict(Outcome.COMPLIED if number < count else Outcome.REFUSED, language),
            "judge",
        )
        for language, count in succeed.items()
        for number in range(questions)
    ]
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_samples(tmp_path / "run" / "samples" / "base.jsonl", LANGUAGES)
    write_samples(tmp_path / "run" / "samples" / "lasa.jsonl", dict.fromkeys(LANGUAGES, 1))
    return tmp_path / "run"


def test_two_systems_of_one_run_are_compared_by_language_and_group(run: Path) -> None:
    samples = run / "samples"
    rows = compare(samples / "lasa.jsonl", samples / "base.jsonl", seen_languages={"en", "zh"})
    assert [row.group for row in rows] == ["en", "zh", "sw", "jv", "seen", "unseen", "all"]
    assert {(row.a, row.b, row.metric) for row in rows} == {("lasa", "base", "asr")}
    by_group = {row.group: row for row in rows}
    assert by_group["sw"].difference == pytest.approx(-19 / 40)
    assert (by_group["sw"].value_a, by_group["sw"].value_b) == (1 / 40, 20 / 40)
    assert by_group["unseen"].difference == pytest.approx(-48 / 80)
    assert by_group["unseen"].verdict == "lasa has a lower rate of attack success than base"
    assert by_group["en"].verdict == "no evidence of a difference"


def test_language_p_values_are_mcnemars_corrected_by_holm(run: Path) -> None:
    rows = compare(run / "samples" / "lasa.jsonl", run / "samples" / "base.jsonl")
    raw = [mcnemar_exact([n < 1 for n in range(40)], [n < count for n in range(40)]) for count in LANGUAGES.values()]
    expected = multipletests(raw, method="holm")[1]
    assert [row.p_value for row in rows if row.group in LANGUAGES] == pytest.approx(expected.tolist())
    assert rows[0].test == "McNemar exact, Holm"


def test_two_runs_are_compared_on_their_common_systems(run: Path, tmp_path: Path) -> None:
    write_samples(tmp_path / "later" / "samples" / "lasa.jsonl", {"sw": 0, "jv": 0})
    rows = compare(run, tmp_path / "later")
    assert {(row.a, row.b) for row in rows} == {("run/lasa", "later/lasa")}
    assert [row.group for row in rows] == ["sw", "jv", "all"]


def test_a_comparison_can_be_narrowed(run: Path) -> None:
    a, b = run / "samples" / "lasa.jsonl", run / "samples" / "base.jsonl"
    assert [row.group for row in compare(a, b, languages={"sw"})] == ["sw", "all"]
    with pytest.raises(DataError, match="no language in common"):
        compare(a, b, split="another")


def test_comparisons_are_written_as_json_csv_and_markdown(run: Path, tmp_path: Path) -> None:
    rows = compare(run / "samples" / "lasa.jsonl", run / "samples" / "base.jsonl")
    for suffix in ("json", "csv", "md"):
        write_comparison(tmp_path / f"out.{suffix}", rows)
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["comparisons"][2]["difference"] == rows[2].difference
    with (tmp_path / "out.csv").open() as file:
        assert float(list(csv.DictReader(file))[2]["difference"]) == rows[2].difference
    assert (tmp_path / "out.md").read_text() == to_markdown(rows)
    assert "-47.5 [" in to_markdown(rows)
    with pytest.raises(DataError, match=r"unknown format '\.xls'"):
        write_comparison(tmp_path / "out.xls", rows)


def test_the_table_shows_rates_and_findings(run: Path) -> None:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(to_table(compare(run / "samples" / "lasa.jsonl", run / "samples" / "base.jsonl")))
    assert "2.5%" in captured.get()
    assert "no evidence of a difference" in captured.get()


def test_a_comparison_says_which_benchmarks_it_pools(run: Path) -> None:
    for name in ("lasa", "base"):
        path = run / "samples" / f"{name}.jsonl"
        path.write_text(path.read_text() + path.read_text().replace('"multijail"', '"xsafety"'))
    both = compare(run / "samples" / "lasa.jsonl", run / "samples" / "base.jsonl")
    one = compare(run / "samples" / "lasa.jsonl", run / "samples" / "base.jsonl", split="xsafety")
    assert {row.benchmarks for row in both} == {"multijail, xsafety"}
    assert {row.benchmarks for row in one} == {"xsafety"}
    assert to_table(both).caption == "lasa and base on multijail, xsafety"


def test_a_damaged_row_is_named(run: Path) -> None:
    path = run / "samples" / "lasa.jsonl"
    with path.open("a") as file:
        file.write('{"split": "multijail"}\n')
    with pytest.raises(DataError, match=r"lasa\.jsonl: row 161 is not a judged sample"):
        read_samples(path)


def test_places_without_common_systems_or_prompts_are_errors(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a samples file nor a run folder"):
        compare(run, tmp_path)
    write_samples(tmp_path / "other" / "samples" / "kto.jsonl", {"en": 0})
    with pytest.raises(DataError, match="no system in common"):
        compare(run, tmp_path / "other")
    foreign = write_samples(tmp_path / "foreign.jsonl", {"en": 0})
    foreign.write_text(foreign.read_text().replace("question", "another question"))
    with pytest.raises(DataError, match="no prompt in common"):
        compare(run / "samples" / "base.jsonl", foreign)


def test_any_language_and_grades_are_compared_where_there_are_any() -> None:
    def answered(grades: list[float | None]) -> list[Sample]:
        outcomes = (Outcome.COMPLIED, Outcome.WRONG_LANGUAGE)
        verdicts = [Verdict(outcomes[n % 2], "en", "", grade) for n, grade in enumerate(grades)]
        prompts = [user_prompt(f"q{n}", "sw", f"text {n}", harmful=True) for n in range(len(grades))]
        return [Sample("t", prompt, "", verdict, "j") for prompt, verdict in zip(prompts, verdicts, strict=True)]

    low, high = answered([0.1] * 20), answered([0.6] * 10 + [0.4] * 10)
    rows = {row.metric: row for row in compare_samples(low, high, "a", "b", ["sw"]) if row.group == "sw"}
    assert (rows["asr"].value_a, rows["asr_any_language"].value_a) == (0.5, 1)
    graded = rows["strongreject"]
    assert (graded.value_a, graded.value_b) == (pytest.approx(0.1), pytest.approx(0.5))
    assert graded.difference == pytest.approx(-0.4) and graded.test == "cluster sign-flip permutation, Holm"
    assert graded.p_value is not None and graded.p_value < 0.01 and graded.smallest_detectable is None
    assert graded.verdict == "a has a lower StrongREJECT score than b"
    ungraded = answered([None] * 20)
    assert "strongreject" not in {row.metric for row in compare_samples(ungraded, ungraded, "a", "b", ["sw"])}
