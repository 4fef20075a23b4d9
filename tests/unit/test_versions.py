"""The table of tested versions, the bounds that are declared, and the constraints of the lowest say the same."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TABLE = {
    name: (lowest, newest)
    for name, lowest, newest in re.findall(
        r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE
    )
}
EXTRAS = ("align", "serve", "evaluate", "report", "gguf")
"""The extras that `make test-lowest` installs for what lasa itself does."""


def requirements(lines: list[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {one.name: one for one in found}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DECLARED = requirements(
    [*PROJECT["dependencies"], *(one for extra in EXTRAS for one in PROJECT["optional-dependencies"][extra])]
)


def bound(name: str, operator: str, among: dict[str, Requirement]) -> str:
    [version] = [one.version for one in among[name].specifier if one.operator == operator]
    return version


def test_the_lowest_that_is_declared_of_everything_is_what_is_installed_for_the_tests():
    """Ten could not be, or did not work: serve, evaluate and judge ended in a traceback with the lowest Typer."""
    constraints = requirements((ROOT / "constraints-lowest.txt").read_text("utf-8").splitlines())
    lowest = {name: bound(name, "==", constraints) for name in constraints}
    assert lowest == {name: bound(name, ">=", DECLARED) for name in DECLARED}


@pytest.mark.parametrize("name", sorted(TABLE.keys() - {"Python"}))
def test_what_is_tested_is_what_is_declared(name):
    lowest, newest = TABLE[name]
    assert lowest == bound(name, ">=", DECLARED) and DECLARED[name].specifier.contains(newest)


def test_the_table_names_what_models_are_trained_with():
    assert set(TABLE) - {"Python"} == {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}


def test_the_pythons_that_are_named_are_those_of_the_table():
    lowest, newest = TABLE["Python"]
    named = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if "Python :: 3" in one]
    assert PROJECT["requires-python"] == f">={lowest}" and (named[0], named[-1]) == (lowest, newest)
