"""What to install where a package is missing that only an extra of lasa brings."""

from collections.abc import Iterator
from contextlib import contextmanager

from lasa.errors import MissingExtraError

EXTRA_OF = {
    "trl": "align",
    "peft": "align",
    "fastapi": "serve",
    "uvicorn": "serve",
    "starlette": "serve",
    "sse_starlette": "serve",
    "prometheus_client": "serve",
    "pyarrow": "evaluate",
    "datasets": "evaluate",
    "lingua": "evaluate",
    "openpyxl": "evaluate",
    "anyascii": "evaluate",
    "httpx": "evaluate",
    "matplotlib": "report",
    "inspect_ai": "inspect",
    "gguf": "gguf",
}
"""Import names of the packages that lasa itself does not need, and the extra that brings each."""


@contextmanager
def named_extras() -> Iterator[None]:
    """Where the code within imports a package that is not installed, say which extra brings it.

    Raises:
        MissingExtraError: In place of the ImportError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        raise MissingExtraError(
            f"This needs the package {package}, which is not installed here: pip install 'lasa[{EXTRA_OF[package]}]'."
        ) from error
