"""`lasa report`: write the report of a run again."""

from pathlib import Path

import typer


def report(run: Path = typer.Argument(help="Run folder.")) -> None:
    """Write the HTML report of a finished run."""
    from lasa.report.html import write_report

    typer.echo(f"Report: {write_report(run)}")
