"""`lasa doctor`: can this model be read and guarded here?"""

from pathlib import Path

import typer


def doctor(
    model: str = typer.Option("embedded", help="Model folder, or `embedded`."),
    interpreter: Path | None = typer.Option(None, help="Interpreter folder to check against the model."),
) -> None:
    """Check that a model can be loaded, rendered, read and guarded."""
    from rich.console import Console

    from lasa.hidden_states import check_readable
    from lasa.layers import hidden_size, num_layers
    from lasa.models import load_model, num_parameters
    from lasa.quiet import quiet_libraries
    from lasa.rendering import render, turn_end_ids

    quiet_libraries()
    console = Console()
    network, tokenizer = load_model(model)
    console.print(f"model        {type(network).__name__}, {num_parameters(network):,} parameters")
    console.print(f"layers       0 to {num_layers(network)}, {hidden_size(network)} wide")
    check_readable(network)
    console.print("reading      every layer can be observed")
    rendered = render(tokenizer, ({"role": "user", "content": "hello"},))
    bos = rendered.token_ids.count(tokenizer.bos_token_id) if tokenizer.bos_token_id is not None else 0
    console.print(f"rendering    {len(rendered.token_ids)} tokens for a greeting, {bos} BOS")
    console.print(f"turn end     {tokenizer.convert_ids_to_tokens(turn_end_ids(tokenizer))}")
    if interpreter is not None:
        from lasa.interpreter import load_interpreter

        load_interpreter(interpreter).check_fits(network, tokenizer)
        console.print("interpreter  fits this model")
