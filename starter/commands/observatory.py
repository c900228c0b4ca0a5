"""Commands of the Observatory: the platform's health, and the detector on a history in a file."""

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from schema.messages.base import plausible
from starter.command import NO_DATA, AsJson, CommandError, answer, ask, emit, err, new_table, open_to_read, out

if TYPE_CHECKING:
    from rules.series_file import Judged, SeriesAlarm
    from schema.messages.observatory import Counts, Measures, Snapshot

app = typer.Typer()

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# Squares and sums of such numbers are finite.
LARGEST = 1e100
Row = TypeVar("Row", tuple[datetime, float], tuple[datetime, int, int])


@app.command(epilog="Example: nautilus health --json")
def health(as_json: AsJson = False) -> None:
    """The latest snapshot: the health score, every metric by task type and together, and why tasks failed.

    `fill` is the share of tasks whose bidding was over that were awarded; of all, the platform's own tasks included.
    Exit code 3 where nothing could be measured.
    """
    from activities.reading import latest_snapshot

    snapshot = latest_snapshot(open_to_read())
    if snapshot is None:
        raise CommandError(f"expected a snapshot, but none was taken yet; {_next_snapshot()}")
    answer(as_json, snapshot, lambda: _show(snapshot))
    if snapshot.health is None:
        raise typer.Exit(NO_DATA)


def _show(snapshot: "Snapshot") -> None:
    """Print the health and who is needed, a table of every metric, and why tasks failed."""
    from activities.reason_text import failures
    from schema.messages.observatory import Measures

    score = "unknown" if snapshot.health is None else f"{snapshot.health:.0f} of 100"
    out.print(f"health {score} at {snapshot.at:%Y-%m-%d %H:%M:%S} UTC: {snapshot.reason}")
    for need in snapshot.escalations:
        out.print(f"a person is needed: {need}")
    if snapshot.health is None:
        out.print(_next_snapshot())

    table = new_table("task type", "/h", "success", "mean s", "p95 s", "quality", "cost", "fill", "agents")
    for name, counts in sorted(snapshot.task_types.items()):
        table.add_row(name, *_cells(snapshot, counts, snapshot.measures.get(name, Measures())))
    whole = Measures.model_validate(snapshot, from_attributes=True)
    table.add_row("all", *_cells(snapshot, snapshot.platform, whole))
    out.print(table)

    for name, reasons in snapshot.reasons.items():
        shares, behind = failures(reasons, snapshot.task_types[name].tasks)
        out.print(f"{name} failed: {shares} ({behind})")


def _cells(snapshot: "Snapshot", counts: "Counts", measures: "Measures") -> Iterator[str]:
    yield _short(snapshot.throughput_per_h * counts.tasks / max(1, snapshot.platform.tasks))
    yield _short(counts.rate)
    yield _short(measures.mean_duration_s)
    yield _short(measures.p95_duration_s)
    yield _short(measures.mean_quality)
    yield _short(measures.spending)
    yield _short(measures.market_fill_rate)
    yield str(measures.active_agents)


def _short(figure: float | None) -> str:
    """Three digits, or one of what is small: nine columns must fit in 80 characters."""
    if figure is None:
        return "-"
    if figure >= 1_000:
        return f"{figure:,.0f}"
    return f"{figure:.3g}" if figure >= 0.1 else f"{figure:.1g}"


def _next_snapshot() -> str:
    """When the next snapshot is taken, or what keeps it from being taken."""
    from temporalio.service import RPCError

    from activities import cron
    from activities.report_text import lasted
    from schema.messages.platform import JobId

    snapshots = JobId.METRICS_SNAPSHOT.value
    try:
        jobs = ask(lambda client: cron.listed(client.temporal))
    except (RPCError, ConnectionError):
        return "no Temporal server answers: `nautilus up` runs what takes them"
    job = next((job for job in jobs if job.id == snapshots), None)
    if job is None:
        return f"there is no schedule {snapshots}: `nautilus schedules apply` creates it"
    if job.paused or job.next_run is None:
        return f"the schedule {snapshots} is paused: `temporal schedule toggle` lets it go on"
    at = datetime.fromisoformat(job.next_run)
    wait_s = max(1.0, (at - datetime.now(UTC)).total_seconds())
    return f"the next is taken at {at:%H:%M:%S} UTC, in {lasted(wait_s)}"


def _judged(file: Path, read: "_Read") -> "Judged":
    """What the detector finds in a file, with progress on a terminal."""
    from rich.progress import Progress

    try:
        with (
            Progress(console=err, transient=True, disable=not err.is_terminal) as progress,
            # Spreadsheets begin a file with a byte order mark.
            progress.open(file, "r", encoding="utf-8-sig", newline="", description="reading") as lines,
        ):
            return _detected(csv.reader(lines), read, partial(progress.track, description="judging"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise CommandError(f"{file}: expected CSV in UTF-8, but {error}") from None


def _detected(cells: Iterator[list[str]], read: "_Read", watch: Callable[..., Any]) -> "Judged":
    """The detector that the header asks for, on the rows below it; `watch` shows how far it is."""
    from rules.series_file import detect_rates, detect_values

    match [name.strip().lower() for name in next(cells, [])]:
        case ["timestamp", "value"]:
            return detect_values(read.rows(cells, 2, _value), watch)
        case ["timestamp", "successes", "total"]:
            return detect_rates(read.rows(cells, 3, _counts), watch)
        case header:
            came = f"{','.join(header)[:100]!r} came"
            raise CommandError(f"{read.file}:1: expected timestamp,value or timestamp,successes,total, but {came}")


@app.command(epilog="Example: nautilus detect --file series.csv")
def detect(
    file: Annotated[Path, typer.Option(help="CSV: timestamp,value or timestamp,successes,total (ISO 8601).")],
    as_json: AsJson = False,
) -> None:
    """Try the detector on your own history: one line for each episode that would have raised an alarm.

    Rows may come in any order. An empty cell and NaN are no data; a timestamp without an offset is taken for UTC; of
    rows with the same timestamp the last counts. Instants are shown as the file writes them. Exit code 3 where no row
    could be judged, which is not the same as no alarm.
    """
    read = _Read(file)
    result = _judged(file, read)
    if read.repeated:
        why = "the last of each counts; does a local hour come twice?"
        err.print(f"rows with the timestamp of another one: {read.repeated}; {why}")
    if as_json:
        alarms = [_as_written(alarm, read) for alarm in result.alarms]
        emit({"alarms": alarms, "rows": result.rows, "judged": result.judged})
    else:
        _show_alarms(result, read)
    if not result.judged:
        raise typer.Exit(NO_DATA)


def _as_written(alarm: "SeriesAlarm", read: "_Read") -> dict[str, Any]:
    """The fields of an alarm, with its instants as the file writes them."""
    fields = alarm._asdict()
    fields["timestamp"] = read.written[alarm.timestamp]
    fields["onset"] = read.written[alarm.onset]
    return fields


def _show_alarms(result: "Judged", read: "_Read") -> None:
    if result.alarms:
        table = new_table("raised", "onset", "direction", "size", "reason")
        for alarm in result.alarms:
            written = _as_written(alarm, read)
            table.add_row(written["timestamp"], written["onset"], alarm.direction, f"{alarm.size:+.3g}", alarm.reason)
        out.print(table)
    else:
        out.print("no alarm" if result.judged else "nothing was judged")
    early = "; the others came before it was known what is normal" if result.judged < result.rows else ""
    out.print(f"judged {result.judged:,} of {result.rows:,} rows with data{early}")


@dataclass
class _Read:
    """What was read of a file: each instant as it is written there, and how many rows have one that came before."""

    file: Path
    written: dict[datetime, str] = field(default_factory=dict)
    repeated: int = 0

    def rows(self, rows: Iterable[list[str]], columns: int, parse: Callable[..., Row]) -> Iterator[Row]:
        for number, row in enumerate(rows, 2):
            if not any(cell.strip() for cell in row):
                continue
            try:
                if len(row) != columns:
                    raise ValueError(f"expected {columns} columns, but {len(row)} came")
                at = _instant(row[0].strip())
                self.repeated += at in self.written
                self.written[at] = row[0].strip()
                yield parse(at, *row[1:])
            except ValueError as error:
                raise CommandError(f"{self.file}:{number}: {error}") from None


def _instant(cell: str) -> datetime:
    try:
        at = datetime.fromisoformat(cell)
    except ValueError:
        raise ValueError(f"expected an instant in ISO 8601, but {cell[:100]!r} came") from None
    return plausible(at if at.tzinfo else at.replace(tzinfo=UTC))


def _number(cell: str) -> float:
    """NaN for an empty cell. What only Python reads (1_000, other scripts' digits, 1e999) is refused."""
    text = cell.strip()
    if text.lower() in ("", "nan"):
        return math.nan
    if not NUMBER.fullmatch(text):
        raise ValueError(f"expected a number, but {text[:100]!r} came")
    number = float(text)
    if abs(number) > LARGEST:
        raise ValueError(f"expected a number from -1e100 to 1e100, but {text[:100]!r} came")
    return number


def _value(at: datetime, cell: str) -> tuple[datetime, float]:
    return at, _number(cell)


def _counts(at: datetime, *cells: str) -> tuple[datetime, int, int]:
    successes, tasks = map(_number, cells)
    if math.isnan(successes) or math.isnan(tasks):
        return at, 0, 0
    if not (successes.is_integer() and tasks.is_integer() and 0 <= successes <= tasks):
        came = " of ".join(cell[:100] for cell in cells)
        raise ValueError(f"expected whole numbers, 0 <= successes <= total, but {came} came")
    return at, int(successes), int(tasks)
