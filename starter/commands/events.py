"""Commands about events: what happened, who has not heard of it, and how to set that going again."""

import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from starter import completion
from starter.command import AsJson, CommandError, Who, Why, emit, new_table, open_database, open_to_read, out

app = typer.Typer(
    no_args_is_help=True,
    help="Events: the outbox, its subscribers and their dead letters.",
    epilog="Example: nautilus events tail --follow",
)

FOLLOW_S = 1.0


@app.command("list", epilog="Example: nautilus events list")
def show_all(as_json: AsJson = False) -> None:
    """Every subscriber: how far behind it is, and what it has not had."""
    from activities import events
    from schema.declaration import declared_platform

    found = events.subscribers(open_database(), declared_platform())
    if as_json:
        emit([status.model_dump(mode="json") for status in found])
        return
    table = new_table("subscriber", "behind", "retrying", "parked", "dead", "lately")
    for status in found:
        table.add_row(*(str(value) for value in status.model_dump().values()))
    out.print(table if found else "no subscriber has been started; `nautilus events apply` does")


@app.command(epilog="Example: nautilus events apply")
def apply() -> None:
    """Start the dispatcher of every subscriber in platform.toml; a new one hears what happens from now on."""
    import asyncio

    from activities import events
    from schema.declaration import declared_platform
    from worker import connect

    database, platform = open_database(), declared_platform()

    async def start() -> None:
        await events.start_bus(await connect(), database, platform)

    asyncio.run(start())
    out.print(f"running: {', '.join(status.subscriber for status in events.subscribers(database, platform))}")


@app.command(epilog="Example: nautilus events tail --follow --json")
def tail(
    latest: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C; with --json, one a line.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The latest events, oldest first."""
    from activities.reading import outbox

    database = open_to_read()
    found = outbox(database, latest=latest)
    if as_json and not follow:
        emit([event.model_dump(mode="json") for event in found])
        return
    if not (found or follow):
        out.print("nothing has happened yet")
    last = 0
    while found or follow:
        for event in found:
            if as_json:
                emit(event.model_dump(mode="json"))
            else:
                line = f"{event.sequence:>6}  {event.at:%Y-%m-%d %H:%M:%S}  {event.type.value:<22} {event.subject}"
                out.print(line, soft_wrap=True)
            last = event.sequence
        if not follow:
            return
        if not (found := outbox(database, after=last)):
            time.sleep(FOLLOW_S)


@app.command(epilog="Example: nautilus events dead --all")
def dead(
    every: Annotated[bool, typer.Option("--all", help="What is retried or parked, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Dead letters: events that a subscriber will not have unless you act. Later ones of the subject wait behind."""
    from activities import events
    from schema.messages.events import DeliveryState

    late = events.undelivered(open_database())
    found = [letter for letter in late if every or letter.state is DeliveryState.DEAD]
    if as_json:
        emit([letter.model_dump(mode="json") for letter in found])
        return
    for x in found:
        since = f" since {x.dead_at:%Y-%m-%d %H:%M}" if x.dead_at else ""
        tried = f", {x.attempts} attempts: {x.error}" if x.attempts else ""
        # A line, because what is copied into `redrive` and `drop` must stay whole in the narrowest terminal.
        out.print(f"{x.subscriber} {x.sequence}  {x.type}  {x.subject}  {x.state.value}{since}{tried}", soft_wrap=True)
    if not found:
        out.print("no dead letters")


@app.command(epilog="Example: nautilus events redrive cycles --all")
def redrive(
    subscriber: Annotated[
        str | None, typer.Argument(help="Of this subscriber only.", autocompletion=completion.subscribers)
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Of this subject only.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Of every subject.")] = False,
) -> None:
    """Deliver dead letters again, and in order what is parked behind them; what is being retried is tried at once."""
    from activities import events
    from rules.subscriptions import subscriptions
    from schema.declaration import declared_platform

    if (subject is None) == (not every):
        raise CommandError("expected exactly one of --subject and --all")
    database = open_database()
    # One that is declared no longer may still have dead letters.
    known = {*subscriptions(declared_platform()), *(x.subscriber for x in events.undelivered(database))}
    if subscriber is not None and subscriber not in known:
        raise CommandError(f"expected a subscriber ({', '.join(sorted(known))}), but {subscriber} came")
    count = events.redrive(database, subscriber, subject, datetime.now(UTC))
    out.print(f"{count} dead letters are on their way again" if count else "no dead letters there")


@app.command(epilog="Example: nautilus events drop webhook:audit_hook 17 --why obsolete")
def drop(
    subscriber: Annotated[
        str, typer.Argument(help="`nautilus events dead` shows it.", autocompletion=completion.subscribers)
    ],
    sequence: Annotated[int, typer.Argument(help="`nautilus events dead` shows it.")],
    why: Why,
    who: Who,
) -> None:
    """Give up a dead letter, so that what is parked behind it goes on without it."""
    from activities import events

    if not events.drop(open_database(), subscriber, sequence, who, why, datetime.now(UTC)):
        raise CommandError(
            f"expected a dead letter, but {sequence} of {subscriber} is none; see `nautilus events dead`"
        )
    out.print(f"{subscriber} will not have event {sequence}, and the ledger says so")
