"""What the stages of a run read: the tables behind the recipe's sources, and the sources that a stage depends on."""

from lasa.alignment.settings import OWN, SystemSettings
from lasa.data.corpora.audit import check_no_leaks
from lasa.data.prompts import Prompt
from lasa.data.sources import load_each, load_prompts
from lasa.errors import DataError
from lasa.interpreter.tables import InterpreterTables, load_tables
from lasa.run.recipe import Recipe


def development_prompts(recipe: Recipe) -> list[Prompt]:
    """The prompts on which sweeps are decided, and helpfulness and perplexity are watched; none without a source.

    Raises:
        DataError: One of them is asked in a benchmark, or none is benign.
    """
    prompts = load_each(recipe.alignment.development)
    if prompts and all(prompt.harmful is not False for prompt in prompts):
        raise DataError("alignment.development holds no benign prompt to measure helpfulness on. Add some.")
    check_no_leaks(prompts, [p for source in recipe.evaluation.benchmarks.values() for p in load_prompts(source)])
    return prompts


def interpreter_sources(recipe: Recipe) -> list[str]:
    """The sources that stage 2 reads."""
    section = recipe.interpreter
    return [
        *section.train,
        *section.development,
        *section.calibration,
        *section.parallel,
        *(source for source in section.answers if source != OWN),
        *recipe.evaluation.benchmarks.values(),
    ]


def alignment_sources(recipe: Recipe, system: SystemSettings) -> list[str]:
    """The sources that training a system reads."""
    section = recipe.alignment
    source = system.preferences or section.preferences
    learned = [*(section.harmless if system.trusts else []), *([source] if source != OWN else [])]
    return [*learned, *refusals_file(recipe), *section.development, *recipe.layer_search.prompts]


def refusals_file(recipe: Recipe) -> list[str]:
    """The file of the user's own refusals, if there is one."""
    return [recipe.alignment.refusals] if recipe.alignment.refusals else []


def interpreter_tables(recipe: Recipe) -> InterpreterTables:
    """The labelled prompts of stage 2; see `load_tables`."""
    return load_tables(recipe.interpreter, recipe.seen_languages, recipe.evaluation.benchmarks, recipe.seed)
