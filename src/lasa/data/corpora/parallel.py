"""Benign parallel text for the layer search: NTREX, Tatoeba and NusaX translations.

Sentences rather than requests: what they have in common across languages is meaning alone, which is what the
semantic silhouette needs.
"""

from pathlib import Path

from lasa.data.corpora.tables import clean, corpus_files, filled, read_lines, read_table
from lasa.data.prompts import Prompt, user_prompt
from lasa.errors import DataError

ISO_639_3 = {
    "eng": "en", "arb": "ar", "ara": "ar", "ben": "bn", "zho-CN": "zh", "cmn": "zh", "ita": "it", "jav": "jv",
    "kor": "ko", "swa": "sw", "swh": "sw", "tha": "th", "vie": "vi", "deu": "de", "fra": "fr", "spa": "es",
    "por": "pt", "rus": "ru", "jpn": "ja", "hin": "hi", "tel": "te", "ind": "id", "msa": "ms", "tur": "tr",
    "pol": "pl", "nld": "nl", "ukr": "uk", "fas": "fa", "pes": "fa", "urd": "ur", "tam": "ta", "heb": "he",
    "ces": "cs", "swe": "sv", "ell": "el", "ron": "ro", "hun": "hu", "fin": "fi", "dan": "da", "nob": "no",
    "tgl": "tl", "fil": "tl", "mya": "my", "khm": "km", "lao": "lo", "amh": "am", "hau": "ha", "yor": "yo",
    "ibo": "ig", "zul": "zu", "nep": "ne", "sin": "si", "mar": "mr", "guj": "gu", "kan": "kn", "mal": "ml",
    "hye": "hy", "kat": "ka", "kaz": "kk", "bul": "bg", "hrv": "hr", "slk": "sk", "est": "et", "lav": "lv",
    "lit": "lt", "xho": "xh", "som": "so", "mlg": "mg", "eus": "eu", "cat": "ca", "glg": "gl", "cym": "cy",
    "gle": "ga", "isl": "is", "mlt": "mt", "sqi": "sq", "gla": "gd",
}  # fmt: skip
"""Codes in the file names of NTREX and Tatoeba. Second variants of a language (zho-TW, fra-CA) are not among them."""

NUSAX_LANGUAGES = {"english": "en", "javanese": "jv", "indonesian": "id", "sundanese": "su"}
"""NusaX's columns in languages that `lasa.languages` names; the other eight are left out."""

NUSAX_SPLITS = ("train", "valid", "test")


def load_ntrex(path: Path) -> list[Prompt]:
    """NTREX-128 (Federmann et al., 2022): 1,997 news sentences, line-aligned over all languages.

    Files in languages unknown to `lasa.languages` and second variants of a language are left out.

    Args:
        path: The folder with `newstest2019-src.eng.txt` and `newstest2019-ref.<code>.txt`.

    Returns:
        Benign prompts `ntrex:<line>`, lines from 0.

    Raises:
        DataError: A file is missing or has not as many lines as the English one.
    """
    english = path / "newstest2019-src.eng.txt"
    lines = len(read_lines(english))
    prompts = []
    for file in [english, *corpus_files(path, "newstest2019-ref.*.txt")]:
        language = ISO_639_3.get(file.name.split(".")[1])
        if language is None:
            continue
        translated = read_lines(file)
        if len(translated) != lines:
            raise DataError(
                f"{file}: {len(translated)} lines, but {english.name} has {lines}, so the lines are not translations "
                "of each other. Restore the original files."
            )
        prompts += _sentences("ntrex", "ntrex:", language, translated)
    return prompts


def load_tatoeba(path: Path) -> list[Prompt]:
    """Tatoeba test pairs as published with LASER (Artetxe & Schwenk, 2019): a language and English, line by line.

    The English side differs from pair to pair, so the query ids name the pair: languages are parallel to
    English only, never to each other.

    Args:
        path: The folder with `tatoeba.<code>-eng.<code>` and `tatoeba.<code>-eng.eng`.

    Returns:
        Benign prompts `tatoeba:<code>/<line>`, lines from 0; both sides of each pair. Pairs in languages unknown to
        `lasa.languages` are left out.

    Raises:
        DataError: A side is missing or the two sides differ in length.
    """
    prompts = []
    for english in corpus_files(path, "tatoeba.*-eng.eng"):
        code = english.name.split(".")[1].removesuffix("-eng")
        language = ISO_639_3.get(code)
        if language is None:
            continue
        other = english.with_name(f"tatoeba.{code}-eng.{code}")
        sides = {"en": read_lines(english), language: read_lines(other)}
        if len(sides["en"]) != len(sides[language]):
            raise DataError(
                f"{other}: {len(sides[language])} lines, but {english.name} has {len(sides['en'])}; the two sides are "
                "not aligned. Restore the original files."
            )
        for side, lines in sides.items():
            prompts += _sentences("tatoeba", f"tatoeba:{code}/", side, lines)
    return prompts


def load_nusax_mt(path: Path) -> list[Prompt]:
    """NusaX translations (Winata et al., 2023): informal reviews, 1,000 of them in English and Javanese.

    Args:
        path: The folder with `train.csv`, `valid.csv` and `test.csv` (`datasets/mt`), or one of these files.

    Returns:
        Benign prompts `nusax_mt:<split>/<index>` in English, Javanese, Indonesian and Sundanese; the index starts
        anew in every split.
    """
    prompts = []
    for file in corpus_files(path, "*.csv"):
        if file.stem not in NUSAX_SPLITS:
            raise DataError(f"{file}: not a split of NusaX ({', '.join(NUSAX_SPLITS)}). Give the original files.")
        for number, row in enumerate(read_table(file, ["", *NUSAX_LANGUAGES]), 1):
            prompts += [
                user_prompt(
                    f"nusax_mt:{file.stem}/{row['']}",
                    language,
                    filled(file, number, row, column),
                    harmful=False,
                    source="nusax_mt",
                    details={"split": file.stem},
                )
                for column, language in NUSAX_LANGUAGES.items()
            ]
    return prompts


def _sentences(source: str, id_prefix: str, language: str, lines: list[str]) -> list[Prompt]:
    return [
        user_prompt(f"{id_prefix}{number}", language, clean(line), harmful=False, source=source)
        for number, line in enumerate(lines)
        if clean(line)
    ]
