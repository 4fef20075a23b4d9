"""`lasa locate`: the layer search alone, from files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lasa.bottleneck import Bottleneck
    from lasa.prompts import Prompt


def locate(
    model: str = typer.Option("embedded", help="Local Hugging Face model folder, or `embedded`."),
    prompts: list[str] = typer.Option(
        ..., help="Parallel prompts: file, `hf:owner/name`, `corpus:path` or `embedded:name`; repeatable."
    ),
    output: Path = typer.Option(..., "--output", "-o", help="Folder for bottleneck.json and the figures."),
    panels: str = typer.Option("", help="Layers to draw as t-SNE panels, such as 1,6,10."),
    position: str = typer.Option("last", help="Token position: last, last_user or mean_user."),
    resamples: int = typer.Option(1000, min=50, help="Bootstrap resamples over queries."),
    seed: int = typer.Option(0, min=0, help="Of the bootstrap and the panels."),
    dtype: str = typer.Option("auto", help="auto, float32, bfloat16 or float16."),
    device: str = typer.Option("auto", help="auto or a torch device."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Find the semantic bottleneck of a model with parallel prompts."""
    import json

    from rich.console import Console

    from lasa.artifacts import model_fingerprint, provenance, write_sealed
    from lasa.bottleneck import find_bottleneck
    from lasa.cli.tables import layers_table
    from lasa.hidden_states import read_to_folder
    from lasa.layers import check_layer, num_layers
    from lasa.models import load_model
    from lasa.progress import show_progress
    from lasa.prompts import check_parallel
    from lasa.quiet import quiet_libraries
    from lasa.report.figures import write_layer_curves
    from lasa.report.layer_figures import write_panels, write_similarity_curves

    show_progress()
    quiet_libraries()
    drawn = _layer_list(panels)
    table = _load(prompts)
    check_parallel(table)
    network, tokenizer = load_model(model, dtype=dtype, device=device)
    for layer in drawn:
        check_layer(network, layer)
    layers = list(range(num_layers(network) + 1))
    states = read_to_folder(network, tokenizer, table, layers, output / "hidden_states", position)  # type: ignore[arg-type]
    found = find_bottleneck(states, layers, table, num_layers(network), resamples=resamples, seed=seed)
    result = {
        **found.to_json(),
        "position": position,
        "provenance": provenance(model=model, fingerprint=model_fingerprint(network), prompts=prompts, seed=seed),
    }
    write_sealed(output / "bottleneck.json", result)
    write_layer_curves(result, output)
    figures = ["layer_curves"]
    if write_similarity_curves(result, output):
        figures.append("similarity_curves")
    if drawn:
        write_panels(states, table, drawn, result, output, seed=seed)
        figures.append("layer_panels")
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(layers_table(result))
    for sentence in findings(found):
        console.print(sentence)
    console.print(f"Written to {output}: bottleneck.json; as SVG, PNG and CSV: {', '.join(figures)}.")


def findings(found: "Bottleneck") -> Iterator[str]:
    """The search in words: its data, the bottleneck, and whether it stands without a language and on each label."""
    counts = (
        f"{code} {count}" + (f" ({found.queries - count} missing)" if count < found.queries else "")
        for code, count in found.languages.items()
    )
    yield f"{found.queries} queries in {len(found.languages)} languages: {', '.join(counts)}."
    yield found.verdict
    moved = {code: layer for code, layer in found.without_language.items() if layer != found.argmax_layer}
    if found.without_language and not moved:
        yield f"Leaving out any one language leaves the largest difference at layer {found.argmax_layer}."
    elif moved:
        changes = ", ".join(f"{code} (layer {layer})" for code, layer in moved.items())
        yield f"The largest difference moves from layer {found.argmax_layer} when one language is left out: {changes}."
    if len(found.controls) == 2:
        harmful, harmless = found.controls["harmful"], found.controls["harmless"]
        same = "the same layer, so it is not harm that makes it" if harmful == harmless else "not the same layer"
        yield f"Control: harmful prompts alone give layer {harmful}, harmless ones layer {harmless}: {same}."
    else:
        yield (
            f"Control: not possible, since there are no parallel {_lacking(found.controls)} prompts; "
            "add some with another --prompts."
        )


def _lacking(controls: "dict[str, int]") -> str:
    return " or ".join(name for name in ("harmful", "harmless") if name not in controls) + " (labelled)"


def _load(sources: Sequence[str]) -> "list[Prompt]":
    """All sources as one table, in which no source may answer for another's query and language."""
    from lasa.errors import DataError
    from lasa.sources import load_prompts

    table: list[Prompt] = []
    origin: dict[tuple[str, str], str] = {}
    for source in sources:
        for prompt in (loaded := load_prompts(source)):
            first = origin.setdefault((prompt.query_id, prompt.language), source)
            if first != source:
                raise DataError(
                    f"Query {prompt.query_id!r} is in {first} and in {source}, both in {prompt.language}. "
                    "Equal query ids mean translations of one question: rename them in one of the files."
                )
        table += loaded
    return table


def _layer_list(text: str) -> list[int]:
    """The layers written as `1,6,10`."""
    from lasa.errors import DataError

    try:
        return list(dict.fromkeys(int(part) for part in text.split(",") if part.strip()))
    except ValueError:
        raise DataError(f"--panels takes layer numbers such as 1,6,10, not {text!r}.") from None
