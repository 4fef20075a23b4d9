"""The example table: which samples a report shows, and how they travel in the page without becoming part of it.

Text in a sample is untrusted. It is stored as JSON with every character escaped that could end the script element
around it, and the page's script inserts it as text only.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from markupsafe import Markup

from lasa.evaluation.outcomes import Sample
from lasa.languages import NAMES

SAMPLES_PER_SYSTEM = 200
CHARACTERS_PER_TEXT = 2000

_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def choose_samples(samples: Sequence[Sample], limit: int = SAMPLES_PER_SYSTEM) -> list[Sample]:
    """At most `limit` samples of one system, chosen evenly.

    Every combination of split, language, label and outcome gives samples in turn until `limit` is reached, so rare
    outcomes are shown; a combination with more samples than its turns gives them evenly spaced. The order of the
    samples is kept.
    """
    cells: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for position, sample in enumerate(samples):
        cell = (sample.split, sample.prompt.language, sample.prompt.harmful, sample.verdict.outcome)
        cells[cell].append(position)
    spread = (_evenly_spaced_first(positions) for positions in cells.values())
    in_turn = [position for turn in zip_longest(*spread) for position in turn if position is not None]
    return [samples[position] for position in sorted(in_turn[:limit])]


def example_rows(systems: dict[str, list[Sample]], limit: int = SAMPLES_PER_SYSTEM) -> list[dict[str, Any]]:
    """The rows of the example table, as the page's script reads them."""
    return [_row(name, sample) for name, samples in systems.items() for sample in choose_samples(samples, limit)]


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a `<script type="application/json">` element of an HTML page."""
    return Markup(json.dumps(value, ensure_ascii=False, allow_nan=False).translate(_ESCAPES))


def _evenly_spaced_first(positions: list[int]) -> list[int]:
    """The positions reordered so that any beginning of the list is spread over the whole of it (bit reversal)."""
    bits = max(1, (len(positions) - 1).bit_length())
    reversed_bits = [int(f"{index:0{bits}b}"[::-1], 2) for index in range(2**bits)]
    return [positions[index] for index in reversed_bits if index < len(positions)]


def _row(system: str, sample: Sample) -> dict[str, Any]:
    prompt = sample.prompt
    turns = [f"[{message['role']}] {message['content']}" for message in prompt.messages]
    return {
        "system": system,
        "split": sample.split,
        "query": prompt.query_id,
        "language": prompt.language,
        "language_name": NAMES.get(prompt.language, prompt.language),
        "label": {True: "harmful", False: "benign", None: "unlabelled"}[prompt.harmful],
        "outcome": sample.verdict.outcome or "unscored",
        "score": sample.score,
        "flagged": sample.flagged,
        "prompt": _clipped("\n".join(turns) if len(turns) > 1 else prompt.text),
        "answer": _clipped(sample.text),
        "answer_language": sample.verdict.language,
        "reason": _clipped(sample.verdict.reason),
    }


def _clipped(text: str) -> str:
    cut = len(text) - CHARACTERS_PER_TEXT
    return text if cut <= 0 else f"{text[:CHARACTERS_PER_TEXT]} … [{cut} more characters]"
