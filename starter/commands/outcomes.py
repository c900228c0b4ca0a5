"""Commands about outcomes of tasks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starter.command import CommandError, err, log_beside, out

if TYPE_CHECKING:
    from schema.messages.observatory import TaskOutcome

app = typer.Typer(
    no_args_is_help=True, help="Outcomes of tasks.", epilog="Example: nautilus outcomes import outcomes.jsonl"
)


@app.callback()
def outcomes() -> None:
    """Outcomes of tasks."""


@app.command("import", epilog="Example: nautilus outcomes import outcomes.jsonl")
def outcomes_import(file: Annotated[Path, typer.Argument(help="JSON lines, one outcome each.")]) -> None:
    """Bring history: each line one outcome (task_id, task_type, started_at, finished_at, duration_s, failure).

    The same file twice imports nothing twice. A bad line stops the import before anything is written.
    """
    from rich.progress import Progress

    from activities.database import Database, migrate
    from schema.declaration import declared_platform
    from schema.settings import Settings
    from starter.platform.recorder import Recorder

    log_beside()
    outcomes = [outcome for outcome, _ in read_outcomes(file)]
    settings = Settings()
    platform = declared_platform(settings)
    declared = {t.name for t in platform.task_types}
    if unknown := next((o.task_type for o in outcomes if o.task_type not in declared), None):
        raise CommandError(f"{file}: expected a declared task type, but {unknown} came")
    database = Database(settings.database)
    migrate(database)
    with Progress(console=err) as progress, Recorder(database, platform.observatory.interval_s) as recorder:
        for waiting in progress.track([recorder.record(outcome) for outcome in outcomes], description="importing"):
            waiting.result()
    out.print(f"{len(outcomes)} outcomes are recorded")


def read_outcomes(file: Path) -> "Iterator[tuple[TaskOutcome, int]]":
    """Every outcome of a file with the bytes of its line; raises CommandError at the first line that holds none."""
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _outcome(file, number, line.decode()), len(line)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file}: expected a file of outcomes, but {error}") from None


def _outcome(file: Path, number: int, line: str) -> "TaskOutcome":
    from pydantic import ValidationError

    from schema.messages.observatory import TaskOutcome

    try:
        outcome = TaskOutcome.model_validate_json(line)
        if unknown := json.loads(line).keys() - TaskOutcome.model_fields.keys():
            raise CommandError(f"{file}:{number}: expected the fields of an outcome, but {min(unknown)} came")
        return outcome
    except ValidationError as error:
        first = error.errors()[0]
        raise CommandError(f"{file}:{number}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
