"""How far the numbers of a report carry, in plain words: sample sizes, judges, leaks, and what was not tested."""

from lasa.report.run_folder import Run
from lasa.report.values import as_rate, listed, rate_of


def caveats(run: Run) -> list[str]:
    """What a reader has to know before relying on the numbers."""
    found = (_planted, _sample_sizes, _unscored, _judges, _leaks, _settings, _untested)
    return [sentence for caveat in found for sentence in caveat(run)]


def _planted(run: Run) -> list[str]:
    if not run.uses_embedded_model:
        return []
    return [
        "This run uses the embedded model, a tiny model in a made-up world. Its semantic bottleneck is planted at a "
        "known layer. The run checks the method and this software under known conditions; it is no evidence about "
        "large models."
    ]


def _sample_sizes(run: Run) -> list[str]:
    main = run.main_system
    rates = (
        [rate for code in run.languages if (rate := rate_of(run.systems[main], code, "asr")) and rate.n] if main else []
    )
    if not rates:
        return []
    fewest = min(rates, key=lambda rate: rate.n)
    half_width = 98 / fewest.n**0.5
    return [
        f"A language has {fewest.n:,} scored harmful prompts or more. At that number an interval may reach "
        f"{half_width:.0f} percentage points to either side: smaller differences in one language are noise."
    ]


def _unscored(run: Run) -> list[str]:
    missing = {}
    for name, entry in run.systems.items():
        harmful, benign = (as_rate((entry.get("all") or {}).get(metric)) for metric in ("asr", "helpful"))
        missing[name] = sum(rate.unscored for rate in (harmful, benign) if rate is not None)
    if not missing:
        return []
    if not any(missing.values()):
        return ["Every answer was scored."]
    named = listed([f"{count:,} of {name}" for name, count in missing.items() if count])
    return [f"Answers without a score, in no rate: {named}. If they differ from the others, the rates are off by that."]


def _judges(run: Run) -> list[str]:
    if not run.judges:
        return []
    others = run.second_judges
    one = "One judge" if len(run.judges) == 1 else "Judges"
    who = f"{one} scored the answers: {listed(run.judges)}"
    if others:
        who = f"The rates are those of the judge {listed(run.judges)}; {listed(others)} judged the same answers"
    told = [f"{who}. The intervals do not contain a judge's own mistakes."]
    if run.judges == ["refusal-patterns"] and not others:
        told.append(
            "That judge looks for refusal phrases and does not understand an answer: a refusal in other words passes "
            "for compliance, and so does a useless answer. A second judge is needed before anything is decided on this."
        )
    return told


def _leaks(run: Run) -> list[str]:
    leaks = (run.interpreter.get("audit") or {}).get("leaks") or []
    if not leaks:
        return []
    rows = sum(leak["rows"] for leak in leaks)
    return [f"{rows:,} training rows of the interpreter ask what a test asks too: its figures are too good by that."]


def _settings(run: Run) -> list[str]:
    tried = [name for name, entry in run.systems.items() if len(entry.get("sweep") or []) > 1]
    rest = [name for name, entry in run.systems.items() if entry.get("drift") and name not in tried]
    unhelpful = [
        f"No setting of {name} was helpful enough on development prompts; the most helpful one stands here."
        for name, entry in run.systems.items()
        if not (entry.get("sweep_choice") or {"reaches_floor": True})["reaches_floor"]
    ]
    if not tried or not rest:
        return unhelpful
    return [
        *unhelpful,
        f"Several settings were tried for {listed(tried)}, and one for {listed(rest)}: no fair race between them.",
    ]


def _untested(run: Run) -> list[str]:
    if not run.systems:
        return []
    searched = any(name.endswith("/adaptive") for name in run.splits)
    missing = [] if searched else ["attacks that were made with knowledge of this defence"]
    prompts = [sample.prompt for samples in run.samples.values() for sample in samples]
    if not any(sum(m["role"] == "user" for m in prompt.messages) > 1 for prompt in prompts):
        missing.append("conversations of several turns")
    entries = list(run.systems.values())
    if not any(rate_of(entry, "all", "hard_benign_over_refusal") for entry in entries):
        missing.append("harmless prompts that look harmful")
    if not any(rate_of(entry, "unseen", "asr") for entry in entries):
        missing.append("languages that were not used in training")
    return [f"Not tested: {'; '.join(missing)}."] if missing else []


def left_out(run: Run) -> list[str]:
    """What was not measured, and so has no chapter."""
    systems = list(run.systems.values())
    absent = {
        "Semantic bottleneck: the layers have not been searched.": not run.bottleneck,
        "Attack success and outcomes: no system has been evaluated.": not systems,
        "Interpreter: none has been trained and scored.": not run.interpreter,
        "Helpfulness and over-refusal: no benign prompt was scored.": bool(systems)
        and not any(rate_of(entry, "all", metric) for entry in systems for metric in ("helpful", "over_refusal")),
        "Paired comparisons: none was computed.": not run.comparisons,
        "Harder splits: the run has none.": all(split.get("unchanged") for split in run.splits.values()),
        "Attacks: no changed copies of the prompts were asked.": not any(
            split.get("unchanged") for split in run.splits.values()
        ),
        "Examples: the run has no samples.": not any(run.samples.values()),
        "Provenance: provenance.json and recipe.yaml are missing.": not run.provenance and not run.recipe,
    }
    return [sentence for sentence, missing in absent.items() if missing]
