"""Public corpora in their original formats, read as prompt tables.

`load_corpus` knows the files by name; `lasa.data.corpora.hub` reads any Hugging Face dataset by declared columns;
`lasa.data.corpora.audit` counts what a table holds and finds training rows that an evaluation would ask again. Query
ids begin with the corpus's name, are stable, and are the same for all translations of one question.
"""

from collections.abc import Callable
from pathlib import Path

from lasa.data.corpora.answers import load_labelled_answers
from lasa.data.corpora.harmful import (
    load_advbench,
    load_do_not_answer,
    load_harmbench,
    load_multijail,
    load_strongreject,
    load_xstest,
)
from lasa.data.corpora.lasa_official import load_multijail_1k, load_ssi_harmful, load_ultrafeedback
from lasa.data.corpora.pairs import PREFERENCE_LOADERS
from lasa.data.corpora.parallel import load_ntrex, load_nusax_mt, load_tatoeba
from lasa.data.corpora.utility import load_global_mmlu_lite, load_mgsm, load_nusax_sentiment, load_xcopa
from lasa.data.corpora.xsafety import load_xsafety
from lasa.data.prompts import Prompt
from lasa.errors import DataError

__all__ = ["LOADERS", "PREFERENCE_LOADERS", "load_corpus"]

LOADERS: dict[str, Callable[[Path], list[Prompt]]] = {
    "multijail": load_multijail,
    "xsafety": load_xsafety,
    "harmbench": load_harmbench,
    "advbench": load_advbench,
    "strongreject": load_strongreject,
    "xstest": load_xstest,
    "do_not_answer": load_do_not_answer,
    "ntrex": load_ntrex,
    "tatoeba": load_tatoeba,
    "nusax_mt": load_nusax_mt,
    "mgsm": load_mgsm,
    "global_mmlu_lite": load_global_mmlu_lite,
    "nusax_sentiment": load_nusax_sentiment,
    "xcopa": load_xcopa,
    "labelled_answers": load_labelled_answers,
    "lasa_multijail_1k": load_multijail_1k,
    "lasa_ssi_harmful": load_ssi_harmful,
    "lasa_ultrafeedback": load_ultrafeedback,
}
"""Corpus names and their loaders; each loader says which file or folder it takes."""


def load_corpus(name: str, path: Path | str) -> list[Prompt]:
    """Read a public corpus from its original file or folder.

    Args:
        name: A key of `LOADERS`.
        path: Where the corpus lies; nothing is downloaded, and no path found inside a file is opened.

    Raises:
        DataError: The name is unknown, or the files are not that corpus.
    """
    if name not in LOADERS:
        raise DataError(
            f"Unknown corpus {name!r}. Known are {', '.join(LOADERS)}; "
            "any other table can be read as a prompt table with declared columns."
        )
    return LOADERS[name](Path(path))
