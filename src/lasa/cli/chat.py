"""`lasa chat`: a guarded conversation in the terminal."""

from pathlib import Path

import typer


def chat(
    run: Path | None = typer.Option(None, help="Run folder whose aligned system and interpreter are used."),
    system: str = typer.Option("lasa", help="System of that run."),
    model: str = typer.Option("embedded", help="Model folder, with --interpreter."),
    interpreter: Path | None = typer.Option(None, help="Interpreter folder, with --model."),
    force: bool = typer.Option(False, "--force", help="Use a model that the interpreter was not trained on."),
    max_new_tokens: int = typer.Option(512, min=1, help="Length limit of an answer."),
    temperature: float = typer.Option(0.0, min=0.0, help="0 for greedy decoding."),
) -> None:
    """Talk to a guarded model; score and decision are shown before each answer."""
    from rich.console import Console
    from rich.text import Text

    from lasa.errors import DataError
    from lasa.generation import GenerationSettings
    from lasa.prompts import Message
    from lasa.quiet import quiet_libraries
    from lasa.serving.batch import Row, RunningBatch
    from lasa.serving.loading import load_guard

    quiet_libraries()
    guard = load_guard(run=run, system=system, model=model, interpreter=interpreter, force=force)
    settings = GenerationSettings(max_new_tokens=max_new_tokens, temperature=temperature)
    colours = {"harmful": "red", "controversial": "yellow", "benign": "green"}
    console, messages = Console(highlight=False), list[Message]()
    console.print("Write in any language. /new begins another conversation, /quit or Ctrl-D ends.", style="dim")
    while True:
        try:
            text = console.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if text in ("/quit", "/exit"):
            break
        if text == "/new":
            messages.clear()
        if not text or text == "/new":
            continue
        batch = RunningBatch(guard)
        try:
            row = Row(guard.question([*messages, {"role": "user", "content": text}]), settings)
        except DataError as error:
            console.print(Text(str(error), style="red"))
            continue
        batch.join([row])
        decision = row.running.decision
        console.print(Text(f"{decision.band}, {decision.action}: {decision.reason}", style=colours[decision.band]))
        shown = ""
        try:
            while batch.rows:
                batch.step()
                console.print(Text(row.released[len(shown) :]), end="", soft_wrap=True)
                shown = row.released
        except KeyboardInterrupt:
            console.print("\nStopped.", style="dim")
            continue
        outcome = row.outcome()
        console.print(Text(outcome.answer.text[len(shown) :]), soft_wrap=True)
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": outcome.answer.text}]
