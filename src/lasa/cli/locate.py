"""`lasa locate`: the layer search alone, from files."""

from pathlib import Path

import typer


def locate(
    model: str = typer.Option("embedded", help="Local Hugging Face model folder, or `embedded`."),
    prompts: list[str] = typer.Option(..., help="Parallel prompts: a file, `corpus:path` or `embedded:name`; repeatable."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder for bottleneck.json and the curves."),
    position: str = typer.Option("last", help="Token position: last, last_user or mean_user."),
    resamples: int = typer.Option(1000, min=50, help="Bootstrap resamples over queries."),
    seed: int = typer.Option(0, help="Of the bootstrap."),
    dtype: str = typer.Option("auto", help="auto, float32, bfloat16 or float16."),
    device: str = typer.Option("auto", help="auto or a torch device."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Find the semantic bottleneck of a model with parallel prompts."""
    import json

    from rich.console import Console

    from lasa.artifacts import model_fingerprint, provenance, write_json
    from lasa.bottleneck import find_bottleneck
    from lasa.hidden_states import read_to_folder
    from lasa.layers import num_layers
    from lasa.models import load_model
    from lasa.progress import show_progress
    from lasa.prompts import check_parallel
    from lasa.quiet import quiet_libraries
    from lasa.report.figures import write_layer_curves
    from lasa.sources import load_prompts

    show_progress()
    quiet_libraries()
    table = [prompt for source in prompts for prompt in load_prompts(source)]
    check_parallel(table)
    network, tokenizer = load_model(model, dtype=dtype, device=device)
    layers = list(range(num_layers(network) + 1))
    states = read_to_folder(network, tokenizer, table, layers, output / "hidden_states", position)  # type: ignore[arg-type]
    found = find_bottleneck(states.all(), layers, table, num_layers(network), resamples=resamples, seed=seed)
    result = {
        **found.to_json(),
        "position": position,
        "provenance": provenance(model=model, fingerprint=model_fingerprint(network), prompts=prompts, seed=seed),
    }
    write_json(output / "bottleneck.json", result)
    write_layer_curves(result, output)
    console = Console()
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    from lasa.cli.tables import layers_table

    console.print(layers_table(result))
    console.print(found.verdict, soft_wrap=True)
    console.print(f"Written: {output / 'bottleneck.json'}, layer curves as SVG and PNG", soft_wrap=True)
