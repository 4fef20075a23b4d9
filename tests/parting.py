"""`lasa` as one of several processes, which have to part before it ends; see `lasa.launch`."""

import os

import torch

from lasa.cli import main


def run() -> None:
    """`lasa`, and how it ends."""
    try:
        main()
    except SystemExit as stop:
        assert stop.code or not torch.distributed.is_initialized(), "the process ends among the others"
        assert stop.code or os.environ["RANK"] == "0", "another process than the first tears its interpreter down"
        raise


if __name__ == "__main__":
    run()
