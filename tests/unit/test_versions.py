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


def requirements(lines: list[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {one.name: one for one in found}


@pytest.mark.parametrize("name", TABLE)
def test_what_is_tested_is_what_is_declared(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = requirements([*project["dependencies"], *project["optional-dependencies"]["align"]])
    constraints = requirements((ROOT / "constraints-lowest.txt").read_text("utf-8").splitlines())
    lowest, newest = TABLE[name]
    assert declared[name].specifier.contains(lowest) and declared[name].specifier.contains(newest)
    if name in constraints:
        assert constraints[name].specifier.contains(lowest)
        [least] = [one.version for one in declared[name].specifier if one.operator == ">="]
        assert lowest.startswith(least) or name == "torch"


def test_the_table_names_what_models_are_trained_with():
    assert set(TABLE) == {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
