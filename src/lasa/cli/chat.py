"""`lasa chat`: a guarded conversation in the terminal."""

import typer

from lasa.cli.options import SystemChoice, with_model, with_settings
from lasa.models.settings import ModelSettings


@with_model
@with_settings(SystemChoice, "choice", defaults={"system": "lasa"})
def chat(
    model: ModelSettings,
    choice: SystemChoice,
    max_new_tokens: int = typer.Option(512, min=1, help="Length limit of an answer."),
    temperature: float = typer.Option(0.0, min=0.0, help="0 for greedy decoding."),
) -> None:
    """Talk to a guarded model; score and decision are shown before each answer."""
    from rich.console import Console
    from rich.text import Text

    from lasa.data.prompts import Message
    from lasa.errors import DataError
    from lasa.models.generation import GenerationSettings
    from lasa.quiet import quiet_libraries
    from lasa.serving.batch import RunningBatch
    from lasa.serving.served import ServedAnswer

    quiet_libraries()
    guard = choice.find(model).guard()
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
            row = ServedAnswer(guard.question([*messages, {"role": "user", "content": text}]), settings)
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
