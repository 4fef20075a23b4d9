"""Rows of any Hugging Face dataset, and prompts from them by declared columns."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from lasa.data.prompt_tables import Columns, read_prompts
from lasa.data.prompts import Prompt
from lasa.errors import DataError
from lasa.extras import named_extras


def load_from_hub(
    dataset_id: str,
    columns: Columns | None = None,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    harmful: bool | None = None,
    language: str | None = None,
) -> list[Prompt]:
    """Read a prompt table from the Hugging Face Hub, or from a local dataset folder.

    No code of the dataset is run: `datasets` refuses datasets that need their own loading script.

    Args:
        dataset_id: `owner/name` on the Hub, or a folder in a layout that `datasets` understands.
        columns: The columns to use, as in `lasa.data.prompts.read_prompts`; wide and long tables are both understood.
        split: The split, also sliced (`train[:100]`).
        config: The dataset's configuration, where it has several.
        revision: A commit, tag or branch; a commit makes a run repeatable.
        harmful: Label for every row of a dataset without a label column.
        language: Language of every row of a long table without a language column.

    Returns:
        The prompts in row order; their source is the dataset's id unless a source column says otherwise.

    Raises:
        DataError: The dataset cannot be loaded, is empty, or its rows are no prompts under these columns.
    """
    columns = columns or Columns()
    with hub_file(dataset_id, split=split, config=config, revision=revision) as rows:
        prompts = read_prompts(rows, columns, harmful=harmful, language=language)
    own = {rows.stem, ""}  # the source of a row without one is its file
    return [replace(prompt, source=dataset_id) if prompt.source in own else prompt for prompt in prompts]


@contextmanager
def hub_file(
    dataset_id: str, *, split: str = "train", config: str | None = None, revision: str | None = None
) -> Iterator[Path]:
    """The rows of a dataset as a Parquet file, as long as they are needed; arguments as in `load_from_hub`.

    Raises:
        DataError: The dataset cannot be loaded or is empty; an error about the file is one about the dataset.
    """
    with named_extras():
        import datasets

    where = f"Dataset {dataset_id!r}, split {split!r}"
    try:
        table = datasets.load_dataset(dataset_id, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{where}, cannot be loaded ({type(error).__name__}: {error}). Check the name, the split, "
            "the configuration and the network; a gated dataset needs an accepted licence and a login (hf auth login)."
        ) from error
    if not len(table):
        raise DataError(f"{where}, has no rows. Choose another split.")
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / f"{uuid4().hex}.parquet"
        table.to_parquet(str(rows))
        try:
            yield rows
        except DataError as error:
            raise DataError(str(error).replace(str(rows), where)) from None
