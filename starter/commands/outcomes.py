"""Commands about outcomes of tasks."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starter.command import AsJson, CommandError, emit, err, lines_of, log_beside, out

if TYPE_CHECKING:
    from activities.recording import Recorded
    from schema.messages.observatory import TaskOutcome

# A transaction of some tenths of a second, for which a running platform's recorders wait.
AT_A_TIME = 5_000
# Mistakes in a file are of few kinds, and twenty lines show them.
MOST_BAD_LINES = 20

app = typer.Typer(
    no_args_is_help=True, help="Outcomes of tasks.", epilog="Example: nautilus outcomes import outcomes.jsonl"
)


@app.callback()
def outcomes() -> None:
    """Outcomes of tasks."""


@app.command("import", epilog="Example: nautilus outcomes import outcomes.jsonl")
def outcomes_import(
    file: Annotated[Path, typer.Argument(help="JSON lines, one outcome each.")], as_json: AsJson = False
) -> None:
    """Bring history: each line one outcome (task_id, task_type, started_at, finished_at, duration_s, failure).

    A line may also have agent_id, quality (0 to 1), cost; of a failure its reason (a short label, as rate_limited) and
    detail (the message, up to 500 characters); attributes (up to 16, text or number: model, region, tokens).

    The same file twice imports nothing twice: of two outcomes of one task the first stands, and a different one is
    counted as conflicting. A bad line stops the import before anything is written.
    """
    from schema.declaration import declared_platform
    from schema.settings import Settings
    from starter.narration import Narration

    log_beside()
    settings = Settings()
    platform = declared_platform(settings)
    declared = {t.name for t in platform.task_types}
    with Narration(err).waiting(f"reading {file}") as show:
        outcomes = _all_outcomes(file, declared, show)
        recorded = _recorded(outcomes, settings.database, platform.observatory.interval_s, show)

    if as_json:
        emit({"read": len(outcomes), **recorded._asdict()})
        return
    count_by_fate = {
        "new": recorded.new,
        "known already": recorded.known,
        "conflicting with what is recorded, which stands": recorded.conflicting,
        "older than what is kept": recorded.too_old,
    }
    counts = ", ".join(f"{count:,} {fate}" for fate, count in count_by_fate.items() if count)
    out.print(f"{len(outcomes):,} outcomes: {counts or 'the file holds none'}")


def _all_outcomes(file: Path, declared: Collection[str], show: Callable[[str], None]) -> "list[TaskOutcome]":
    """Every outcome of a file; `show` hears from time to time how many there are so far."""
    outcomes: list[TaskOutcome] = []
    for outcome, _ in read_outcomes(file, declared):
        outcomes.append(outcome)
        if len(outcomes) % AT_A_TIME == 0:
            show(f"reading {file}: {len(outcomes):,} outcomes")
    return outcomes


def _recorded(
    outcomes: "Sequence[TaskOutcome]", database_url: str, interval_s: int, show: Callable[[str], None]
) -> "Recorded":
    """Record all outcomes, batch by batch, in a database that is made where there is none."""
    from activities.database import Database, migrate
    from activities.recording import Recorded, record_outcomes

    with closing(Database(database_url)) as database:
        migrate(database, datetime.now(UTC))
        recorded = Recorded()
        for start in range(0, len(outcomes), AT_A_TIME):
            show(f"recording: {start:,} of {len(outcomes):,} outcomes")
            with database.transaction() as session:
                recorded = recorded.plus(record_outcomes(session, outcomes[start : start + AT_A_TIME], interval_s))
    return recorded


def read_outcomes(file: Path, declared: Collection[str] | None = None) -> "Iterator[tuple[TaskOutcome, int]]":
    """Every outcome of a file with the bytes of its line; of `declared` task types only, where they are given.

    Raises CommandError at the end if some lines hold no outcome; standard error has the mistakes in the first of them.
    A caller must not act on what it got before that.
    """
    now = datetime.now(UTC)
    bad_lines = 0
    for number, line, size in _readable_lines(file):
        try:
            outcome = _outcome(line.decode(), declared, now)
        except ValueError as mistake:
            bad_lines += 1
            if bad_lines <= MOST_BAD_LINES:
                err.print(f"{file}:{number}: {mistake}")
        else:
            yield outcome, size

    if bad_lines:
        more = f", of which the first {MOST_BAD_LINES} are above" if bad_lines > MOST_BAD_LINES else ""
        wrong = f"{bad_lines:,} lines do not hold one" if bad_lines > 1 else "one line does not hold one"
        raise CommandError(f"{file}: expected an outcome in every line, but {wrong}{more}; nothing was taken")


def _readable_lines(file: Path) -> Iterator[tuple[int, bytes, int]]:
    """The `lines_of` a file; raises CommandError where it cannot be read."""
    try:
        yield from lines_of(file)
    except OSError as error:
        raise CommandError(f"{file}: expected a file of outcomes, but {error.strerror}") from None


def _outcome(line: str, declared: Collection[str] | None, now: datetime) -> "TaskOutcome":
    """The outcome that a line holds; raises ValueError, whose message is one line."""
    from pydantic import ValidationError

    from rules.outcomes import contradiction
    from schema.messages.observatory import TaskOutcome
    from schema.mistakes import in_one_line

    try:
        outcome = TaskOutcome.model_validate_json(line, strict=True)  # "1_000" is not a number
    except ValidationError as error:
        raise ValueError(in_one_line(error)) from None
    if unknown := json.loads(line).keys() - TaskOutcome.model_fields.keys():
        raise ValueError(f"expected the fields of an outcome, but {min(unknown)[:100]!r} came")
    if declared is not None and outcome.task_type not in declared:
        raise ValueError(f"expected a declared task type ({', '.join(sorted(declared))}), but {outcome.task_type} came")
    if (reason := contradiction(outcome, now)) is not None:
        raise ValueError(reason)
    return outcome
