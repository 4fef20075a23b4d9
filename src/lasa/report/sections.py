"""The chapters of a report about the systems: outcomes, costs, comparisons, harder splits, settings tried."""

from dataclasses import dataclass, field
from functools import partial

from lasa.report import figures, tables, training_tables
from lasa.report.interpreter_tables import split_probe_table
from lasa.report.run_folder import Run
from lasa.report.svg import FigureFiles
from lasa.report.table import Table
from lasa.report.values import BETTER, GROUPS, METRIC_NAMES, rates


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


Save = partial[FigureFiles]
"""`svg.save_figure` with the folder of the figures already given."""


def outcomes(run: Run, save: Save) -> list[Section]:
    """What came of the harmful prompts, by system and by language."""
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
        description="Shares of refused, complied, irrelevant, wrong-language, empty and unscored answers by system.",
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
    section.tables += [table for table in (tables.agreement_table(run), tables.second_judge_table(run)) if table]
    return [section]


def costs(run: Run, save: Save) -> list[Section]:
    """Helpfulness and over-refusal."""
    metrics = [m for m in ("helpful", "over_refusal", "hard_benign_over_refusal") if rates(run.systems, GROUPS, [m])]
    table = tables.cost_table(run)
    if not table.rows:
        return []
    section = Section("helpfulness", "Helpfulness and over-refusal", folded=[table])
    section.text.append("What safety costs: a model that refuses everything is safe and of no use.")
    if metrics:
        cells = rates(run.systems, GROUPS, metrics)
        titles = {metric: f"{METRIC_NAMES[metric]} ({BETTER[metric]})" for metric in metrics}
        files = save(
            figures.rates_by_system(cells, titles), [cell.row() for cell in cells], name="helpfulness",
            description="Helpful answers and over-refusal by system, on seen and unseen languages.",
        )  # fmt: skip
        caption = "Answers to benign prompts. Good: helpful answers right, over-refusal left. Lines: 95 % interval."
        section.illustrations.append(Illustration(files, caption))
    by_language = tables.helpful_table(run)
    section.folded += [by_language] if by_language.rows else []
    perplexity = training_tables.perplexity_table(run)
    section.tables += [perplexity] if perplexity else []
    return [section]


def comparisons(run: Run, save: Save) -> list[Section]:
    """Paired comparisons of two systems."""
    if not run.comparisons:
        return []
    section = Section("comparisons", "Paired comparisons", folded=[tables.comparison_table(run)])
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


def splits(run: Run, _save: Save) -> list[Section]:
    """The harder held-out splits."""
    held_out = {name: split for name, split in run.splits.items() if not split.get("unchanged")}
    if not held_out:
        return []
    section = Section("splits", "Harder splits")
    section.text.append(
        "Held-out prompts that differ more from the training data than those above. A defence that learned words "
        "rather than meaning falls behind here."
    )
    for name, split in held_out.items():
        section.tables += [tables.split_table(name, split)] if split.get("systems") else []
        probes = split_probe_table(name, split.get("interpreter") or {})
        section.tables += [probes] if probes else []
    return [section]


def settings_tried(run: Run, save: Save) -> list[Section]:
    """The development sweep of each system, where several settings were tried."""
    rows = training_tables.sweep_rows(run)
    if not rows:
        return []
    section = Section("settings", "Settings tried", tables=[training_tables.sweep_table(rows)])
    section.text.append(
        "Where a recipe lists several settings for a system, each is trained and measured on development prompts; no "
        "test prompt has a say. Used is the one with the lowest attack success among those that stay helpful enough, "
        "or the most helpful one where none does."
    )
    section.text += [
        f"{name}: {entry['sweep_choice']['verdict']}"
        for name, entry in run.systems.items()
        if entry.get("sweep_choice")
    ]
    points = [row for row in rows if row["asr"] and row["helpful"]]
    if points:
        values = [{**row, "asr": row["asr"].value, "helpful": row["helpful"].value} for row in points]
        files = save(
            figures.trade_off(values), values, name="settings_tried",
            description="Attack success against helpful answers of every setting that was tried.",
        )  # fmt: skip
        caption = "Each point is a setting; filled: the one that was used. Good: low (few attacks) and right (helpful)."
        section.illustrations.append(Illustration(files, caption))
    return [section]
