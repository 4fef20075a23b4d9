"""`lasa evaluate`: one system on benchmarks, with judges of your choice."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from lasa.evaluation.answering import Answerer
    from lasa.evaluation.judge_settings import JudgeSettings
    from lasa.recipe import Recipe

Engine = Literal["lasa", "vllm"]


def evaluate(
    output: Path = typer.Option(
        ..., "--output", "-o", help="Results folder; a stopped evaluation goes on, and more systems may join."
    ),
    benchmark: list[str] = typer.Option(
        [], help="[NAME=]SOURCE: a file, `corpus:path`, `embedded:name` or `hf:owner/name`; repeatable."
    ),
    judge: list[str] = typer.Option(
        [],
        help="embedded-world, refusal-patterns, llm:MODEL@URL or classifier:FORMAT:FOLDER[?template=FILE]; "
        "once or twice.",
    ),
    model: str = typer.Option("embedded", help="Local Hugging Face model folder, or `embedded`."),
    interpreter: Path | None = typer.Option(None, help="Interpreter folder: guard --model with it."),
    run: Path | None = typer.Option(None, help="Run folder whose system is evaluated instead of --model."),
    system: str | None = typer.Option(None, help="System of that run; the last one by default."),
    endpoint: str | None = typer.Option(None, help="OpenAI-compatible URL, of which --model is evaluated."),
    api_key: str | None = typer.Option(None, envvar="LASA_ENDPOINT_KEY", help="Key for --endpoint."),
    name: str | None = typer.Option(None, help="What to call the system in the results."),
    perturb: list[str] = typer.Option(
        [],
        help="Also ask changed copies: typos, casing, zero_width, homoglyphs, romanise, code_switch[=LANGUAGE], "
        "split_turns[=TURNS], prefill=TEXT, answer_in=LANGUAGE; repeatable.",
    ),
    language: list[str] = typer.Option([], help="Ask in this language only; repeatable."),
    limit: int | None = typer.Option(None, min=1, help="Ask this many questions of each benchmark, drawn at random."),
    seen: list[str] = typer.Option([], help="A language that the system was aligned on; repeatable."),
    labels: Path | None = typer.Option(None, help="Labelled sheet of this system: correct attack success by it."),
    max_new_tokens: int = typer.Option(256, min=1, help="Length limit of an answer."),
    batch_size: int = typer.Option(64, min=1, help="Prompts answered together, at most."),
    batch_tokens: int = typer.Option(65_536, min=1, help="Tokens of prompts and answers in a batch, at most."),
    seed: int = typer.Option(0, min=0, help="Of --limit and --perturb."),
    dtype: str = typer.Option("auto", help="auto, float32, bfloat16 or float16."),
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

    from lasa.errors import RecipeError
    from lasa.evaluation.judge_settings import make_judges
    from lasa.evaluation.panel import Panel
    from lasa.evaluation.results import ResultsFolder
    from lasa.evaluation.run import generate_samples, launched_processes
    from lasa.evaluation.slices import choose, load_benchmarks, with_changes
    from lasa.evaluation.vllm import vllm_system
    from lasa.generation import GenerationSettings
    from lasa.languages import canonical_language
    from lasa.progress import show_progress
    from lasa.quiet import quiet_libraries
    from lasa.run_folder import open_run

    if vllm_arguments and engine != "vllm":
        raise RecipeError(f"{vllm_arguments[0]!r} is an argument for vLLM. Give --engine vllm with it.")
    processes = launched_processes()
    if engine == "vllm" and (endpoint or processes.count > 1):
        raise RecipeError(
            "--engine vllm starts a vLLM of its own, in one process: leave out --endpoint and `accelerate launch`, and "
            "give --tensor-parallel-size after -- for several GPUs."
        )
    if processes.index == 0:
        show_progress()
    quiet_libraries()
    recipe = open_run(run) if run else None
    system = system or (list(recipe.systems)[-1] if recipe else None)
    sources = _sources(benchmark, recipe)
    splits = with_changes(choose(load_benchmarks(sources), language, limit, seed), perturb, seed)
    settings = _judges(judge, recipe, sources)
    panel = Panel(*make_judges(settings, output / "verdicts"))
    panel.check([(split, prompt) for split, prompts in splits.items() for prompt in prompts])
    generation = GenerationSettings(max_new_tokens=max_new_tokens)
    answerer: Answerer
    folder = ResultsFolder(output)
    with ExitStack() as opened:
        opened.enter_context(folder.locked() if processes.index == 0 else nullcontext())
        if endpoint:
            answerer, facts = _endpoint(endpoint, model, api_key, generation)
            called = name or model.replace("/", "-")
        elif engine == "vllm":
            started = vllm_system(
                run=run,
                system=system,
                model=model,
                interpreter=interpreter,
                dtype=dtype,
                max_new_tokens=max_new_tokens,
                max_rows=batch_size,
                log=output / "vllm.log",
                extra=vllm_arguments or [],
            )
            answerer, facts = opened.enter_context(started)
            called = name or facts["system"]
        else:
            answerer, facts = _local(model, interpreter, run, system, dtype, processes.device, generation)
            called = name or facts["system"]
        if processes.index == 0:
            folder.register(called, facts, splits)
        generate_samples(
            folder.samples_file(called),
            splits,
            panel,
            answerer,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            name=called,
            processes=processes,
        )
        if processes.index > 0:
            return
        aligned_on = [canonical_language(code) for code in seen] or (recipe.seen_languages if recipe else [])
        metrics = folder.write_metrics(list(splits), aligned_on, panel, {called: labels} if labels else {})
    if as_json:
        print(json.dumps(metrics, ensure_ascii=False))
        return
    console = Console()
    for table in evaluation_tables(metrics):
        console.print(table)
    console.print(f"Written to {output}: metrics.json, samples/{called}.jsonl.", soft_wrap=True, highlight=False)


def evaluation_tables(metrics: dict[str, Any]) -> "list[Table]":
    """Every system on every split: what was complied with, and beside it what was misunderstood; then by language."""
    from rich import box
    from rich.table import Table

    from lasa.cli.tables import interval, percent, whole_percent
    from lasa.languages import sort_languages

    whole = Table(
        title="Percent, with 95 % intervals by question",
        caption="ASR: attack success; other: irrelevant + in a wrong language, which is no safety; n/a: unscored",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        show_edge=False,
    )
    for column in ("system", "asked"):
        whole.add_column(column, overflow="fold")
    for column in ("ASR", "other", "helpful", "over-ref.", "right", "n/a"):
        whole.add_column(column, justify="right", no_wrap=True)
    splits = {metrics["headline"]: metrics, **metrics["splits"]}
    for split, entry in splits.items():
        for system, groups in entry["systems"].items():
            found = groups["all"]
            scored = max(1, sum(found["outcomes"].values()))
            other = "+".join(
                f"{100 * found['outcomes'][name] / scored:.0f}" for name in ("irrelevant", "wrong_language")
            )
            unscored = sum(found[name]["unscored"] for name in ("asr", "over_refusal"))
            whole.add_row(
                system,
                split,
                interval(found["asr"]),
                other if found["asr"]["n"] else "-",
                percent(found["helpful"]),
                percent(found["over_refusal"]),
                percent(found.get("accuracy")),
                str(unscored),
            )
    codes = sort_languages({code for entry in metrics["systems"].values() for code in entry["languages"]})
    rate = "asr" if any(entry["all"]["asr"]["n"] for entry in metrics["systems"].values()) else "accuracy"
    title = {"asr": "Attack success", "accuracy": "Right answers"}[rate]
    by_language = Table(
        title=f"{title} on {metrics['headline']}, in percent",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        show_edge=False,
    )
    by_language.add_column("system", no_wrap=True)
    for code in codes:
        by_language.add_column(code, justify="right")
    for system, entry in metrics["systems"].items():
        by_language.add_row(system, *(whole_percent(entry["languages"].get(code, {}).get(rate)) for code in codes))
    return [whole, by_language]


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


def _local(
    model: str,
    interpreter: Path | None,
    run: Path | None,
    system: str | None,
    dtype: str,
    device: str,
    generation: Any,
) -> "tuple[Answerer, dict[str, Any]]":
    """A local system, and what decides its answers."""
    from dataclasses import asdict

    from lasa.artifacts import fingerprint, model_fingerprint
    from lasa.evaluation.answering import LocalModel
    from lasa.evaluation.systems import open_system

    network, tokenizer, guard = open_system(
        run=run, system=system, model=model, interpreter=interpreter, dtype=dtype, device=device
    )
    called = system if run and system else Path(model).name + ("-guarded" if guard else "")
    facts = {"system": called, "model": model_fingerprint(network), "max_new_tokens": generation.max_new_tokens}
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
