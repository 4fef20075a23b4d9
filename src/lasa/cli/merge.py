"""`lasa merge`: a plain model from an adapter and its base."""

from pathlib import Path

import typer


def merge(
    adapter: Path = typer.Argument(help="Adapter folder, as `lasa align` or a run writes it."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder for the merged model."),
) -> None:
    """Merge an adapter into its base model, for engines that serve plain checkpoints only."""
    from lasa.models.merging import merge_adapter
    from lasa.quiet import quiet_libraries

    quiet_libraries()
    merge_adapter(adapter, output)
    typer.echo(f"Written: {output}")
