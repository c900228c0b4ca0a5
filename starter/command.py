"""What the commands share: two consoles, one table style, one way to fail, and the database that exists."""

import getpass
import json
import re
import sys
from codecs import BOM_UTF8
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from schema import wire
from starter.terminal import Terminal

if TYPE_CHECKING:
    from rich.table import Table
    from temporalio.client import WorkflowExecutionDescription

    from activities.database import Database
    from activities.reading import Readable
    from starter.client import NautilusClient

T = TypeVar("T")
S = TypeVar("S")
# What a command has opened; `main` closes it at the command's end.
OPENED = ExitStack()
# What stands in each column of a table, by the column's name.
Columns = dict[str, Callable[[T], object]]
KINDS = {"cycle": wire.IMPROVEMENT_CYCLE, "task": wire.MARKET_TASK}
# Where a query waits for a worker, a person should not wait much longer.
PATIENCE_S = 5.0
# The exit code of a command that had nothing to answer from, where that could be read as good news.
NO_DATA = 3
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# A thousand weeks: older than any platform, and within what dates can hold.
LONGEST = timedelta(weeks=1_000)
out = Terminal()
err = Terminal(stderr=True)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise typer.BadParameter("expected a reason, but nothing came")
    return text


Why = Annotated[str, typer.Option(help="The reason, for the ledger.", callback=_not_blank)]
# A container has a user and often no USER.
Who = Annotated[str, typer.Option(help="Your name, for the ledger.", default_factory=getpass.getuser)]


class CommandError(Exception):
    """A mistake that the person at the keyboard can fix; the message is one line."""


def span(text: str) -> timedelta:
    """How far back `--since` goes. Raises CommandError."""
    match = re.fullmatch(r"(?P<count>[1-9][0-9]{0,6})(?P<unit>[mhdw])", text)
    span = timedelta(**{UNITS[match["unit"]]: int(match["count"])}) if match else timedelta.max
    if span > LONGEST:
        raise CommandError(f"expected a time like 90m, 12h, 14d or 2w for --since, but {text!r} came")
    return span


def new_table(name: str, *others: str) -> "Table":
    """A table whose first column, which a person copies into the next command, never wraps; the rest wraps."""
    from rich import box
    from rich.table import Column, Table

    rest = (Column(other, overflow="fold") for other in others)
    return Table(Column(name, no_wrap=True), *rest, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def emit(document: Any) -> None:
    """Print one JSON document. Flushed here, where a closed pipe is an error that we handle, and not at the exit.

    It may be read in a terminal: what one would obey is escaped, as JSON does with the first 32 characters alone.
    """
    text = json.dumps(_plain(document), ensure_ascii=False)
    if not text.isprintable():
        text = "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
    print(text, flush=True)  # noqa: T201


def _plain(document: Any) -> Any:
    """A document of JSON's types: messages and named tuples become objects with their fields."""
    if hasattr(document, "model_dump"):
        return document.model_dump(mode="json")
    if hasattr(document, "_asdict"):
        document = document._asdict()
    if isinstance(document, Mapping):
        return {name: _plain(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_plain(item) for item in document]
    return document.isoformat() if isinstance(document, datetime) else document


def answer(as_json: bool, document: Any, in_words: Callable[[], object]) -> None:
    """One JSON document, or the same for people."""
    if as_json:
        emit(document)
    else:
        in_words()


def answer_rows(as_json: bool, rows: Sequence[T], columns: Columns[T], none: str) -> None:
    """One JSON document of all rows, or a table with a cell for each column, or `none` where there is no row."""

    def print_table() -> None:
        table = new_table(*columns)
        for row in rows:
            table.add_row(*(str(cell(row)) for cell in columns.values()))
        out.print(table if rows else none)

    answer(as_json, rows, print_table)


async def status_of(
    workflow_id: str, kind: str, running: Callable[..., Awaitable[S]], ended: Callable[..., Awaitable[S]]
) -> S:
    """The status of a cycle or task: of one that has ended from its result, which needs no worker.

    `running` and `ended` get a client and the workflow's id. Raises CommandError where there is no answer.
    """
    import asyncio

    from temporalio.client import WorkflowExecutionStatus
    from temporalio.service import RPCError

    from starter.client import NautilusClient

    client = await NautilusClient.connect()
    described = await _described(client, workflow_id, kind)
    if described.status is WorkflowExecutionStatus.COMPLETED:
        return await ended(client, workflow_id)
    if described.status is not WorkflowExecutionStatus.RUNNING:
        how = described.status.name.lower() if described.status else "gone"
        raise CommandError(f"expected a {kind} that runs or has ended, but {workflow_id} is {how}")
    try:
        return await asyncio.wait_for(running(client, workflow_id), PATIENCE_S)
    except (TimeoutError, RPCError):
        expected = f"expected a worker to answer for {workflow_id}, but none does"
        raise CommandError(f"{expected}; run `nautilus worker`") from None


async def _described(client: "NautilusClient", workflow_id: str, kind: str) -> "WorkflowExecutionDescription":
    """What the server says of a cycle or task; raises CommandError where it has none of this id."""
    from temporalio.service import RPCError

    from schema.connection import is_missing

    try:
        described = await client.temporal.get_workflow_handle(workflow_id).describe()
    except RPCError as error:
        if not is_missing(error):
            raise
        shows = f"`nautilus {'tasks' if kind == 'task' else kind} list` shows them"
        raise CommandError(f"expected a {kind}, but there is no {workflow_id}; {shows}") from None
    if described.workflow_type != KINDS[kind]:
        raise CommandError(f"expected a {kind}, but {workflow_id} is of type {described.workflow_type}")
    return described


def lines_of(file: Path) -> Iterator[tuple[int, bytes, int]]:
    """Each line that is not blank: its number, its text, and how many bytes of the file it takes.

    A byte-order mark and line ends of any kind are not part of the text.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            text = (line.removeprefix(BOM_UTF8) if number == 1 else line).strip()
            if text:
                yield number, text, len(line)


def log_beside(process: str = "") -> None:
    """Log to standard error in this process: standard output is for the answer.

    `process` names one that runs on, as `up` and the worker do: its logs are for machines as well.
    """
    import structlog

    if process:
        from starter import logs

        logs.configure(process)
        return
    # Looked up at each line: a test may replace standard error.
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def run(work: Coroutine[Any, Any, T], process: str = "") -> T:
    """Run asynchronous work to its end, to Ctrl-C, or to SIGTERM: in each case what it started is stopped in order.

    `process` is the name in its logs, of one that runs on.
    """
    import asyncio
    import signal
    import threading

    log_beside(process)

    async def until_stopped() -> T:
        task = asyncio.current_task()
        assert task is not None
        # Python dies of SIGTERM at once, and the processes of a platform, each of a session of its own, would live on.
        if threading.current_thread() is threading.main_thread():  # no other thread receives signals
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(until_stopped())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except asyncio.CancelledError:
        raise typer.Exit(143) from None


def ask(question: Callable[["NautilusClient"], Awaitable[T]]) -> T:
    """The answer to a question to Temporal: `question` gets a client."""
    from starter.client import NautilusClient

    async def answered() -> T:
        return await question(await NautilusClient.connect())

    return run(answered())


def open_to_read() -> "Readable":
    """The database that exists, for `activities.reading`: a SQLite file is read without SQLAlchemy."""
    from activities.reading import SqliteFile, existing_file
    from schema.settings import Settings

    kind, _, path = Settings().database.partition(":///")
    if kind != "sqlite" or "?" in path:
        return open_database()
    return SqliteFile(existing_file(path))


def open_database() -> "Database":
    """The database that exists; it is closed at the end of the command."""
    from activities.database import existing
    from schema.settings import Settings

    return OPENED.enter_context(closing(existing(Settings().database)))
