"""`lasa judge`: answers that exist already, from a log or a labelled set."""

from pathlib import Path

import typer

from lasa.evaluation.judge_settings import Half


def judge(
    answers: Path = typer.Option(
        ..., help="Table with the columns prompt, answer, language and, where there are labels, label."
    ),
    judge: str = typer.Option(
        "refusal-patterns",
        help="refusal-patterns, interpreter:FOLDER@MODEL, llm:MODEL@URL or classifier:FORMAT:FOLDER_OR_MODEL@URL.",
    ),
    language: str | None = typer.Option(None, help="Of every row of a table without such a column."),
    half: Half = typer.Option(
        "all", help="Half of the questions, the same one every time: all, development, held-out."
    ),
    output: Path | None = typer.Option(None, "--output", "-o", help="Write the verdicts there, an answer a line."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Judge answers; where they have labels (refusal, compliance), say how well the judge finds refusals."""
    import json

    from rich.console import Console

    from lasa.evaluation.judge_settings import load_judge
    from lasa.evaluation.judging import judge_answers, judging_results, read_answers
    from lasa.evaluation.panel import Panel
    from lasa.evaluation.samples import sample_line
    from lasa.files.artifacts import write_text
    from lasa.quiet import quiet_libraries
    from lasa.report.terminal import judging_table

    quiet_libraries()
    panel = Panel(load_judge(judge))
    given = read_answers(answers, language=language, half=half)
    caveats = panel.check([("", one.prompt) for one in given])
    samples = judge_answers(panel, given)
    results = {**judging_results(given, samples), "half": half, "caveats": caveats}
    if output:
        write_text(output, "".join(map(sample_line, samples)))
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
        return
    console = Console()
    console.print(judging_table(results))
    for caveat in caveats:
        console.print(f"Caution: {caveat}", soft_wrap=True, highlight=False)
