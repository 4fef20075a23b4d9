"""Fixed refusals for the guard's `refuse` action: the first wording of each language."""

from lasa.data.refusals import read_refusals

REFUSALS = {code: wordings[0] for code, wordings in read_refusals().items()}


def refusal_message(language: str | None) -> str:
    """The refusal in a language; in all of them, a line each, where the user's is unknown or not among them.

    Args:
        language: BCP-47 code, or None.
    """
    return REFUSALS.get(language or "", "\n".join(REFUSALS.values()))
