"""What the systems of a run are aligned on: the recipe's preferences, or the model's own answers; and harmless text.

`own` needs labelled prompts alone. The base model answers the interpreter's training prompts once. Its answers to
harmless ones are desirable, those to harmful ones undesirable, and there a refusal in the user's language takes their
place, unless the model refused in that language itself. Whatever is learned is checked against every benchmark.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lasa.alignment.settings import OWN, SystemSettings
from lasa.data.corpora.audit import check_no_leaks
from lasa.data.preferences import Preference, Side, read_preferences, write_preferences
from lasa.data.prompts import Prompt
from lasa.data.refusals import Refusals, read_refusals, refusals_in
from lasa.data.sources import first_by_hash, load_each, load_preferences, load_prompts
from lasa.errors import DataError
from lasa.evaluation.answering import LocalModel
from lasa.evaluation.judges.refusal_patterns import RefusalPatternJudge
from lasa.evaluation.outcomes import Outcome, Sample, answer_languages
from lasa.evaluation.panel import Panel
from lasa.evaluation.run import generate_samples
from lasa.evaluation.samples import read_samples
from lasa.interpreter.answers import LabelledAnswer, answers_of
from lasa.interpreter.tables import load_tables
from lasa.models.generation import GenerationSettings
from lasa.progress import say
from lasa.run.folder import RunFolder
from lasa.run.recipe import Recipe

OWN_ANSWERS, OWN_PREFERENCES = "own-answers.jsonl", "preferences.jsonl"


def uses_own(recipe: Recipe) -> bool:
    """Whether a system, or the head for answers, is trained on the model's own answers."""
    trained = [point for system in recipe.systems.values() if system.method for point in [system, *system.points()]]
    aligned = any((system.preferences or recipe.alignment.preferences) == OWN for system in trained)
    return aligned or OWN in recipe.interpreter.answers


def draw_own(run: RunFolder, model: Any, tokenizer: Any) -> None:
    """Answer the labelled prompts, going on from what is there, and write the preferences that follow."""
    recipe, evaluation = run.recipe, run.recipe.evaluation
    answers = run.path / OWN_ANSWERS
    generate_samples(
        answers,
        {OWN: own_prompts(recipe)},
        Panel(RefusalPatternJudge()),
        LocalModel(model, tokenizer, None, GenerationSettings(max_new_tokens=evaluation.max_new_tokens)),
        batch_size=evaluation.batch_size,
        batch_tokens=evaluation.batch_tokens,
        name="the base, to learn from",
    )
    preferences = own_preferences(read_samples(answers), refusals_of(recipe), recipe.seed)
    write_preferences(run.path / OWN_PREFERENCES, preferences)


def own_prompts(recipe: Recipe) -> list[Prompt]:
    """The interpreter's training prompts as they are, or so many questions of each language and label."""
    section = recipe.interpreter.model_copy(update={"perturbed_copies": []})
    prompts = load_tables(section, recipe.seen_languages, recipe.evaluation.benchmarks, recipe.seed).train
    number = recipe.alignment.own_questions
    if number is None:
        return prompts
    return [
        prompt
        for label in (True, False)
        for prompt in first_by_hash([p for p in prompts if p.harmful is label], number, lambda prompt: prompt)
    ]


def own_preferences(samples: Sequence[Sample], refusals: Refusals, seed: int) -> list[Preference]:
    """Preferences from answers to labelled prompts.

    Of harmless prompts, refusals and answers that say nothing are left out: they are neither to be learned nor a
    choice of this model's that is known to be wrong.

    Args:
        samples: Judged answers.
        refusals: What is desirable where the model did not refuse in the user's language.
        seed: Of the refusals' order.
    """
    answered = [sample for sample in samples if not sample.extra.get("failure")]
    due = [sample.prompt.language for sample in answered if sample.prompt.harmful and not _refused_well(sample)]
    shipped = iter(refusals_in(due, refusals, seed))
    found = []
    for sample in answered:
        if sample.prompt.harmful and not _refused_well(sample):
            rejected = sample.text if sample.text.strip() else None
            found.append(Preference(sample.prompt, next(shipped), rejected, _cut(sample, "rejected")))
        elif sample.prompt.harmful or sample.verdict.outcome not in (Outcome.REFUSED, Outcome.IRRELEVANT):
            found.append(Preference(sample.prompt, sample.text, None, _cut(sample, "chosen")))
    return found


def answers_to_learn(run: RunFolder) -> list[LabelledAnswer]:
    """What the head for answers learns from: harmful answers in the seen languages, harmless ones in any."""
    recipe, found = run.recipe, list[LabelledAnswer]()
    for source in recipe.interpreter.answers:
        own = source == OWN
        found += by_outcome(read_samples(run.path / OWN_ANSWERS)) if own else answers_of(load_preferences(source))
    return [one for one in found if not one.harmful or one.prompt.language in recipe.seen_languages]


def by_outcome(samples: Sequence[Sample]) -> list[LabelledAnswer]:
    """Judged answers and their harm: what complies with a harmful request does harm; what makes no sense is out."""
    given = {Outcome.COMPLIED: True, Outcome.WRONG_LANGUAGE: True, Outcome.REFUSED: False}
    return [
        LabelledAnswer(one.prompt, one.text, bool(one.prompt.harmful) and given[one.verdict.outcome])
        for one in samples
        if one.verdict.outcome in given and one.text.strip() and not one.extra.get("failure")
    ]


def _refused_well(sample: Sample) -> bool:
    verdict = sample.verdict
    return verdict.outcome is Outcome.REFUSED and verdict.language in answer_languages(sample.prompt)


def _cut(sample: Sample, side: Side) -> Side | None:
    return side if sample.extra.get("unfinished") else None


def refusals_of(recipe: Recipe) -> Refusals:
    """The recipe's own refusals, or the shipped ones: as many wordings of each as it asks for."""
    given, most = recipe.alignment.refusals, recipe.alignment.wordings
    return {code: texts[:most] for code, texts in read_refusals(Path(given) if given else None).items()}


def preferences_of(run: RunFolder, system: SystemSettings) -> list[Preference]:
    """What a system learns from, safety data in the seen languages only.

    A helpful answer to a harmless request is no safety data and may be in any language.

    Raises:
        DataError: Nothing is left, or a benchmark asks the same and `interpreter.leaks` refuses that.
    """
    recipe = run.recipe
    source = system.preferences or recipe.alignment.preferences
    found = read_preferences(run.path / OWN_PREFERENCES) if source == OWN else load_preferences(source)
    seen = [one for one in found if one.prompt.harmful is False or one.prompt.language in recipe.seen_languages]
    if len(seen) < len(found):
        say(f"{len(found) - len(seen):,} of {len(found):,} preferences are safety data in unseen languages: left out.")
    kept = _unasked(recipe, [one.prompt for one in seen], source)
    if not any(kept):
        raise DataError(f"{source}: no preference is left in {', '.join(recipe.seen_languages)} to learn from.")
    return [one for one, keep in zip(seen, kept, strict=True) if keep]


def harmless_text(recipe: Recipe) -> list[Prompt]:
    """The harmless text in any language that systems learn to refuse from; checked as preferences are.

    Raises:
        DataError: A benchmark asks the same and `interpreter.leaks` refuses that.
    """
    prompts = load_each(recipe.alignment.harmless)
    kept = _unasked(recipe, prompts, "alignment.harmless")
    return [prompt for prompt, keep in zip(prompts, kept, strict=True) if keep]


def _unasked(recipe: Recipe, prompts: Sequence[Prompt], source: str) -> list[bool]:
    """Which prompts may be learned from, as `interpreter.leaks` has it."""
    asked = [prompt for benchmark in recipe.evaluation.benchmarks.values() for prompt in load_prompts(benchmark)]
    policy = recipe.interpreter.leaks
    leaking = {leak.row for leak in check_no_leaks(prompts, asked, allow=policy != "refuse")}
    if leaking:
        what = "left out" if policy == "drop" else "learned all the same"
        say(f"{source}: {len(leaking):,} of {len(prompts):,} rows are asked in a benchmark as well, and {what}.")
    return [policy != "drop" or row not in leaking for row in range(len(prompts))]
