"""What a table of the report is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lasa.statistics import Rate

Content = str | Rate | None
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        title: What to call it where it is folded away.
        caption: What it shows and what is good.
        columns: Headings; the first column names the row.
        rows: Cells, as many in each row as there are columns.
        marked: Indices of the rows that stand out.
        marks: What these rows are.
    """

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Content]]
    marked: frozenset[int] = field(default_factory=frozenset)
    marks: str = "unseen languages"
