"""Two systems on the same prompts: the difference of a rate, prompt by prompt.

Two systems' samples become one entry of `comparisons` in `metrics.json`.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from lasa.evaluation.metrics import METRIC_NAMES, Metric, counts_for, is_hit, question
from lasa.evaluation.outcomes import Sample
from lasa.statistics import paired_difference, smallest_detectable_difference

SIGNIFICANCE = 0.05
"""A p-value from which up there is no evidence of a difference."""


def pair_samples(first: Sequence[Sample], second: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """The samples of two systems that answer the same prompt, in the first system's order.

    A prompt is the same when split, question, language and user message are; a prompt that was sampled several times
    is paired in order. Samples without a partner are left out.
    """
    partners = dict(zip(_prompt_keys(second), second, strict=True))
    keyed = zip(_prompt_keys(first), first, strict=True)
    return [(sample, partners[key]) for key, sample in keyed if key in partners]


def compare_systems(
    samples_a: Sequence[Sample],
    samples_b: Sequence[Sample],
    name_a: str,
    name_b: str,
    group_languages: Collection[str],
    group: str,
    metric: Metric = "asr",
) -> dict[str, Any]:
    """Compare two systems on the prompts that both answered and the judge scored for both.

    Args:
        samples_a: Samples of the first system.
        samples_b: Samples of the second system.
        name_a: The first system's name.
        name_b: The second system's name.
        group_languages: The languages to compare over.
        group: What to call them, such as "unseen".
        metric: The rate to compare.

    Returns:
        An entry of `comparisons` in `metrics.json`: `a`, `b`, `group`, `metric`, `difference` (a minus b, null without
        pairs), `low`, `high`, `p_value`, `test`, `value_a` and `value_b` (the two rates over the pairs), `n` (pairs),
        `unscored` (pairs left out because one side has no score), `unpaired` (samples without a partner),
        `smallest_detectable` (difference that this many pairs would show with 80 % power; null where none, and for
        grades) and `verdict`, a sentence.
    """
    first, second = (
        [s for s in samples if s.prompt.language in group_languages and counts_for(s, metric)]
        for samples in (samples_a, samples_b)
    )
    pairs = pair_samples(first, second)
    scored = [(a, hit_a, hit_b) for a, b in pairs for hit_a, hit_b in [(is_hit(a, metric), is_hit(b, metric))]]
    both = [(a, hit_a, hit_b) for a, hit_a, hit_b in scored if hit_a is not None and hit_b is not None]
    entry: dict[str, Any] = {"a": name_a, "b": name_b, "group": group, "metric": metric}
    counts = {
        "n": len(both),
        "unscored": len(pairs) - len(both),
        "unpaired": len(first) + len(second) - 2 * len(pairs),
    }
    if not both:
        nothing: dict[str, Any] = dict.fromkeys(("difference", "low", "high", "p_value", "test", "value_a", "value_b"))
        verdict = "no prompt was scored for both systems"
        return entry | nothing | counts | {"smallest_detectable": None, "verdict": verdict}
    result = paired_difference(
        [hit for _, hit, _ in both], [hit for _, _, hit in both], [question(a) for a, _, _ in both]
    )
    return {
        **entry,
        "difference": result.value,
        "low": result.low,
        "high": result.high,
        "p_value": result.p_value,
        "test": result.test,
        "value_a": sum(hit for _, hit, _ in both) / len(both),
        "value_b": sum(hit for _, _, hit in both) / len(both),
        **counts,
        "smallest_detectable": None
        if metric == "strongreject"  # the formula is for shares
        else smallest_detectable_difference(result.effective_n, result.discordant / result.n),
        "verdict": plain_verdict(name_a, name_b, metric, result.value, result.p_value),
    }


def plain_verdict(name_a: str, name_b: str, metric: Metric, difference: float, p_value: float) -> str:
    """What a comparison found, as a sentence; "no evidence of a difference" from a p-value of 0.05 upwards."""
    if p_value >= SIGNIFICANCE or difference == 0:
        return "no evidence of a difference"
    direction = "lower" if difference < 0 else "higher"
    what = METRIC_NAMES[metric] if metric == "strongreject" else f"rate of {METRIC_NAMES[metric]}"
    return f"{name_a} has a {direction} {what} than {name_b}"


def _prompt_keys(samples: Sequence[Sample]) -> list[tuple[str, str, str, str, str, int]]:
    occurrences: Counter[tuple[str, str, str, str, str]] = Counter()
    keys = []
    for sample in samples:
        prompt = sample.prompt
        key = (sample.split, *prompt.question, prompt.language, prompt.text)
        keys.append((*key, occurrences[key]))
        occurrences[key] += 1
    return keys
