"""What the commands share: two consoles, one table style, one way to fail, and the database that exists."""

import getpass
import json
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from rich.table import Table

    from activities.database import Database
    from activities.reading import Readable

# Agents and people write what is shown here; nothing of it is markup.
out, err = Console(markup=False, highlight=False), Console(stderr=True, markup=False, highlight=False)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def _said(text: str) -> str:
    if not text.strip():
        raise typer.BadParameter("expected a reason, but nothing came")
    return text


Why = Annotated[str, typer.Option(help="The reason, for the ledger.", callback=_said)]
# A container has a user and often no USER.
Who = Annotated[str, typer.Option(help="Your name, for the ledger.", default_factory=getpass.getuser)]


class CommandError(Exception):
    """A mistake that the person at the keyboard can mend; the message is one line."""


def new_table(name: str, *others: str) -> "Table":
    """What a person copies into the next command stays in one piece; the rest wraps, and nothing is cut off."""
    from rich import box
    from rich.table import Column, Table

    rest = (Column(other, overflow="fold") for other in others)
    return Table(Column(name, no_wrap=True), *rest, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def emit(document: Any) -> None:
    """Print one JSON document. Flushed here, where a closed pipe is an answer and not a complaint at the exit."""
    print(json.dumps(document, ensure_ascii=False), flush=True)  # noqa: T201


def log_beside() -> None:
    """Have what is logged in this process go to standard error: standard output is the answer's."""
    import structlog

    # Asked for at each line: what captures standard error may change.
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Do asynchronous work to its end, to Ctrl-C, or to SIGTERM: either way what it started is stopped in order."""
    import asyncio
    import signal
    import threading

    log_beside()

    async def until_told() -> Any:
        task = asyncio.current_task()
        assert task is not None
        # Python dies of SIGTERM at once, and the processes of a platform, each of a session of its own, would live on.
        if threading.current_thread() is threading.main_thread():  # no other can hear of signals
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(until_told())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except asyncio.CancelledError:
        raise typer.Exit(143) from None


def open_to_read() -> "Readable":
    """The database that exists, for `activities.reading`: a SQLite file is read without SQLAlchemy."""
    from activities.reading import SqliteFile, existing_file
    from schema.settings import Settings

    kind, _, path = Settings().database.partition(":///")
    if kind != "sqlite" or "?" in path:
        return open_database()
    return SqliteFile(existing_file(path))


def open_database() -> "Database":
    """The database that exists."""
    from activities.database import existing
    from schema.settings import Settings

    return existing(Settings().database)
