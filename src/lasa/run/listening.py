"""What the interpreter's head for answers stops of what the base model wrote in the evaluation, without any guard.

Held-out requests in every language, and the model's own words: by the judge, what complied with a harmful request does
harm. Beside it stands what the prompt's score alone would have caught before a word was written.
"""

from lasa.evaluation.samples import read_samples
from lasa.files.artifacts import write_json
from lasa.guard.guard import Guard
from lasa.interpreter.answers import evaluate_answers, read_answers
from lasa.interpreter.probe import SafetySemanticInterpreter
from lasa.models.loading import load_model
from lasa.progress import say
from lasa.run.folder import RunFolder
from lasa.run.preferences import by_outcome
from lasa.run.recipe import Recipe

LISTENING, LISTENED = "listen", "answers.json"


def bare_system(recipe: Recipe) -> str | None:
    """The system that is the base model as it is, without a guard; None if the recipe has none."""
    return next((name for name, one in recipe.systems.items() if not one.method and not one.guarded), None)


def measure_listening(run: RunFolder, interpreter: SafetySemanticInterpreter, system: str) -> None:
    """Read the answers of a bare system to the headline's prompts, and write what the head makes of them."""
    recipe = run.recipe
    headline = next(iter(recipe.evaluation.benchmarks))
    samples = [one for one in read_samples(run.path / "samples" / f"{system}.jsonl") if one.split == headline]
    answers = by_outcome(samples)
    if not answers:
        say(f"No answer of {system} makes sense to the judge: the head for answers is not measured.")
        write_json(run.path / LISTENED, {})
        return
    model, tokenizer = load_model(recipe.model)
    data = read_answers(model, tokenizer, answers, interpreter.config.read_point.layer)
    asked, languages = zip(*((one.prompt.messages, one.prompt.language) for one in answers), strict=True)
    flagged = [decision.flagged for decision in Guard(model, tokenizer, interpreter).decide(asked, languages)]
    write_json(run.path / LISTENED, evaluate_answers(interpreter, data, recipe.seen_languages, flagged))
