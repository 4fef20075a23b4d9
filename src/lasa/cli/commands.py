"""The commands of this folder: one file each, loaded when it is called; `lasa --help` only looks into the files."""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class Commands(TyperGroup):
    """A group whose commands lie in modules of this package, under their own names.

    A module defines a function of its name; where it also has a Typer `app`, the command is a group.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: TyperCommand(name, help=_help(name)) for name in NAMES}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments begin with, loaded."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and load_command(str(command.name)), rest


NAMES = (
    "run",
    "locate",
    "train-interpreter",
    "import-interpreter",
    "calibrate",
    "coverage",
    "align",
    "merge",
    "generate",
    "chat",
    "serve",
    "evaluate",
    "judge",
    "compare",
    "report",
    "plan",
    "doctor",
    "embedded",
)


def load_command(name: str) -> Any:
    """The command of a name, with its options."""
    module = import_module(f"lasa.cli.{_module(name)}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command(name)(getattr(module, _module(name)))
    return typer.main.get_command(app)


def _module(name: str) -> str:
    return name.replace("-", "_")


def _help(name: str) -> str | None:
    """What the command's function says of itself, read without running the file."""
    tree = ast.parse((Path(__file__).parent / f"{_module(name)}.py").read_text("utf-8"))
    [function] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == _module(name)]
    return ast.get_docstring(function)
