"""The command line: one file per command; heavy imports happen inside the commands."""

import sys

import typer

from lasa import __version__
from lasa.cli.commands import Commands
from lasa.extras import named_extras

app = typer.Typer(
    name="lasa",
    cls=Commands,
    help="Language-agnostic safety for multilingual language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


STOPPED = 130
"""Exit code of a command that was stopped by Ctrl-C; typer ends with it, without a word."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lasa {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Language-agnostic safety for multilingual language models."""


def main() -> None:
    """Run a command; a user's error is one message and exit code 2."""
    from lasa.errors import LasaError

    if "--debug" in sys.argv:
        app()
        return
    try:
        with named_extras():
            app()
    except LasaError as error:
        _fail(str(error))
    except SystemExit as stop:
        if stop.code != STOPPED:
            raise
        _fail("Stopped. What was finished is kept; call the same command again to go on.", STOPPED)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{where}. What was finished is kept; call the same command again to go on.")


def _fail(message: str, code: int = 2) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text("Error: ", style="bold red") + Text(message))
    sys.exit(code)
