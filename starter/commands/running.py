"""Commands that run something: the demo, the platform, a worker."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from schema.pace import Pace
from starter.command import AsJson, CommandError, answer, emit, err, out, run
from starter.faults import Fault
from starter.terminal import Terminal

app = typer.Typer()

CHECK_REPLAY = typer.Option(help="First replay what runs, and do not start where this code cannot go on with it.")
PACES = {
    Pace.TRIAL: "trial - windows and baselines of seconds and minutes, to see a cycle soon; not for production",
    Pace.PRODUCTION: "production - windows of hours, a baseline of a week; --pace trial shows a cycle soon",
}


@app.command(epilog="Example: nautilus demo --fault retries")
def demo(
    as_json: AsJson = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
    fault: Annotated[
        Fault, typer.Option(help="What goes wrong: answers too slow for the limit, or one of the second act.")
    ] = Fault.LIMIT,
) -> None:
    """Run the whole story on this machine: a falling success rate, a fix that agents find, a promotion."""
    import asyncio

    from starter import demo as story  # slow to import; no other command should wait for it

    async def wait(stack: Any) -> None:
        _print_exports(stack.environment)
        err.print("still running; Ctrl-C ends it")
        await asyncio.Event().wait()

    try:
        at_end = wait if keep else None
        result = run(story.demo(Terminal(stderr=as_json), at_end, fault))
    except story.DemoError as error:
        raise CommandError(str(error)) from None
    if as_json:
        emit(result.summary)
        raise typer.Exit(0 if result.summary["outcome"] == "promoted" else 1)


@app.command(epilog="Example: nautilus up --pace trial")
def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the embedded Temporal server.")] = 7233,
    ui_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of its web UI.")] = 8233,
    door_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the door.")] = 8484,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the platform's metrics for Prometheus; default: none.")
    ] = None,
    pace: Annotated[
        Pace | None, typer.Option(help="Instead of that of platform.toml; at trial a cycle takes minutes.")
    ] = None,
    check_replay: Annotated[bool, CHECK_REPLAY] = True,
) -> None:
    """Run the platform: Temporal (embedded, unless one is configured), worker, agents, door, declared traffic."""
    import asyncio

    from schema.settings import Settings
    from starter.stack import Ports, running

    async def serve() -> None:
        settings = Settings(pace=pace) if pace else Settings()
        ports = Ports(port, ui_port, door=door_port, metrics=metrics_port)
        async with running(settings, ports, check_replay) as stack:
            # The database's URL may hold a password, and the person who set it has it.
            _print_exports(stack.environment, without="NAUTILUS_DATABASE_URL")
            for subscriber, mistake in stack.mistakes.items():
                err.print(f"{subscriber} gets nothing yet: {mistake}", style="yellow", soft_wrap=True)
            err.print(f"pace: {PACES[stack.pace]}")
            err.print(f"Temporal web UI: {stack.web_ui or 'of the configured server'}; Ctrl-C ends everything")
            await asyncio.Event().wait()

    run(serve(), "up")


@app.command(epilog="Example: nautilus apply")
def apply(as_json: AsJson = False, check_replay: Annotated[bool, CHECK_REPLAY] = True) -> None:
    """Bring Temporal and the database to this release and to platform.toml, and start nothing; idempotent.

    All that `up` does first: namespace, search attributes, the database's schema, parameters, the keys of the built-in
    agents, schedules, dispatchers. For a platform whose processes somebody else starts, as on a cluster.
    """
    from schema.settings import Settings
    from starter.stack import apply as applied

    declared = run(applied(Settings(), check_replay))

    def in_words() -> None:
        before, after, _ = declared.database
        schema = f"schema {after}" if before == after else f"schema {before or 'none'} -> {after}"
        out.print("\n".join([schema, *map(str, declared.schedules)]), soft_wrap=True)
        out.print("Temporal and the database are as declared", soft_wrap=True)

    before, after, copy = declared.database
    schema = {"from": before, "to": after, "copy": None if copy is None else str(copy)}
    answer(as_json, {"database": schema, "schedules": declared.schedules}, in_words)


def _print_exports(environment: Mapping[str, str], without: str | None = None) -> None:
    """What other terminals need."""
    for key, value in environment.items():
        if value and key != without:
            err.print(f"export {key}={value}", soft_wrap=True)


@app.command(epilog="Example: nautilus worker")
def worker(check_replay: Annotated[bool, CHECK_REPLAY] = False) -> None:
    """Run a worker; the same as `python worker.py`."""
    import worker as composition
    from schema.settings import Settings

    run(composition.run(Settings(), check_replay), "worker")
