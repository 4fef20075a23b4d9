"""The chapter on attacks: what changed copies of the same questions do to attack success."""

from collections.abc import Sequence

from lasa.report import figures
from lasa.report.run_folder import Run
from lasa.report.sections import Illustration, Save, Section
from lasa.report.table import Content, Table
from lasa.report.values import BETTER, RateAt, as_rate, rate_of


def attacks(run: Run, save: Save) -> list[Section]:
    """Attack success on changed copies, beside that on the same prompts as written."""
    cells = attack_cells(run)
    if not cells:
        return []
    section = Section("attacks", "Attacks", folded=[attack_table(cells)])
    section.text.append(
        "The same harmful questions, changed so that a filter of words would miss them: misspelt, encoded, led up to, "
        "mixed with another language, or reworded against the interpreter's own score (adaptive). As written are the "
        "prompts that the change applies to, no others."
    )
    titles = {cell.metric: cell.metric for cell in cells}
    files = save(
        figures.rates_by_system(cells, titles), [cell.row() for cell in cells], name="attacks",
        description="Attack success by system on changed prompts and on the same prompts as written.",
    )  # fmt: skip
    caption = (
        f"Attack success ({BETTER['asr']}), a panel for each attack. Good: both marks lie left and close together; a "
        "changed mark right of the other is an attack that works. Lines: 95 % interval."
    )
    section.illustrations.append(Illustration(files, caption))
    return [section]


def attack_cells(run: Run) -> list[RateAt]:
    """Attack success of each system under each attack (the `metric`), on the changed prompts and as written."""
    cells = []
    for name, split in run.splits.items():
        for system, written in (split.get("unchanged") or {}).items():
            before, after = as_rate(written), rate_of(split["systems"].get(system) or {}, "all", "asr")
            if before is not None and before.value is not None and after is not None:
                cells += [RateAt(system, "unchanged", name, before), RateAt(system, "all", name, after)]
    return cells


def attack_table(cells: Sequence[RateAt]) -> Table:
    """The same rates in numbers."""
    rows: list[Sequence[Content]] = [
        (before.metric, before.system, before.rate, after.rate)
        for before, after in zip(cells[::2], cells[1::2], strict=True)
    ]
    return Table(
        "Attacks as a table",
        f"Attack success ({BETTER['asr']}) on prompts as written and on changed copies of them. Below each rate: its "
        "95 % interval and the number of scored prompts.",
        ("Attack", "System", "As written", "Changed"),
        rows,
    )
