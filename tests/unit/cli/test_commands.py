"""Commands are loaded when they are called; what `lasa --help` says of them is what they say themselves."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lasa.cli import app
from lasa.cli.commands import NAMES, Commands, load_command


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_a_command_is_its_own(name):
    listed = Commands(name="lasa").commands[name]
    assert listed.help and listed.help == load_command(name).help


def test_a_command_takes_its_options_and_a_wrong_name_is_told():
    shown = CliRunner().invoke(app, ["plan", "--help"])
    assert shown.exit_code == 0 and "--gpus" in shown.output
    assert "train" in CliRunner().invoke(app, ["embedded", "-h"]).output
    wrong = CliRunner().invoke(app, ["genrate"])
    assert wrong.exit_code == 2 and "Did you mean 'generate'?" in wrong.output


def test_help_loads_no_command_nor_what_one_needs():  # its seconds are in the benchmark of starting
    code = "import sys\nfrom lasa.cli import main\nsys.argv[1:] = ['--help']\ntry: main()\nfinally: print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "lasa.cli.commands" in loaded
    assert not {"lasa.cli.run", "lasa.cli.options", "pydantic", "torch"} & set(loaded)
