"""LASA: language-agnostic safety for multilingual language models (arXiv 2604.12710).

What a researcher uses lies here (`__init__.pyi` names it) and is loaded on first use; importing `lasa` loads neither
torch nor transformers. The tree is the algorithm: `data` -> `models` -> `bottleneck` -> `interpreter` ->
`conditioning` -> `alignment` -> `guard` -> `evaluation` -> `run`.
"""

from importlib.metadata import version

import lazy_loader

from lasa.extras import named_extras

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("lasa")


def __getattr__(name: str) -> object:
    with named_extras():
        return _load(name)
