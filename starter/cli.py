"""The command line: thin commands over the same code that workers and agents use.

Mistakes are one line on stderr and an exit code; `--json` prints one JSON document on stdout. A command's module is
loaded when it is called, and what it needs of the database or of Temporal when it runs: each takes a quarter of a
second of CPU to import, and neither `--help` nor a completion should wait for it.
"""

import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from schema.display import visible
from starter.command import OPENED, CommandError, err


class Entry(NamedTuple):
    """A command or group of the first level: the module in `starter.commands` that holds it, and its line of help."""

    module: str
    help: str


# In the order of `--help`. The texts are those of the modules, which `--help` does not load; a test compares them.
COMMANDS = {
    "demo": Entry(
        "running", "Run the whole story on this machine: a falling success rate, a fix that agents find, a promotion."
    ),
    "init": Entry(
        "declaration",
        "Write a commented platform.toml for your own platform; without options it asks, where there is a terminal.",
    ),
    "check": Entry(
        "declaration",
        "Report everything that is wrong in platform.toml, or what it declares; exit code 1 where something is wrong.",
    ),
    "doctor": Entry(
        "doctor",
        "Examine this installation: what is wrong, and what mends it; exit code 1 where there is a problem.",
    ),
    "up": Entry(
        "running",
        "Run the platform: Temporal (embedded, unless one is configured), worker, agents, door, declared traffic.",
    ),
    "apply": Entry(
        "running",
        "Bring Temporal and the database to this release and to platform.toml, and start nothing; idempotent.",
    ),
    "worker": Entry("running", "Run a worker; the same as `python worker.py`."),
    "health": Entry(
        "observatory",
        "The latest snapshot: the health score, every metric by task type and together, and why tasks failed.",
    ),
    "detect": Entry(
        "observatory",
        "Try the detector on your own history: one line for each episode that would have raised an alarm.",
    ),
    "simulate": Entry(
        "simulate", "Let weeks of a declared world pass in minutes: what is found, mended or escalated, with no human."
    ),
    "anomaly": Entry("anomaly", "Anomalies: what is wrong with the platform."),
    "diagnose": Entry(
        "diagnose",
        "What an agent sees of one subject: reasons, what stands out, figures, parameters and their changes, memory.",
    ),
    "cycle": Entry("cycle", "Improvement cycles."),
    "params": Entry("params", "Production configuration."),
    "experiment": Entry("experiment", "Experiments: evidence and replays."),
    "ledger": Entry("ledger", "The record."),
    "agent": Entry("agent", "Agents and their keys."),
    "person": Entry("person", "People and their keys."),
    "mcp": Entry("mcp", "Serve an agent's 8 tools over stdio (MCP), and sign what they send with the agent's own key."),
    "door": Entry(
        "door",
        "The door: parameters, outcomes, traces and agents over HTTP, for all who reach no database and no Temporal.",
    ),
    "codec": Entry("codec", "Codec keys, which encrypt what Temporal keeps, and the server that shows it to people."),
    "metrics": Entry(
        "metrics",
        "Serve metrics for Prometheus until Ctrl-C: cycles, verdicts, backlog, snapshots, health, ledger.",
    ),
    "outcomes": Entry("outcomes", "Outcomes of tasks."),
    "schedules": Entry("schedules", "Jobs: what runs when, and with what budget."),
    "events": Entry("events", "Events: the outbox, its subscribers and their dead letters."),
    "memory": Entry("memory", "What the nightly job has learned."),
    "report": Entry(
        "report",
        "What changed: success rates, issues and fixes, experiments, standing, ledger. Text, unless --html or --json.",
    ),
    "tasks": Entry("tasks", "User tasks."),
    "db": Entry("db", "The database: its schema and its backup."),
    "schema": Entry(
        "schema",
        "The JSON Schema of every message that crosses a line: outcomes, bids, proposals, ballots, diagnoses, ...",
    ),
}
# Shells ask for completions with this variable, and Typer names it after the program.
PROGRAM, COMPLETING = "nautilus", "_NAUTILUS_COMPLETE"
TOO_LARGE = "expected a number that the database can hold"


def load(name: str) -> Any:
    """The command or group itself."""
    group: Any = typer.main.get_group(import_module(f"starter.commands.{COMMANDS[name].module}").app)
    # A module is a group with a help text of its own, or it holds commands of the first level.
    command = group if group.help else group.commands[name]
    command.name = name
    return command


@contextmanager
def _shown_as_text() -> Iterator[None]:
    """Let what Typer refuses be shown as nothing but text: it repeats what was typed, or pasted."""
    try:
        yield
    except TyperException as error:
        error.message = "\n".join(map(visible, error.message.split("\n")))
        raise


class _Commands(TyperGroup):
    """Lists the table above, and loads the command that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in COMMANDS.items():
            self.add_command(TyperCommand(name, help=entry.help))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, load(name) if name and listed else None, rest

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _shown_as_text():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _shown_as_text():
            return super().invoke(ctx)

    def _main_shell_completion(self, ctx_args: Any, prog_name: str, complete_var: str | None = None) -> None:
        if COMPLETING in os.environ:
            from starter.completion import prepare

            prepare()
        super()._main_shell_completion(ctx_args, prog_name, complete_var)


app = typer.Typer(cls=_Commands, no_args_is_help=True, epilog="Example: nautilus params list --json")


@app.callback()
def nautilus() -> None:
    """A platform that improves itself, on Temporal."""


def main(*arguments: str) -> None:
    """Run a command, that of the process unless one is given; what a person can fix is one line and exit code 1."""
    try:
        with OPENED:
            app(arguments or None, prog_name=PROGRAM)  # and not `python -m starter`, which no shell completes
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if (line := _fixable(error)) is None:
            raise
        err.print(f"nautilus: {' '.join(line.split())}", style="red")
        sys.exit(1)


def console(*arguments: str) -> NoReturn:
    """`main` as a process. Nothing is left to do after it, so the interpreter is not torn down.

    Threads of Temporal's core may still let go of Python objects, and one that does so meanwhile kills the process.
    """
    gc.set_threshold(50_000)  # imports make many objects and hardly any garbage
    code: object = None
    try:
        main(*arguments)
    except SystemExit as end:
        code = end.code
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # its reader has closed it
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _fixable(error: Exception) -> str | None:
    """The one line for a person; None for a defect of ours, whose traceback is wanted."""
    if isinstance(error, CommandError):
        return str(error)
    from pydantic import ValidationError

    from schema.mistakes import in_one_line

    match error:
        case ValidationError():
            return in_one_line(error)
        case ValueError():
            return str(error)
        case RecursionError():
            return "expected data that is nested less deeply"
        case OverflowError() if "SQLite INTEGER" in str(error):
            return TOO_LARGE
        case ConnectionError(errno=None):  # our own, and no broken pipe
            return str(error)
        case FileNotFoundError():
            return f"expected {error.filename}, but there is no such file or folder"
        case OSError():
            return f"expected to read and write files, but {error}"

    return _fixable_elsewhere(error)


def _fixable_elsewhere(error: Exception) -> str | None:
    """The same for the database, Temporal and the market; imported once one of their errors may have come."""
    from sqlite3 import Error as SqliteError

    from sqlalchemy.exc import SQLAlchemyError
    from temporalio.client import WorkflowQueryFailedError
    from temporalio.service import RPCError

    from schema.connection import UNREACHABLE
    from starter.client import Refused
    from starter.server import ServerError

    match error:
        case Refused() | ServerError():
            return str(error)
        case SQLAlchemyError() | SqliteError() if "no such table" in str(error) or "UndefinedTable" in str(error):
            return (
                "expected the platform's tables, but the database has none; run `nautilus up` or `nautilus apply` first"
            )
        case SQLAlchemyError() if "NumericValueOutOfRange" in str(error):
            return TOO_LARGE
        case SQLAlchemyError() | SqliteError() if "no such column" in str(error) or "UndefinedColumn" in str(error):
            return f"the database cannot be used: {getattr(error, 'orig', None) or error}; see `nautilus db check`"
        case SQLAlchemyError() | SqliteError():
            return f"the database cannot be used: {getattr(error, 'orig', None) or error}"
        case WorkflowQueryFailedError():
            return f"expected the workflow to answer, but {error}"
        # The SDK raises a bare RuntimeError where it cannot connect, or cannot use an address or a certificate.
        case RPCError() | RuntimeError() if UNREACHABLE in str(error):
            return "expected a Temporal server, but none answers; run `nautilus up` or set TEMPORAL_ADDRESS"
        case RPCError() | RuntimeError():
            return _said_by_temporal(str(error))
    return None


def _said_by_temporal(error: str) -> str:
    """An error of the server's in one line, without the SDK's dump around it."""
    if missing := re.search(r"Namespace (\S+) (is|was) not found", error):
        return (
            f"expected the namespace {missing[1]} on the Temporal server, but there is none; "
            "run `nautilus apply` or set TEMPORAL_NAMESPACE"
        )
    if status := re.search(r'Status \{ code: (?P<code>\w+), message: "(?P<message>[^"]*)"', error):
        return f"Temporal: {status['code']}: {status['message']}"
    return f"Temporal: {error}"
