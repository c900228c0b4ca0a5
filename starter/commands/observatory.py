"""Commands of the Observatory: how the platform is, its history, and the detector on a history of one's own."""

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from starter.command import AsJson, CommandError, emit, err, new_table, open_to_read, out

app = typer.Typer()
Row = TypeVar("Row", tuple[datetime, float], tuple[datetime, int, int])


@app.command(epilog="Example: nautilus health --json")
def health(as_json: AsJson = False) -> None:
    """The latest snapshot: the health score, what it is made of, and every metric by task type and together.

    `fill` is the share of tasks whose bidding was over that were awarded; of all, the platform's own tasks included.
    """
    from activities.reading import latest_snapshot
    from schema.messages.observatory import Measures

    snapshot = latest_snapshot(open_to_read())
    if snapshot is None:
        raise CommandError("expected a snapshot, but none was taken yet; the schedule metrics_snapshot takes them")
    if as_json:
        emit(snapshot.model_dump(mode="json"))
        return
    score = "unknown" if snapshot.health is None else f"{snapshot.health:.0f} of 100"
    out.print(f"health {score} at {snapshot.at:%Y-%m-%d %H:%M:%S} UTC: {snapshot.reason}")
    whole = Measures.model_validate(snapshot, from_attributes=True)
    table = new_table("task type", "/h", "success", "mean s", "p95 s", "quality", "spent", "fill", "agents")
    for name, counts in [*sorted(snapshot.task_types.items()), ("all", snapshot.platform)]:
        one = whole if counts is snapshot.platform else snapshot.measures.get(name, Measures())
        an_hour = snapshot.throughput_per_h * counts.tasks / max(1, snapshot.platform.tasks)
        figures = (an_hour, counts.rate, one.mean_duration_s, one.p95_duration_s, one.mean_quality, one.spending)
        cells = ["-" if figure is None else f"{figure:.3g}" for figure in (*figures, one.market_fill_rate)]
        table.add_row(name, *cells, str(one.active_agents))
    out.print(table)


@app.command(epilog="Example: nautilus detect --file series.csv")
def detect(
    file: Annotated[Path, typer.Option(help="CSV: timestamp,value or timestamp,successes,total (ISO 8601).")],
    as_json: AsJson = False,
) -> None:
    """Try the detector on your own history: one line for each episode that would have raised an alarm.

    Rows may come in any order. An empty cell and NaN are no data; a timestamp without an offset is taken for UTC; of
    rows with the same timestamp the last counts. Instants are told as the file writes them.
    """
    from rich.progress import Progress

    from rules.series_file import detect_rates, detect_values

    written = dict[datetime, str]()  # a person, or a script, looks for them in the file
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:

        def judging(rows: Sequence[Row]) -> Iterable[Row]:
            return progress.track(rows, description="judging")

        try:
            # Spreadsheets begin a file with a byte order mark.
            with progress.open(file, "r", encoding="utf-8-sig", newline="", description="reading") as lines:
                rows = csv.reader(lines)
                header = [name.strip().lower() for name in next(rows, [])]
                if header == ["timestamp", "value"]:
                    alarms = detect_values(_rows(file, rows, 2, _value, written), judging)
                elif header == ["timestamp", "successes", "total"]:
                    alarms = detect_rates(_rows(file, rows, 3, _counts, written), judging)
                else:
                    came = f"{','.join(header)!r} came"
                    raise CommandError(f"{file}:1: expected timestamp,value or timestamp,successes,total, but {came}")
        except (UnicodeDecodeError, csv.Error) as error:
            raise CommandError(f"{file}: expected CSV in UTF-8, but {error}") from None
    told = [{**a._asdict(), "timestamp": written[a.timestamp], "onset": written[a.onset]} for a in alarms]
    if as_json:
        emit({"alarms": told})
        return
    table = new_table("raised", "onset", "direction", "size", "reason")
    for a in told:
        table.add_row(a["timestamp"], a["onset"], a["direction"], f"{a['size']:+.3g}", a["reason"])
    out.print(table if told else "no alarm")


def _rows(
    file: Path, rows: Iterable[list[str]], columns: int, parse: Callable[..., Row], written: dict[datetime, str]
) -> Iterator[Row]:
    for number, row in enumerate(rows, 2):
        if not any(cell.strip() for cell in row):
            continue
        try:
            if len(row) != columns:
                raise ValueError(f"expected {columns} columns, but {len(row)} came")
            at = _instant(row[0].strip())
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            written[at] = row[0].strip()
            yield parse(at, *row[1:])
        except ValueError as error:
            raise CommandError(f"{file}:{number}: {error}") from None


def _instant(cell: str) -> datetime:
    try:
        return datetime.fromisoformat(cell)
    except ValueError:
        raise ValueError(f"expected an instant in ISO 8601, but {cell[:100]!r} came") from None


def _number(cell: str) -> float:
    try:
        number = float(cell) if cell.strip() else math.nan
    except ValueError:
        number = math.inf
    if math.isinf(number):
        raise ValueError(f"expected a number, but {cell[:100]!r} came")
    return number


def _value(at: datetime, cell: str) -> tuple[datetime, float]:
    return at, _number(cell)


def _counts(at: datetime, *cells: str) -> tuple[datetime, int, int]:
    successes, tasks = map(_number, cells)
    if math.isnan(successes) or math.isnan(tasks):
        return at, 0, 0
    if not (successes.is_integer() and tasks.is_integer() and 0 <= successes <= tasks):
        raise ValueError(f"expected whole numbers, 0 <= successes <= total, but {' of '.join(cells)} came")
    return at, int(successes), int(tasks)
