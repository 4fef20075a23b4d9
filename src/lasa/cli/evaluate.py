"""`lasa evaluate`: one system on benchmarks, with judges of your choice."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from lasa.cli.options import SystemChoice, with_model, with_settings
from lasa.evaluation.settings import AnsweringSettings, JudgingSettings
from lasa.models.settings import ModelSettings

if TYPE_CHECKING:
    from lasa.evaluation.answering import Answerer, LocalModel
    from lasa.evaluation.judge_settings import JudgeSettings
    from lasa.guard.system import System
    from lasa.run.recipe import Recipe

Engine = Literal["lasa", "vllm"]


@with_model
@with_settings(SystemChoice, "choice")
@with_settings(AnsweringSettings, "answering")
@with_settings(JudgingSettings, "judging")
def evaluate(
    model: ModelSettings,
    choice: SystemChoice,
    answering: AnsweringSettings,
    judging: JudgingSettings,
    output: Path = typer.Option(
        ..., "--output", "-o", help="Results folder; a stopped evaluation goes on, and more systems may join."
    ),
    benchmark: list[str] = typer.Option(
        [], help="[NAME=]SOURCE: a file, `corpus:path`, `embedded:name` or `hf:owner/name`; repeatable."
    ),
    judge: list[str] = typer.Option(
        [],
        help="embedded-world, refusal-patterns, interpreter:FOLDER@MODEL, llm:MODEL@URL or "
        "classifier:FORMAT:FOLDER_OR_MODEL@URL[?template=FILE]; once or twice.",
    ),
    endpoint: str | None = typer.Option(None, help="OpenAI-compatible URL, of which --model is evaluated."),
    api_key: str | None = typer.Option(None, envvar="LASA_ENDPOINT_KEY", help="Key for --endpoint."),
    name: str | None = typer.Option(None, help="What to call the system in the results."),
    perturb: list[str] = typer.Option(
        [],
        help="Also ask changed copies: typos, casing, zero_width, homoglyphs, romanise, code_switch[=LANGUAGE], "
        "split_turns[=TURNS], leetspeak, base64, reversed_text, caesar, crescendo, word_switch=LANGUAGE, "
        "prefill=TEXT, answer_in=LANGUAGE, adaptive[=BUDGET] (a search against a guarded system's interpreter); "
        "repeatable.",
    ),
    language: list[str] = typer.Option([], help="Ask in this language only; repeatable."),
    limit: int | None = typer.Option(None, min=1, help="Ask this many questions of each benchmark, drawn at random."),
    seen: list[str] = typer.Option([], help="A language that the system was aligned on; repeatable."),
    labels: Path | None = typer.Option(None, help="Labelled sheet of this system: correct attack success by it."),
    seed: int = typer.Option(0, min=0, help="Of --limit and --perturb."),
    as_json: bool = typer.Option(False, "--json", help="Print metrics.json instead of tables."),
    engine: Engine = typer.Option("lasa", help="lasa: in this process; vllm: a vLLM that is started for it."),
    vllm_arguments: list[str] = typer.Argument(None, help="After --: further arguments of `vllm serve`."),
) -> None:
    """Ask benchmarks, judge the answers, and say what share was complied with, refused or misunderstood.

    Several processes: accelerate launch --num_processes N $(which lasa) evaluate ...
    """
    import json
    from contextlib import ExitStack, nullcontext

    from rich.console import Console

    from lasa.data.prompts import Prompt
    from lasa.errors import RecipeError
    from lasa.evaluation.endpoint import check_no_prefill
    from lasa.evaluation.judge_settings import make_judges
    from lasa.evaluation.panel import Panel
    from lasa.evaluation.results import ResultsFolder
    from lasa.evaluation.run import generate_samples, launched_processes
    from lasa.evaluation.slices import choose, is_search, load_benchmarks, search_budget, with_changes, with_searches
    from lasa.languages import canonical_language
    from lasa.launch import leave_launch
    from lasa.models.generation import GenerationSettings
    from lasa.progress import show_progress
    from lasa.quiet import quiet_libraries
    from lasa.report.terminal import evaluation_tables
    from lasa.run.folder import open_run
    from lasa.run.vllm import vllm_system

    if vllm_arguments and engine != "vllm":
        raise RecipeError(f"{vllm_arguments[0]!r} is an argument for vLLM. Give --engine vllm with it.")
    processes = launched_processes()
    if engine == "vllm" and (endpoint or processes.count > 1):
        raise RecipeError(
            "--engine vllm starts a vLLM of its own, in one process: leave out --endpoint and `accelerate launch`, and "
            "give --tensor-parallel-size after -- for several GPUs."
        )
    if endpoint:
        _check_not_local(choice, model)
    if processes.index == 0:
        show_progress()
    quiet_libraries()
    recipe = open_run(choice.run) if choice.run else None
    sources = _sources(benchmark, recipe)
    chosen = choose(load_benchmarks(sources), language, limit, seed)
    searches = [change for change in perturb if is_search(change)]
    for change in searches:
        search_budget(change)
    splits = with_changes(chosen, [change for change in perturb if change not in searches], seed)
    if searches and (endpoint or engine == "vllm"):
        raise RecipeError(f"{searches[0]} searches against the interpreter of a guarded system in this process.")
    if endpoint or engine == "vllm":
        check_no_prefill(prompt for prompts in splits.values() for prompt in prompts)
    settings = _judges(judge, recipe, sources)
    panel = Panel(*make_judges(settings, output / "verdicts"), settings=judging)
    panel.check([(split, prompt) for split, prompts in splits.items() for prompt in prompts])
    generation = GenerationSettings(max_new_tokens=answering.max_new_tokens)
    answerer: Answerer
    folder, own = ResultsFolder(output), dict[str, list[Prompt]]()
    with ExitStack() as opened:
        opened.enter_context(folder.locked() if processes.index == 0 else nullcontext())
        if endpoint:
            answerer, facts = _endpoint(endpoint, model.path, api_key, generation)
            called = name or model.path.replace("/", "-")
        else:
            asked = choice.find(model, processes.device)
            called = name or asked.name
            if searches and not asked.guarded:
                raise RecipeError(f"{searches[0]} searches against an interpreter. Give --interpreter DIR.")
            if engine == "vllm":
                started = vllm_system(
                    asked,
                    max_new_tokens=answering.max_new_tokens,
                    max_rows=answering.batch_size,
                    log=output / "vllm.log",
                    extra=vllm_arguments or [],
                )
                answerer, facts = opened.enter_context(started)
            else:
                local, facts = _local(asked, generation)
                answerer, own = local, with_searches(chosen, searches, local.harm, seed)
        if processes.index == 0:
            folder.register(called, facts, splits, own)
        generate_samples(
            folder.samples_file(called),
            {**splits, **own},
            panel,
            answerer,
            batch_size=answering.batch_size,
            batch_tokens=answering.batch_tokens,
            name=called,
            processes=processes,
        )
        leave_launch()
        aligned_on = [canonical_language(code) for code in seen] or (recipe.seen_languages if recipe else [])
        metrics = folder.write_metrics(list(splits), aligned_on, panel, {called: labels} if labels else {})
    if as_json:
        print(json.dumps(metrics, ensure_ascii=False))
        return
    console = Console()
    for table in evaluation_tables(metrics):
        console.print(table)
    console.print(f"Written to {output}: metrics.json, samples/{called}.jsonl.", soft_wrap=True, highlight=False)


def _check_not_local(choice: SystemChoice, model: ModelSettings) -> None:
    """An endpoint answers as it is served; nothing that is asked of a local system may seem to hold of it."""
    from lasa.errors import RecipeError

    asked = {"interpreter": choice.interpreter, "system": choice.system, "force": choice.force or None, **model.loading}
    for name in (name for name, value in asked.items() if value is not None):
        raise RecipeError(
            f"--{name.replace('_', '-')} has no effect on a model behind --endpoint, which answers as it is served "
            "there (a guarded one by `lasa serve`). Leave out one of the two."
        )


def _sources(benchmarks: list[str], recipe: "Recipe | None") -> list[str]:
    from lasa.errors import RecipeError

    if benchmarks:
        return benchmarks
    if recipe is None:
        raise RecipeError("Choose what to ask: --benchmark multijail:MultiJail.csv, or embedded:combinations, say.")
    return [f"{name}={source}" for name, source in recipe.evaluation.benchmarks.items()]


def _judges(texts: list[str], recipe: "Recipe | None", sources: list[str]) -> "list[JudgeSettings]":
    """The judges asked for, else the recipe's, else the exact one where only the embedded world is asked."""
    from lasa.evaluation.judge_settings import judge_from_text

    if texts:
        return [judge_from_text(text) for text in texts]
    if recipe is not None:
        return recipe.evaluation.judges
    only_embedded = all(source.rpartition("=")[2].startswith("embedded:") for source in sources)
    return [judge_from_text("embedded-world")] if only_embedded else []


def _local(system: "System", generation: Any) -> "tuple[LocalModel, dict[str, Any]]":
    """A local system, and what decides its answers."""
    from dataclasses import asdict

    from lasa.evaluation.answering import LocalModel
    from lasa.files.artifacts import fingerprint, model_fingerprint

    network, tokenizer, guard = system.load()
    facts = {"system": system.name, "model": model_fingerprint(network), "max_new_tokens": generation.max_new_tokens}
    if guard is not None:
        probe = fingerprint([asdict(guard.interpreter.config), model_fingerprint(guard.interpreter)])
        facts |= {"interpreter": probe, "policy": asdict(guard.policy)}
    return LocalModel(network, tokenizer, guard, generation), facts


def _endpoint(url: str, model: str, api_key: str | None, generation: Any) -> "tuple[Answerer, dict[str, Any]]":
    """A model behind an endpoint, and what decides its answers."""
    from lasa.evaluation.endpoint import ChatClient, EndpointModel

    options = {"temperature": 0, "max_tokens": generation.max_new_tokens}
    client = ChatClient(url, model, api_key=api_key, timeout_s=600, options=options)
    return EndpointModel(client), {"endpoint": url, "model": model, "max_new_tokens": generation.max_new_tokens}
