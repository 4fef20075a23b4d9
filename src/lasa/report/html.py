"""The report of a run as one HTML file that needs no network, and its figures as files beside it."""

import base64
import hashlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lasa.artifacts import write_text
from lasa.evaluation.statistics import Rate
from lasa.report import figures, tables
from lasa.report.examples import CHARACTERS_PER_TEXT, SAMPLES_PER_SYSTEM, example_rows, script_json
from lasa.report.run_folder import Document, Run, read_run
from lasa.report.summary import summarise
from lasa.report.svg import FigureFiles, drawing, save_figure
from lasa.report.tables import HeatRow, Table
from lasa.report.values import GROUPS, interval, percent, rates

_PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Illustration:
    """A figure in the page with its caption, which says what is good."""

    files: FigureFiles
    caption: str


@dataclass
class Section:
    """A chapter of the report.

    Attributes:
        anchor: Its address within the page.
        title: Its heading.
        text: Paragraphs before the figures.
        illustrations: Its figures.
        tables: Tables shown at once.
        folded: Tables behind a click.
    """

    anchor: str
    title: str
    text: list[str] = field(default_factory=list)
    illustrations: list[Illustration] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)


def write_report(run: Path) -> Path:
    """Write `report.html` and `figures/*.svg` with `figures/*.csv` into a run folder.

    A stage that has not been run has no section; the summary says so.

    Args:
        run: The run folder (see `lasa.report.run_folder` for what is read).

    Returns:
        Path of the HTML file.

    Raises:
        ArtifactError: The folder is not a run's, or one of its files is damaged.
    """
    contents = read_run(run)
    with drawing():
        page = _render(contents, run / "figures")
    write_text(run / "report.html", page)
    return run / "report.html"


def _render(run: Run, folder: Path) -> str:
    save = partial(save_figure, folder=folder)
    heat, heat_files = _heat_map(run, save)
    examples = example_rows(run.samples)
    script = (_PAGE / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "interval": interval}
    environment.tests["rate"] = lambda cell: isinstance(cell, Rate)
    return environment.get_template("report.html.jinja").render(
        run=run,
        summary=summarise(run),
        heat=heat,
        heat_files=heat_files,
        asr_table=tables.asr_table(run),
        bottleneck=_bottleneck(run, save),
        sections=[section for build in _SECTIONS for section in build(run, save)],
        provenance=_provenance(run),
        examples=script_json(examples) if examples else None,
        totals={name: len(samples) for name, samples in run.samples.items()},
        limit=SAMPLES_PER_SYSTEM,
        clip=CHARACTERS_PER_TEXT,
        style=Markup((_PAGE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _heat_map(run: Run, save: "Save") -> tuple[list[HeatRow], FigureFiles | None]:
    places = tables.languages_in_order(run)
    cells = rates(run.systems, places, ["asr"])
    if not cells:
        return [], None
    figure = figures.asr_heatmap(cells, places, run.seen_languages)
    files = save(
        figure, [cell.row() for cell in cells], name="asr_by_language", description="Attack success by language."
    )
    return tables.heat_rows(run), files


def _bottleneck(run: Run, save: "Save") -> Section | None:
    rows = tables.layer_rows(run.bottleneck)
    if not rows:
        return None
    chosen, spread = run.bottleneck.get("layer"), run.bottleneck.get("layer_interval")
    section = Section("bottleneck", "Semantic bottleneck")
    section.text.append(
        "Translations of one question should lie close together where the model works with meaning, and prompts of one "
        "language where it works with words. The bottleneck is the layer where meaning outweighs language most."
    )
    if run.bottleneck.get("verdict"):
        section.text.append(str(run.bottleneck["verdict"]))
    named = f"Layer {chosen} is marked" if chosen is not None else "No layer is marked, since none could be named"
    if spread:
        named += f"; the green area is its 95 % interval, layers {spread[0]} to {spread[1]}"
    files = save(
        figures.layer_curves(rows, chosen, spread),
        rows,
        name="layer_curves",
        description=f"Silhouette by meaning and by language over {len(rows)} layers. {named}.",
    )
    caption = f"Silhouette of each layer with 95 % bands. Good: a clear interior peak of the difference. {named}."
    section.illustrations.append(Illustration(files, caption))
    section.folded.append(tables.layer_table(rows, chosen))
    return section


def _outcomes(run: Run, save: "Save") -> list[Section]:
    rows = tables.outcome_rows(run.systems, GROUPS) or tables.outcome_rows(run.systems, ["all"])
    if not rows:
        return []
    section = Section(
        "outcomes",
        "What the answers do",
        [
            "Attack success counts only answers that comply. An answer that is beside the point or in another language "
            "is no success for the attacker, and no proof of safety: the model may not have understood."
        ],
    )
    files = save(
        figures.outcome_bars(rows, panel="where", bar="system"), rows, name="outcomes",
        description="Shares of refused, complied, irrelevant, wrong-language and unscored answers by system.",
    )  # fmt: skip
    caption = "Answers to harmful prompts. Good: blue (refused) fills the bar, and orange (complied) is gone."
    section.illustrations.append(Illustration(files, caption))
    section.folded.append(tables.outcome_table(rows, "Outcomes as a table"))
    by_language = tables.outcome_rows(run.systems, tables.languages_in_order(run))
    if by_language:
        by_language.sort(key=lambda row: list(run.systems).index(row["system"]))
        figure = figures.outcome_bars(by_language, panel="system", bar="where", columns=2)
        description = "Shares of the outcomes by system and language."
        files = save(figure, by_language, name="outcomes_by_language", description=description)
        section.illustrations.append(Illustration(files, "The same by language, a panel for each system."))
        section.folded.append(tables.outcome_table(by_language, "Outcomes by language as a table"))
    return [section]


def _interpreter(run: Run, save: "Save") -> list[Section]:
    interpreter = run.interpreter
    probes = tables.probes_of(interpreter)
    if not interpreter:
        return []
    section = Section("interpreter", "Interpreter", [_interpreter_facts(interpreter)])
    cells = rates(probes, GROUPS, ["balanced_accuracy"])
    if cells:
        files = save(
            figures.probe_accuracy(cells), [cell.row() for cell in cells], name="interpreter_accuracy",
            description="Balanced accuracy of the interpreter and its baselines on seen and unseen languages.",
        )  # fmt: skip
        caption = (
            "Good: the interpreter lies right of the other probes and of the n-gram baseline, above all on unseen "
            "languages. Lines: 95 % interval."
        )
        section.illustrations.append(Illustration(files, caption))
    if probes:
        section.tables.append(tables.probe_table(interpreter, run.seen_languages))
    calibration = interpreter.get("calibration") or {}
    if calibration.get("reliability"):
        rows = calibration["reliability"]
        files = save(
            figures.reliability_diagram(rows), rows, name="reliability",
            description="Share of harmful prompts against the probability given.",
        )  # fmt: skip
        error = calibration.get("ece")
        caption = "Reliability. Good: the points lie on the dotted diagonal, so that a probability means what it says."
        caption += f" Expected calibration error {percent(error)} (lower is better)." if error is not None else ""
        section.illustrations.append(Illustration(files, caption))
    bins = tables.histogram_rows(interpreter.get("score_histogram") or {})
    if bins:
        figure = figures.score_histogram(bins, interpreter.get("threshold"))
        files = save(figure, bins, name="score_histogram", description="Scores of harmful and of benign prompts.")
        caption = "Scores. Good: benign prompts on the left, harmful ones on the right, few in between."
        section.illustrations.append(Illustration(files, caption))
    return [section]


def _interpreter_facts(interpreter: Document) -> str:
    facts = ["A small network reads the hidden state and gives the probability that the prompt is harmful."]
    if interpreter.get("layer") is not None:
        facts.append(f"It reads layer {interpreter['layer']}.")
    if interpreter.get("parameters"):
        share = interpreter.get("parameter_share")
        of_model = f", {100 * share:.2g} % of the model's" if share else ""
        facts.append(f"It has {interpreter['parameters']:,} parameters{of_model}.")
    if interpreter.get("threshold") is not None:
        facts.append(f"A prompt is flagged from a probability of {interpreter['threshold']:.2f}.")
    return " ".join(facts)


def _costs(run: Run, save: "Save") -> list[Section]:
    metrics = [m for m in ("helpful", "over_refusal") if rates(run.systems, GROUPS, [m])]
    table = tables.cost_table(run)
    if not table.rows:
        return []
    section = Section("helpfulness", "Helpfulness and over-refusal", tables=[table])
    section.text.append("What safety costs: a model that refuses everything is safe and of no use.")
    if metrics:
        cells = rates(run.systems, GROUPS, metrics)
        files = save(
            figures.rates_by_system(cells, metrics), [cell.row() for cell in cells], name="helpfulness",
            description="Helpful answers and over-refusal by system, on seen and unseen languages.",
        )  # fmt: skip
        caption = "Answers to benign prompts. Good: helpful answers right, over-refusal left. Lines: 95 % interval."
        section.illustrations.append(Illustration(files, caption))
    by_language = tables.helpful_table(run)
    section.folded += [by_language] if by_language.rows else []
    return [section]


def _comparisons(run: Run, save: "Save") -> list[Section]:
    if not run.comparisons:
        return []
    section = Section("comparisons", "Paired comparisons", tables=[tables.comparison_table(run)])
    section.text.append(
        "Two systems answered the same prompts, so their difference is judged prompt by prompt, and translations of "
        "one question count together."
    )
    rows = tables.comparison_rows(run)
    if rows:
        description = "Paired differences between systems with 95 % intervals."
        files = save(figures.forest(rows), rows, name="comparisons", description=description)
        caption = (
            "Difference of each pair with its 95 % interval; grey where the interval contains zero. For attack success "
            "and over-refusal, left of zero is good for the first system; for helpful answers, right of zero."
        )
        section.illustrations.append(Illustration(files, caption))
    return [section]


def _splits(run: Run, _save: "Save") -> list[Section]:
    if not run.splits:
        return []
    section = Section("splits", "Harder splits")
    section.text.append(
        "Held-out prompts that differ more from the training data than those above. A defence that learned words "
        "rather than meaning falls behind here."
    )
    for name, split in run.splits.items():
        section.tables += [tables.split_table(name, split)] if split.get("systems") else []
        probes = tables.split_probe_table(name, split.get("interpreter") or {})
        section.tables += [probes] if probes else []
    return [section]


def _provenance(run: Run) -> list[Table]:
    seconds = {stage: f"{value:,.1f} s" for stage, value in (run.metrics.get("seconds") or {}).items()}
    documents = {"What made this run": run.provenance, "Time spent by stage": seconds}
    return [tables.fact_table(caption, facts) for caption, facts in documents.items() if facts]


Save = partial[FigureFiles]
_SECTIONS = (_outcomes, _interpreter, _costs, _comparisons, _splits)
