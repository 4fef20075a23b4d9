"""The report of a run as one HTML file that needs no network, and its figures as files beside it."""

import base64
import hashlib
import re
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from lasa.files.artifacts import write_text
from lasa.report import attacks, figures, interpreter_sections, kinds, listening, sections, tables
from lasa.report.examples import CHARACTERS_PER_TEXT, SAMPLES_PER_SYSTEM, example_rows, script_json
from lasa.report.origin import origin_tables
from lasa.report.run_folder import Run, read_run
from lasa.report.sections import Save
from lasa.report.summary import summarise
from lasa.report.svg import FigureFiles, drawing, save_figure
from lasa.report.system_cards import write_model_cards
from lasa.report.systems import guard_explanation, system_descriptions
from lasa.report.tables import HeatRow
from lasa.report.values import interval, percent, rates
from lasa.statistics import Rate

_PAGE = Path(__file__).parent / "page"

_CHAPTERS = (
    sections.outcomes,
    sections.costs,
    sections.comparisons,
    sections.splits,
    attacks.attacks,
    kinds.kinds,
    listening.listening,
    sections.settings_tried,
    interpreter_sections.interpreter,
    interpreter_sections.generalisation,
    interpreter_sections.drift,
    interpreter_sections.data,
    interpreter_sections.bottleneck,
)


def write_report(run: Path) -> Path:
    """Write `report.html`, `figures/*.svg` with `figures/*.csv`, and the trained models' cards into a run folder.

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
    write_model_cards(contents)
    return run / "report.html"


def _render(run: Run, folder: Path) -> str:
    save = partial(save_figure, folder=folder)
    heat, heat_files = _heat_map(run, save)
    examples = example_rows(run.samples)
    script = (_PAGE / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "interval": interval, "unbroken": _unbroken}
    environment.tests["rate"] = lambda cell: isinstance(cell, Rate)
    return environment.get_template("report.html.jinja").render(
        run=run,
        summary=summarise(run),
        compared=system_descriptions(run),
        guard=guard_explanation(run),
        heat=heat,
        heat_files=heat_files,
        asr_table=tables.asr_table(run),
        sections=[section for chapter in _CHAPTERS for section in chapter(run, save)],
        provenance=origin_tables(run),
        examples=script_json(examples) if examples else None,
        totals={name: len(samples) for name, samples in run.samples.items()},
        limit=SAMPLES_PER_SYSTEM,
        clip=CHARACTERS_PER_TEXT,
        style=Markup((_PAGE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _heat_map(run: Run, save: Save) -> tuple[list[HeatRow], FigureFiles | None]:
    places = tables.languages_in_order(run)
    cells = rates(run.systems, places, ["asr"])
    if not cells:
        return [], None
    figure = figures.asr_heatmap(cells, places, run.seen_languages)
    files = save(
        figure, [cell.row() for cell in cells], name="asr_by_language", description="Attack success by language."
    )
    return tables.heat_rows(run), files


def _unbroken(text: str) -> Markup:
    """A sentence, escaped, whose intervals stay on one line (`2.4–6.6 %`)."""
    return Markup(re.sub(r"\(?[\d.]+–[\d.]+\S*", r'<span class="whole">\g<0></span>', str(escape(text))))
