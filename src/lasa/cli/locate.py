"""`lasa locate`: the layer search alone, from files."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lasa.bottleneck.settings import LayerSearchSettings
from lasa.cli.options import with_model, with_settings
from lasa.models.settings import ModelSettings

if TYPE_CHECKING:
    from lasa.bottleneck.search import Bottleneck


@with_model
@with_settings(LayerSearchSettings, "search", without=("layer",))
def locate(
    model: ModelSettings,
    search: LayerSearchSettings,
    output: Path = typer.Option(..., "--output", "-o", help="Folder for bottleneck.json and the figures."),
    panels: str = typer.Option("", help="Layers to draw as t-SNE panels, such as 1,6,10."),
    seed: int = typer.Option(0, min=0, help="Of the bootstrap and the panels."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Find the semantic bottleneck of a model with parallel prompts."""
    import json

    from rich.console import Console

    from lasa.bottleneck.search import find_at_positions, search_json
    from lasa.data.prompts import check_parallel
    from lasa.data.sources import load_joined
    from lasa.files.artifacts import model_fingerprint, provenance, write_sealed
    from lasa.models.hidden_states import read_to_folder
    from lasa.models.layers import check_layer, num_layers
    from lasa.models.loading import load_model
    from lasa.progress import show_progress
    from lasa.quiet import quiet_libraries
    from lasa.report.figures import write_layer_curves
    from lasa.report.layer_figures import write_panels, write_similarity_curves
    from lasa.report.terminal import layers_table

    show_progress()
    quiet_libraries()
    drawn = _layer_list(panels)
    table = load_joined(search.prompts)
    check_parallel(table)
    network, tokenizer = load_model(model)
    for layer in drawn:
        check_layer(network, layer)
    layers = list(range(num_layers(network) + 1))
    also = [position for position in search.also_positions if position != search.position]
    states = read_to_folder(network, tokenizer, table, layers, output / "hidden_states", search.position, also=also)
    found = find_at_positions(states, layers, table, num_layers(network), resamples=search.resamples, seed=seed)
    result = {
        **search_json(found),
        "provenance": provenance(
            model=model.path, fingerprint=model_fingerprint(network), prompts=search.prompts, seed=seed
        ),
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
    for place, one in found.items():
        if place != search.position:
            console.print(f"Read at {place}, for information:", style="bold")
        for sentence in findings(one):
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


def _layer_list(text: str) -> list[int]:
    """The layers written as `1,6,10`."""
    from lasa.errors import DataError

    try:
        return list(dict.fromkeys(int(part) for part in text.split(",") if part.strip()))
    except ValueError:
        raise DataError(f"--panels takes layer numbers such as 1,6,10, not {text!r}.") from None
