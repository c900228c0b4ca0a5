"""The command line: thin commands over the same code that workers and agents use.

Mistakes are one line on stderr and an exit code; `--json` prints one JSON document on stdout. A command's module is
loaded when it is called: the database and Temporal each take half a second to import.
"""

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from starter.command import CommandError, err

# Each command or group of commands, in the order of `--help`, with the module in `starter.commands` that holds it.
COMMANDS = {
    "demo": "running",
    "init": "declaration",
    "check": "declaration",
    "up": "running",
    "worker": "running",
    "health": "observatory",
    "detect": "observatory",
    "cycle": "cycle",
    "params": "params",
    "experiment": "experiment",
    "ledger": "ledger",
    "agent": "agent",
    "outcomes": "outcomes",
    "schedules": "schedules",
    "events": "events",
    "memory": "memory",
    "report": "report",
    "tasks": "tasks",
}


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        found: Any = typer.main.get_group(import_module(f"starter.commands.{COMMANDS[cmd_name]}").app)
        # A module is a group with a help text of its own, or it holds commands of the first level.
        command = found if found.help else found.commands[cmd_name]
        command.name = cmd_name
        return command


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False)


@app.callback()
def nautilus() -> None:
    """A platform that improves itself, on Temporal."""


def main() -> None:
    """Run a command; what a person can mend becomes one line and exit code 1."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if (line := _mendable(error)) is None:
            raise
        err.print(f"nautilus: {' '.join(line.split())}", style="red", soft_wrap=True)
        sys.exit(1)


def console() -> NoReturn:
    """`main` as a process. Nothing is left to do after it, so the interpreter is not torn down.

    Threads of Temporal's core may still let go of Python objects, and one that does so meanwhile kills the process.
    """
    code: object = None
    try:
        main()
    except SystemExit as end:
        code = end.code
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _mendable(error: Exception) -> str | None:
    """The one line for a person; None for a defect of ours, whose traceback is wanted."""
    # Imported once something has gone wrong: the good way is the fast one.
    from pydantic import ValidationError
    from sqlalchemy.exc import SQLAlchemyError
    from temporalio.service import RPCError

    from schema.mistakes import in_one_line
    from starter.client import Refused
    from starter.server import ServerError

    match error:
        case ValidationError():
            return in_one_line(error)
        case CommandError() | Refused() | ServerError() | ValueError():
            return str(error)
        case SQLAlchemyError() if "no such table" in str(error) or "UndefinedTable" in str(error):
            return "expected the platform's tables, but the database has none; run `nautilus up` first"
        case SQLAlchemyError():
            return f"the database cannot be used: {getattr(error, 'orig', None) or error}"
        case RecursionError():
            return "expected data that is nested less deeply"
        case RPCError() | RuntimeError() if "ConnectError" in str(error):
            return "expected a Temporal server, but none answers; run `nautilus up` or set TEMPORAL_ADDRESS"
        case RPCError() | RuntimeError():
            return f"Temporal: {error}"
        case FileNotFoundError():
            return f"expected {error.filename}, but there is no such file or folder"
        case OSError():
            return f"expected to read and write files, but {error}"
    return None
