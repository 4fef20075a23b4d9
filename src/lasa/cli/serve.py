"""`lasa serve`: the guard behind an OpenAI-compatible endpoint."""

from pathlib import Path
from typing import Literal, cast, get_args

import typer

from lasa.cli.options import SystemChoice, with_model, with_settings
from lasa.models.settings import ModelSettings
from lasa.serving.settings import ServerSettings

Action = Literal["condition", "refuse", "help", "log", "off"]
Uncovered = Literal["as_scored", "refuse", "log", "answer"]
Engine = Literal["lasa", "vllm"]
LASA_ONLY = ("max_tokens", "max_queue", "timeout", "max_body", "log_prompts", "max_in_flight", "max_per_minute")
"""Options that vLLM's server does not have."""

KEEP_ALIVE = 75
"""Seconds for which an idle connection is kept: longer than clients keep theirs (httpx, and so the openai client, 5).
A request that is sent in the moment of closing would find the server gone."""


def _by_category(given: list[str]) -> dict[str, Action]:
    """`NAME=ACTION` pairs as a mapping."""
    from lasa.errors import RecipeError

    pairs = [one.partition("=") for one in given]
    for name, _, action in pairs:
        if not name or action not in get_args(Action):
            raise RecipeError(f"--category takes NAME=ACTION with an action out of {', '.join(get_args(Action))}.")
    return {name: cast(Action, action) for name, _, action in pairs}


@with_model
@with_settings(SystemChoice, "choice", defaults={"system": "lasa"})
@with_settings(
    ServerSettings,
    "server",
    called={"model_name": "name"},
    without=("shutdown_timeout", "api_key"),
    defaults={"model_name": ""},
)
def serve(
    context: typer.Context,
    model: ModelSettings,
    choice: SystemChoice,
    server: ServerSettings,
    host: str = typer.Option("127.0.0.1", help="Address to bind; the default is reached from this machine only."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port."),
    api_key: str | None = typer.Option(
        None, envvar="LASA_API_KEY", help="Key that clients must give; several are separated by commas."
    ),
    harmful: Action = typer.Option("condition", help="Action for harmful conversations."),
    controversial: Action = typer.Option("condition", help="Action for the controversial band."),
    category: list[str] = typer.Option(
        [], help="Action for a kind of harm instead of --harmful, as self_harm=help; may be given several times."
    ),
    uncovered: Uncovered = typer.Option("as_scored", help="Action in languages that are certified not to be covered."),
    reread_every: int = typer.Option(0, min=0, help="Read answers again after every so many tokens; 0: never."),
    engine: Engine = typer.Option("lasa", help="lasa: this machine's model; vllm: vLLM with the plugin lasa-vllm."),
    vllm_arguments: list[str] = typer.Argument(None, help="After --: further arguments of `vllm serve`."),
) -> None:
    """Serve a guarded model: /v1/chat/completions, /v1/moderations, and a page to try it at /."""
    import logging

    from lasa.conditioning.decision import Policy
    from lasa.errors import GuardError

    if host not in ("127.0.0.1", "localhost", "::1") and not api_key:
        typer.echo(f"Warning: {host} may be reached from other machines, and no API key is set.", err=True)
    policy = Policy(
        harmful, controversial, reread_every=reread_every, uncovered=uncovered, categories=_by_category(category)
    )
    served = server.model_name or (
        f"{choice.run.resolve().name}-{choice.system}" if choice.run else Path(model.path).name
    )
    settings = server.model_copy(update={"model_name": served, "api_key": api_key})
    found = choice.find(model)
    if engine == "vllm":
        from lasa.serving.vllm import serve_with_vllm

        for option in LASA_ONLY:
            source = context.get_parameter_source(option)
            if source is not None and source.name == "COMMANDLINE":
                raise GuardError(
                    f"--{option.replace('_', '-')} has no effect in vLLM. Leave it out (vLLM's own options can be "
                    "given after --), or use --engine lasa."
                )
        if len(settings.keys) > 1:
            raise GuardError("vLLM's server knows one API key. Give one, or use --engine lasa.")
        serve_with_vllm(
            found,
            policy,
            api_key=api_key,
            extra=vllm_arguments or [],
            name=served,
            host=host,
            port=port,
            max_rows=server.max_rows,
            max_new_tokens=server.max_new_tokens,
            temperature=server.temperature,
        )
    if vllm_arguments:
        raise GuardError(f"{vllm_arguments[0]!r} is an argument for vLLM. Give --engine vllm with it.")

    import uvicorn

    from lasa.quiet import quiet_libraries
    from lasa.serving.app import create_app

    quiet_libraries()
    guard = found.guard(policy)
    graded = guard.interpreter.config.coverage
    open_languages = [code for code, grade in graded.items() if grade == "not covered"]
    if open_languages:
        typer.echo(
            f"Warning: the guard is certified not to hold in {', '.join(open_languages)} ({uncovered}).", err=True
        )
    app = create_app(guard, settings)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("lasa.serving").setLevel(logging.INFO)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.shutdown_timeout),
    )
    try:
        socket = config.bind_socket()
    except SystemExit as error:  # uvicorn has logged the reason
        raise GuardError(f"The server cannot listen at {host}:{port}. Is the port in use?") from error
    socket.listen(config.backlog)  # who reads the address below can connect at once
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{socket.getsockname()[1]}/"
    typer.echo(f"Serving {served} at {address} (stop with Ctrl-C; running answers are finished first)")
    try:
        uvicorn.Server(config).run([socket])
    except KeyboardInterrupt:  # handed on by uvicorn once it has finished what ran
        typer.echo("Stopped.")
