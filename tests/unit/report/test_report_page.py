import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lasa.errors import ArtifactError, DataError
from lasa.evaluation.compare import compare
from lasa.evaluation.samples import read_samples
from lasa.report.figures import layer_curves, write_layer_curves
from lasa.report.html import write_report
from lasa.report.layer_tables import layer_rows
from lasa.report.svg import drawing
from report_run import ARABIC, SCRIPT, SYSTEMS, bottleneck, comparison, metrics, write_run

FIGURES = (
    "asr_by_language", "attacks", "comparisons", "helpfulness", "interpreter_accuracy", "interpreter_by_layer",
    "layer_curves", "outcomes", "outcomes_by_language", "perturbations", "reliability", "score_histogram",
    "settings_tried",
)  # fmt: skip
FEW = ("base", "lasa")


class Page(HTMLParser):
    """Sections, scripts, addresses and visible text of a report."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.data = ""
        self._inside: str | None = None
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "section" and found.get("id"):
            self.sections.append(str(found["id"]))
        if tag == "script":
            self.scripts.append(found)
        self.addresses += [str(found[name]) for name in ("href", "src", "srcset", "action") if name in found]
        self._inside = found.get("id") or tag if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "samples":
            self.data += data
        elif self._inside is None:
            self.words.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("report") / "run")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


def small_run(folder: Path, **files: object) -> Page:
    folder.mkdir()
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_a_complete_run_has_every_section(page: Page) -> None:
    assert page.sections == [
        "summary", "attack-success", "outcomes", "helpfulness", "comparisons", "splits", "attacks", "settings",
        "interpreter", "generalisation", "drift", "data", "bottleneck", "examples", "provenance",
    ]  # fmt: skip
    assert "Not in this report" not in page.text


def test_what_each_system_is_and_when_the_run_began_is_told(page: Page) -> None:
    assert "Safety report, run of 2026-01-31" in page.text
    for told in (
        "base the model as it came.",
        "surface-sft trained (SFT) on safety data without the interpreter.",
        "interpreter-only the model as it came, behind the guard.",
        "lasa trained (KTO) on safety data with the interpreter's decisions, behind the guard.",
        "Behind the guard, a small interpreter reads every prompt",
    ):
        assert told in page.text


def test_the_systems_stand_in_one_order_everywhere(page: Page) -> None:
    split = page.text[page.text.index("Split “concepts”: systems") :]
    assert split.index("lasa") < split.index("surface-sft")


def test_the_page_loads_nothing_from_elsewhere(run: Path, page: Page) -> None:
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    html = (run / "report.html").read_text(encoding="utf-8")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in html


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_also_a_file_with_its_numbers(run: Path, name: str) -> None:
    svg = ElementTree.parse(run / "figures" / f"{name}.svg").getroot()
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    with (run / "figures" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and None not in rows[0]


def test_the_files_hold_the_numbers_of_the_run(run: Path) -> None:
    with (run / "figures" / "asr_by_language.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["system"], row["where"]): row for row in csv.DictReader(file)}
    assert float(rows["base", "sw"]["value"]) == pytest.approx(0.62)
    assert rows["base", "sw"]["n"] == "50"
    assert len(rows) == 10 * len(SYSTEMS)
    with (run / "figures" / "layer_curves.csv").open(encoding="utf-8", newline="") as file:
        layers = list(csv.DictReader(file))
    assert layers[0]["semantic"] == "" and float(layers[4]["difference"]) == pytest.approx(0.5)


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    first = (run / "report.html").read_bytes()
    write_report(run)
    assert (run / "report.html").read_bytes() == first


def test_markup_in_a_sample_stays_text(run: Path, page: Page) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "<script>document.title" not in html and "<img" not in html
    assert len(page.scripts) == 2  # the data and the report's own
    rows = json.loads(page.data)
    assert SCRIPT in {row["prompt"] for row in rows} and SCRIPT in {row["reason"] for row in rows}
    assert ARABIC in {row["prompt"] for row in rows}


def test_markup_in_names_and_verdicts_is_escaped(tmp_path: Path) -> None:
    values = metrics(FEW)
    values["systems"][SCRIPT] = values["systems"].pop("base")
    values["comparisons"][0]["verdict"] = SCRIPT
    page = small_run(tmp_path / "run", metrics=values, bottleneck={**bottleneck(), "verdict": SCRIPT})
    assert len(page.scripts) == 1
    assert page.text.count("document.title = 'broken'") >= 3


def test_the_data_block_cannot_be_left(page: Page, run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    start = html.index('id="samples">') + len('id="samples">')
    block = html[start : html.index("</script>", start)]
    assert not set(block) & set("<>&\u2028\u2029")
    assert json.loads(block) == json.loads(page.data)


def test_harmful_texts_are_not_in_the_page_outside_the_data(run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    start = html.index('id="samples">')
    outside = html[:start] + html[html.index("</script>", start) :]
    assert "open a lock" not in outside and "Harmful texts are hidden" in outside


def test_seen_languages_stand_apart_from_unseen(page: Page) -> None:
    assert re.search(r"Seen in training English en .* Korean ko .* Unseen Italian it", page.text)


def test_heat_map_cells_tell_their_interval(run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    assert re.search(
        r'tabindex="0" class="cell middle"[^>]*data-told="Swahili, base: 62\.0\xa0% \(95\xa0% interval 48', html
    )


def test_a_run_without_seen_languages_says_so(tmp_path: Path) -> None:
    page = small_run(tmp_path / "run", metrics=metrics(FEW))
    assert "Neither the metrics nor the recipe say which languages were seen" in page.text
    assert "Seen in training" not in page.text


def test_a_search_alone_gives_a_report_on_the_search(tmp_path: Path) -> None:
    page = small_run(tmp_path / "run", bottleneck=bottleneck())
    assert page.sections == ["summary", "bottleneck"]
    assert "No system has been evaluated yet." in page.text
    for stage in (
        "Interpreter: none",
        "Paired comparisons: none",
        "Harder splits: the run has none",
        "Examples: the run",
    ):
        assert stage in page.text
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {"layer_curves.svg", "layer_curves.csv"}


@pytest.mark.parametrize("missing", ["interpreter", "systems", "splits", "comparisons", "seconds"])
def test_any_part_of_the_metrics_may_be_missing(tmp_path: Path, missing: str) -> None:
    values = metrics(FEW)
    del values[missing]
    page = small_run(tmp_path / "run", metrics=values)
    anchors = {"systems": "attack-success", "seconds": "provenance"}
    assert anchors.get(missing, missing) not in page.sections


def test_attack_success_on_changed_copies_stands_beside_that_as_written(run: Path, page: Page) -> None:
    table = page.text[page.text.index("Attacks as a table") :]
    assert "multijail/base64 base 46.4 % 42.1–50.8 % n 500, 3 unscored 65.2 %" in table
    assert "multijail/word_switch lasa 3.4 % 2.1–5.4 % n 500 19.8 %" in table
    assert "Split “multijail" not in page.text
    rows = list(csv.DictReader((run / "figures" / "attacks.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["system"], row["where"], row["metric"]) for row in rows[-2:]] == [
        ("lasa", "unchanged", "multijail/word_switch"),
        ("lasa", "all", "multijail/word_switch"),
    ]


def test_a_run_without_attacks_says_so(tmp_path: Path) -> None:
    values = metrics(FEW)
    values["splits"] = {name: split for name, split in values["splits"].items() if "unchanged" not in split}
    page = small_run(tmp_path / "run", metrics=values)
    assert "attacks" not in page.sections and "Attacks: no changed copies of the prompts were asked." in page.text


def test_a_bottleneck_that_could_not_be_named_is_not_marked(tmp_path: Path) -> None:
    verdict = "No interior bottleneck: the curve is flat."
    page = small_run(tmp_path / "run", bottleneck={**bottleneck(), "layer": None, "verdict": verdict})
    assert "No layer is marked" in page.text and verdict in page.text and "green area" not in page.text
    rows = layer_rows(bottleneck())
    with drawing():
        named, unnamed = (layer_curves(rows, layer, [4, 5]).axes[0] for layer in (4, None))
    assert len(named.patches) == 1 and not unnamed.patches


def test_a_layer_that_the_recipe_chose_instead_is_told(tmp_path: Path) -> None:
    page = small_run(tmp_path / "run", bottleneck={**bottleneck(), "used_layer": 6})
    assert "The recipe chose layer 6 for the interpreter instead." in page.text


def test_what_the_interpreter_generalises_to_is_told(page: Page) -> None:
    assert "zero width 97.0 % 94.4–98.4 % n 300 72.0 %" in page.text
    assert "romanise: anyascii is not installed. – –" in page.text
    assert "Korean test prompts 97.0 % 94.4–98.4 % n 300 97.0 %" in page.text
    assert "It has neither test nor development prompts." in page.text
    assert "source news development prompts" in page.text


def test_calibration_and_training_are_told_in_numbers(page: Page) -> None:
    assert "4.0 % 2.0 % 410" in page.text
    assert "AUROC on development data 0.98, standard deviation 0.002" in page.text
    assert "At most 1 % of benign prompts like these are flagged." in page.text


def test_drift_is_told_and_what_is_above_the_bound_is_marked(run: Path, page: Page) -> None:
    assert "lasa 6.1 % 4.7–7.9 % n 900 3 52 0.011 2.0 % above the bound" in page.text
    assert "Training lasa changed 6.1 %" in page.text
    html = (run / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<tr class="marked"><th scope="row">lasa</th>\s*<td><span class="value">6\.1', html)) == 1


def test_the_audit_of_the_data_is_told(page: Page) -> None:
    assert "both in training or development data and in a test: 2 exact." in page.text
    assert "in any wording or language: 7. The test figures are too good by that." in page.text
    assert "training data embedded harmful 1,500 en 500, zh 500, ko 500" in page.text


def test_the_perplexity_of_harmless_text_is_told(page: Page) -> None:
    assert "System All languages English Swahili lasa 1.04 1.04 1.21" in page.text


def test_the_agreement_of_two_judges_and_labels_by_people_are_told(page: Page) -> None:
    assert "lasa rule-judge and other 31 of 500 0.81 0.80 5.1 %" in page.text


def test_every_setting_that_was_tried_is_told_and_the_used_one_marked(page: Page) -> None:
    assert "lasa learning_rate 0.0002, steps 50 2.0 % 0.7–5.7 % n 150 92.0 % 86.5–95.4 % n 150 used" in page.text
    assert "lasa learning_rate 0.0004, steps 50 0.0 %" in page.text
    assert "lasa: Point 1: none reaches the floor of 95%." in page.text
    assert "No setting of lasa was helpful enough on development prompts" in page.text
    assert "Several settings were tried for lasa and surface-kto, and one for surface-sft" in page.text


def test_rates_without_a_value_are_left_blank(tmp_path: Path) -> None:
    nothing = {"value": None, "low": None, "high": None, "n": 0, "unscored": 50}
    values = metrics(FEW)
    for system in values["systems"].values():
        system["languages"]["sw"]["asr"] = nothing
        system["seen"]["helpful"] = nothing
    page = small_run(tmp_path / "run", metrics=values)
    assert "Swahili sw – – Javanese" in page.text


def test_plain_numbers_are_accepted_as_rates(tmp_path: Path) -> None:
    interpreter = {"languages": {"sw": {"balanced_accuracy": 0.87, "tpr": 0.9}}, "unseen": {"balanced_accuracy": 0.87}}
    page = small_run(tmp_path / "run", metrics={"interpreter": interpreter})
    assert "87.0" in page.text and "interpreter" in page.sections


def test_comparisons_are_told_from_the_main_system(tmp_path: Path) -> None:
    values = metrics(FEW)
    turned = comparison("surface-sft", "lasa", "unseen", "asr", 0.34, 0.28, 0.40, 1e-9)
    page = small_run(tmp_path / "run", metrics={**values, "comparisons": [turned]})
    assert "lasa − surface-sft attack success, unseen languages −34.0 −40.0 to −28.0" in page.text


def test_layer_curves_can_be_drawn_alone(tmp_path: Path) -> None:
    write_layer_curves(bottleneck(), tmp_path)
    assert (tmp_path / "layer_curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {f"layer_curves.{kind}" for kind in ("svg", "png", "csv")}


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nothing to report"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("metrics.json", "{", "metrics.json is damaged"),
        ("metrics.json", "[]", "not a JSON object"),
        ("metrics.json", '{"schema": 2}', "schema 2"),
        ("recipe.yaml", "a: [", "recipe.yaml is damaged"),
        ("samples/base.jsonl", '\n{"split": "x"}\n', "base.jsonl: row 2 is not a judged sample"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str, told: str) -> None:
    run = write_run(tmp_path / "run")
    (run / name).write_text(content, encoding="utf-8")
    with pytest.raises((ArtifactError, DataError), match=told):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_score_that_is_not_a_number_is_read_as_compare_reads_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = run / "samples" / "lasa.jsonl"
    first, *rest = path.read_text("utf-8").splitlines()
    failed_closed = json.dumps({**json.loads(first), "score": float("nan"), "flagged": True})
    path.write_text("\n".join([failed_closed, *rest]) + "\n", "utf-8")
    assert read_samples(path)[0].score is None and read_samples(path)[0].flagged
    assert write_report(run).is_file()
    assert compare(path, run / "samples" / "base.jsonl")


def test_kinds_of_harm_are_named_by_language_and_attacked_by_kind(tmp_path):
    rate = {"value": 0.75, "low": 0.7, "high": 0.8, "n": 100, "unscored": 0}
    named = dict.fromkeys(("right", "named", "right_when_named", "ngrams_right"), rate)
    found = metrics(FEW)
    found["interpreter"]["categories"] = {
        "languages": {"en": named, "sw": named}, "seen": named, "unseen": named, "all": named, "kinds": {"hate": named},
    }  # fmt: skip
    for entry in found["systems"].values():
        entry["categories"] = {
            "hate": {"asr": rate},
            "self_harm": {"asr": {**rate, "value": 0.25}},
            "odd": {"asr": rate},
        }
    write_run(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps(found))
    page = Page(write_report(tmp_path).read_text("utf-8"))
    assert "kinds" in page.sections
    chapter = page.text[page.text.index("Kinds of harm") :]
    assert "Swahili" in chapter and "self_harm S11" in chapter and "25.0" in chapter
    assert "odd" not in chapter.split("Attack success by kind of harm")[1][:400]
    without = write_report(write_run(tmp_path / "plain")).read_text("utf-8")
    assert "kinds" not in Page(without).sections


def test_what_the_head_for_answers_stops_is_shown_by_language(tmp_path):
    rate = {"value": 0.75, "low": 0.7, "high": 0.8, "n": 100, "unscored": 0}
    block = {**dict.fromkeys(("flagged", "stopped", "either"), rate), "false_stops": {**rate, "value": 0.015}}
    found = metrics(FEW)
    groups = {"seen": block, "unseen": block, "all": {**block, "tokens": 12.0}}
    found["interpreter"]["answers"] = {"languages": {"en": block, "sw": block}, **groups}
    write_run(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps(found))
    page = Page(write_report(tmp_path).read_text("utf-8"))
    chapter = page.text[page.text.index("Harm in the answer") :]
    assert "Swahili" in chapter and "within 12 tokens" in chapter and "1.5" in chapter
    assert "listening" not in Page(write_report(write_run(tmp_path / "plain")).read_text("utf-8")).sections
