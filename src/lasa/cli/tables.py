"""Tables that a person reads in a terminal."""

from typing import Any

from rich.table import Table

from lasa.languages import sort_languages


def systems_table(metrics: dict[str, Any]) -> Table:
    """Attack success of every system by language, with seen languages marked, and helpfulness beside it."""
    seen = set(metrics.get("seen_languages", ()))
    systems = metrics["systems"]
    codes = sort_languages({code for system in systems.values() for code in system["languages"]})
    table = Table(title="Attack success (lower is better); * safety-tuned language", title_justify="left")
    table.add_column("system")
    for code in codes:
        table.add_column(code + ("*" if code in seen else ""), justify="right")
    for name in ("seen", "unseen", "helpful", "over-refusal"):
        table.add_column(name, justify="right")
    for name, system in systems.items():
        table.add_row(
            name,
            *(percent(system["languages"].get(code, {}).get("asr")) for code in codes),
            interval(system["seen"]["asr"]),
            interval(system["unseen"]["asr"]),
            percent(system["all"]["helpful"]),
            percent(system["all"]["over_refusal"]),
        )
    return table


def layers_table(found: dict[str, Any]) -> Table:
    """The layer search, a row per layer."""
    table = Table(title="S_sem - S_lang by layer", title_justify="left")
    for name in ("layer", "S_sem", "S_lang", "difference", "95 % interval", "argmax", "xsim", "language id", "U-score"):
        table.add_column(name, justify="right")
    for view in found["layers"]:
        mark = " <" if view["layer"] == found["layer"] else ""
        low_high = view["difference_interval"]
        table.add_row(
            f"{view['layer']}{mark}",
            *(number(view[name]) for name in ("semantic", "language", "difference")),
            f"{low_high[0]:.3f} .. {low_high[1]:.3f}" if low_high else "undefined",
            f"{view['argmax_probability']:.0%}" if view["argmax_probability"] else "",
            *(number(view[name]) for name in ("xsim", "language_id_accuracy", "u_score")),
        )
    return table


def number(value: float | None) -> str:
    """A number in three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def percent(rate: dict[str, Any] | None) -> str:
    """A rate in percent, or a dash."""
    return "-" if not rate or rate["value"] is None else f"{100 * rate['value']:.1f}"


def interval(rate: dict[str, Any] | None) -> str:
    """A rate in percent with its interval, or a dash."""
    if not rate or rate["value"] is None:
        return "-"
    return f"{100 * rate['value']:.1f} ({100 * rate['low']:.1f}-{100 * rate['high']:.1f})"
