"""Commands about events: what happened, which subscribers have not received it, and how to deliver it again."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from starter import completion
from starter.command import (
    AsJson,
    Columns,
    CommandError,
    Who,
    Why,
    answer,
    answer_rows,
    open_database,
    open_to_read,
    out,
)

if TYPE_CHECKING:
    from schema.messages.outbox import Event, SubscriberStatus

app = typer.Typer(
    no_args_is_help=True,
    help="Events: the outbox, its subscribers and their dead letters.",
    epilog="Example: nautilus events tail --follow",
)

FOLLOW_S = 1.0


@app.command("list", epilog="Example: nautilus events list")
def show_all(as_json: AsJson = False) -> None:
    """Every subscriber: how far behind it is, and what it has not received."""
    from activities import events
    from schema.declaration import declared_platform

    columns: Columns[SubscriberStatus] = {
        "subscriber": lambda status: status.subscriber,
        "behind": lambda status: status.behind,
        "retrying": lambda status: status.retrying,
        "parked": lambda status: status.parked,
        "dead": lambda status: status.dead,
        "lately": lambda status: status.error,
    }
    statuses = events.subscribers(open_database(), declared_platform())
    answer_rows(as_json, statuses, columns, "no subscriber has been started; `nautilus events apply` does")


@app.command(epilog="Example: nautilus events apply")
def apply() -> None:
    """Start the dispatcher of every subscriber in platform.toml; a new one receives what happens from now on."""
    import asyncio

    from activities.event_bus import start_bus
    from activities.events import subscribers
    from schema.declaration import declared_platform
    from starter.client import NautilusClient

    database = open_database()
    platform = declared_platform()

    async def start() -> None:
        await start_bus((await NautilusClient.connect()).temporal, database, platform)

    asyncio.run(start())
    out.print(f"running: {', '.join(status.subscriber for status in subscribers(database, platform))}")


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

    readable = open_to_read()
    events = outbox(readable, latest=latest)
    if not follow:
        answer(as_json, events, lambda: _show(events) if events else out.print("nothing has happened yet"))
        return
    last = 0
    while True:
        for event in events:
            answer(as_json, event, partial(_show, [event]))
            last = event.sequence
        events = outbox(readable, after=last)
        if not events:
            time.sleep(FOLLOW_S)


def _show(events: "Sequence[Event]") -> None:
    for event in events:
        line = f"{event.sequence:>6}  {event.at:%Y-%m-%d %H:%M:%S}  {event.type.value:<22} {event.subject}"
        out.print(line)


@app.command(epilog="Example: nautilus events dead --all")
def dead(
    every: Annotated[bool, typer.Option("--all", help="What is retried or parked, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Dead letters: events that a subscriber will not receive unless you act. Later ones of the subject wait behind."""
    from activities import events
    from schema.messages.outbox import DeliveryState, Undelivered

    undelivered = events.undelivered(open_database())
    letters = [letter for letter in undelivered if every or letter.state is DeliveryState.DEAD]

    def line(letter: Undelivered) -> str:
        since = f" since {letter.dead_at:%Y-%m-%d %H:%M}" if letter.dead_at else ""
        tried = f", {letter.attempts} attempts: {letter.error}" if letter.attempts else ""
        where = f"{letter.subscriber} {letter.sequence}  {letter.type}  {letter.subject}"
        return f"{where}  {letter.state.value}{since}{tried}"

    # Lines, because what is copied into `redrive` and `drop` must stay whole in the narrowest terminal.
    lines = [line(letter) for letter in letters]
    answer(as_json, letters, lambda: out.print(*(lines or ["no dead letters"]), sep="\n"))


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

    if (subject is not None) == every:
        raise CommandError("expected exactly one of --subject and --all")
    database = open_database()
    # A subscriber that is declared no longer may still have dead letters.
    subscribers = {letter.subscriber for letter in events.undelivered(database)}
    subscribers.update(subscriptions(declared_platform()))
    if subscriber is not None and subscriber not in subscribers:
        raise CommandError(f"expected a subscriber ({', '.join(sorted(subscribers))}), but {subscriber} came")
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
            f"expected a dead letter, but {sequence} of {subscriber} is not one; see `nautilus events dead`"
        )
    out.print(f"{subscriber} will not receive event {sequence}; the ledger has an entry")
