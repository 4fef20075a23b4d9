"""Languages: BCP-47 codes, their names, and the resource level the field ascribes to them."""

from lasa.errors import DataError

NAMES = {
    "en": "English", "zh": "Chinese", "ko": "Korean", "it": "Italian", "vi": "Vietnamese", "ar": "Arabic",
    "th": "Thai", "bn": "Bengali", "sw": "Swahili", "jv": "Javanese", "de": "German", "fr": "French",
    "es": "Spanish", "pt": "Portuguese", "ru": "Russian", "ja": "Japanese", "hi": "Hindi", "te": "Telugu",
    "id": "Indonesian", "ms": "Malay", "tr": "Turkish", "pl": "Polish", "nl": "Dutch", "uk": "Ukrainian",
    "fa": "Persian", "ur": "Urdu", "ta": "Tamil", "he": "Hebrew", "cs": "Czech", "sv": "Swedish", "el": "Greek",
    "ro": "Romanian", "hu": "Hungarian", "fi": "Finnish", "da": "Danish", "no": "Norwegian", "tl": "Tagalog",
    "my": "Burmese", "km": "Khmer", "lo": "Lao", "am": "Amharic", "ha": "Hausa", "yo": "Yoruba", "ig": "Igbo",
    "zu": "Zulu", "su": "Sundanese", "ne": "Nepali", "si": "Sinhala", "mr": "Marathi", "gu": "Gujarati",
    "pa": "Punjabi", "kn": "Kannada", "ml": "Malayalam", "gd": "Scottish Gaelic", "hy": "Armenian",
    "ka": "Georgian", "kk": "Kazakh", "uz": "Uzbek", "mn": "Mongolian", "sr": "Serbian", "bg": "Bulgarian",
    "hr": "Croatian", "sk": "Slovak", "et": "Estonian", "lv": "Latvian", "lt": "Lithuanian", "qu": "Quechua",
    "ht": "Haitian Creole", "xh": "Xhosa", "so": "Somali", "mg": "Malagasy", "eu": "Basque", "ca": "Catalan",
    "gl": "Galician", "cy": "Welsh", "ga": "Irish", "is": "Icelandic", "mt": "Maltese", "sq": "Albanian",
}  # fmt: skip
"""Languages a prompt table may name. Add a line to add a language."""

ALIASES = {"jw": "jv", "sp": "es", "cn": "zh", "zh-cn": "zh", "zh-hans": "zh", "iw": "he", "in": "id", "swh": "sw"}
"""Spellings met in public files and what they mean."""

RESOURCE_LEVEL = {
    "en": "high", "zh": "high", "it": "high", "vi": "high", "de": "high", "fr": "high", "es": "high", "ru": "high",
    "ja": "high", "ar": "medium", "ko": "medium", "th": "medium", "hi": "medium", "bn": "low", "sw": "low",
    "jv": "low", "te": "low",
}  # fmt: skip
"""Resource level by share of web text, as grouped by MultiJail (Deng et al., 2024)."""


def canonical_language(code: str) -> str:
    """The BCP-47 code used everywhere in lasa.

    Args:
        code: A language code as found in a file or a setting, in any letter case.

    Returns:
        The canonical code; `jw` becomes `jv`.

    Raises:
        DataError: The code is unknown.
    """
    lowered = code.strip().lower().replace("_", "-")
    canonical = ALIASES.get(lowered, lowered)
    if canonical not in NAMES and canonical.split("-")[0] in NAMES:
        canonical = canonical.split("-")[0]
    if canonical not in NAMES:
        raise DataError(
            f"Unknown language code {code!r:.60}. Use a BCP-47 code such as en, zh, sw or jv "
            "(lasa.languages.NAMES lists those that are known)."
        )
    return canonical


def sort_languages(codes: "set[str] | list[str]") -> list[str]:
    """Codes in the order of `NAMES`: the paper's ten languages first."""
    order = {code: position for position, code in enumerate(NAMES)}
    return sorted(codes, key=lambda code: order.get(code, len(order)))
