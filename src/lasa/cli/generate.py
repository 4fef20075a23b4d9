"""`lasa generate`: guarded answers to prompts from the command line or a file."""

import typer

from lasa.cli.options import SystemChoice, with_model, with_settings
from lasa.models.settings import ModelSettings


@with_model
@with_settings(SystemChoice, "choice", defaults={"system": "lasa"})
def generate(
    model: ModelSettings,
    choice: SystemChoice,
    prompt: list[str] = typer.Argument(None, help="Prompts."),
    max_new_tokens: int = typer.Option(256, min=1, help="Length limit of an answer."),
    temperature: float = typer.Option(0.0, min=0.0, help="0 for greedy decoding."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object per answer."),
) -> None:
    """Answer prompts behind the guard."""
    import json
    from dataclasses import asdict

    from rich.console import Console

    from lasa.errors import DataError
    from lasa.models.generation import GenerationSettings
    from lasa.quiet import quiet_libraries

    quiet_libraries()
    if not prompt or not all(text.strip() for text in prompt):
        raise DataError("Give at least one prompt, and no empty one.")
    guard = choice.find(model).guard()
    settings = GenerationSettings(max_new_tokens=max_new_tokens, temperature=temperature)
    answers = guard.generate([({"role": "user", "content": text},) for text in prompt], settings)
    console = Console()
    for text, one in zip(prompt, answers, strict=True):
        if as_json:
            facts = {"prompt": text, "text": one.answer.text, "decision": asdict(one.decision)}
            print(json.dumps(facts, ensure_ascii=False))
        else:
            console.print(f"[dim]{one.decision.reason}: {one.decision.action}[/dim]", highlight=False)
            console.print(one.answer.text, markup=False, highlight=False, soft_wrap=True)
