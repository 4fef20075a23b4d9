"""`lasa serve`: the guard behind an OpenAI-compatible endpoint."""

from pathlib import Path
from typing import Literal

import typer

Action = Literal["condition", "refuse", "log", "off"]
Engine = Literal["lasa", "vllm"]
LASA_ONLY = ("max_queue", "timeout", "max_body", "log_prompts")
"""Options that vLLM's server does not have."""


def serve(
    context: typer.Context,
    run: Path | None = typer.Option(None, help="Run folder whose aligned system and interpreter are served."),
    system: str = typer.Option("lasa", help="System of that run."),
    model: str = typer.Option("embedded", help="Model folder, with --interpreter."),
    interpreter: Path | None = typer.Option(None, help="Interpreter folder, with --model."),
    force: bool = typer.Option(False, "--force", help="Serve a model that the interpreter was not trained on."),
    host: str = typer.Option("127.0.0.1", help="Address to bind; the default is reached from this machine only."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port."),
    name: str = typer.Option("", help="Name of the model for clients; the folder's name by default."),
    api_key: str | None = typer.Option(None, envvar="LASA_API_KEY", help="Key that clients must give."),
    harmful: Action = typer.Option("condition", help="Action for harmful conversations."),
    controversial: Action = typer.Option("condition", help="Action for the controversial band."),
    reread_every: int = typer.Option(0, min=0, help="Read answers again after every so many tokens; 0: never."),
    max_rows: int = typer.Option(64, min=1, help="Answers written at the same time."),
    max_queue: int = typer.Option(256, min=0, help="Answers that may wait; more are turned away with 429."),
    max_new_tokens: int = typer.Option(1024, min=1, help="Longest answer a request may ask for, and the default."),
    temperature: float = typer.Option(0.0, min=0.0, help="Temperature where the request does not say."),
    timeout: float = typer.Option(300.0, min=1.0, help="Seconds after which a request is given up."),
    max_body: int = typer.Option(1_000_000, min=1000, help="Bytes of the largest request."),
    log_prompts: bool = typer.Option(False, "--log-prompts", help="Log conversations and answers, not only decisions."),
    engine: Engine = typer.Option("lasa", help="lasa: this machine's model; vllm: vLLM with the plugin lasa-vllm."),
    vllm_arguments: list[str] = typer.Argument(None, help="After --: further arguments of `vllm serve`."),
) -> None:
    """Serve a guarded model: /v1/chat/completions, /v1/moderations, and a page to try it at /."""
    import logging

    from lasa.conditioning import Policy
    from lasa.errors import GuardError
    from lasa.serving.loading import find_parts, load_guard

    if host not in ("127.0.0.1", "localhost", "::1") and not api_key:
        typer.echo(f"Warning: {host} may be reached from other machines, and no API key is set.", err=True)
    policy = Policy(harmful, controversial, reread_every=reread_every)
    served = name or (f"{run.resolve().name}-{system}" if run else Path(model).name)
    if engine == "vllm":
        from lasa.serving.vllm import serve_with_vllm

        for option in LASA_ONLY:
            source = context.get_parameter_source(option)
            if source is not None and source.name == "COMMANDLINE":
                raise GuardError(
                    f"--{option.replace('_', '-')} has no effect in vLLM. Leave it out (vLLM's own options can be "
                    "given after --), or use --engine lasa."
                )
        serve_with_vllm(
            find_parts(run=run, system=system, model=model, interpreter=interpreter),
            policy,
            api_key=api_key,
            extra=vllm_arguments or [],
            name=served,
            host=host,
            port=port,
            max_rows=max_rows,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            force=force,
        )
    if vllm_arguments:
        raise GuardError(f"{vllm_arguments[0]!r} is an argument for vLLM. Give --engine vllm with it.")

    import uvicorn

    from lasa.quiet import quiet_libraries
    from lasa.serving.app import ServerSettings, create_app

    quiet_libraries()
    guard = load_guard(run=run, system=system, model=model, interpreter=interpreter, policy=policy, force=force)
    settings = ServerSettings(
        model_name=served,
        max_rows=max_rows,
        max_queue=max_queue,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        max_body=max_body,
        timeout=timeout,
        api_key=api_key,
        log_prompts=log_prompts,
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
