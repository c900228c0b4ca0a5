"""Commands of the Observatory: how the platform is, its history, and the detector on a history of one's own."""

import csv
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from starter.command import AsJson, CommandError, emit, new_table, open_database, out

app = typer.Typer()
Row = TypeVar("Row")


@app.command()
def health(as_json: AsJson = False) -> None:
    """The latest snapshot: the health score and what it is made of."""
    from activities.observatory import latest_snapshot

    snapshot = latest_snapshot(open_database())
    if snapshot is None:
        raise CommandError("expected a snapshot, but none was taken yet; the schedule metrics_snapshot takes them")
    if as_json:
        emit(snapshot.model_dump(mode="json"))
        return
    score = "unknown" if snapshot.health is None else f"{snapshot.health:.0f} of 100"
    out.print(f"health {score} at {snapshot.at:%Y-%m-%d %H:%M:%S} UTC: {snapshot.reason}")
    table = new_table("task type", "tasks", "successes", "rate")
    for name, counts in sorted(snapshot.task_types.items()):
        table.add_row(name, str(counts.tasks), str(counts.successes), f"{counts.rate:.1%}" if counts.tasks else "-")
    out.print(table)


@app.command()
def detect(
    file: Annotated[Path, typer.Option(help="CSV: timestamp,value or timestamp,successes,total (ISO 8601).")],
    as_json: AsJson = False,
) -> None:
    """Try the detector on your own history: one line for each episode that would have raised an alarm."""
    from rules.series_file import detect_rates, detect_values

    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines)
        header = [name.strip() for name in next(rows, [])]
        if header == ["timestamp", "value"]:
            alarms = detect_values(_rows(file, rows, 2, lambda at, value: (at, float(value))))
        elif header == ["timestamp", "successes", "total"]:
            alarms = detect_rates(_rows(file, rows, 3, lambda at, k, n: (at, int(k), int(n))))
        else:
            raise CommandError(
                f"{file}:1: expected timestamp,value or timestamp,successes,total, but {','.join(header)!r} came"
            )
    if as_json:
        instants = ("timestamp", "onset")
        emit({"alarms": [{k: v.isoformat() if k in instants else v for k, v in a._asdict().items()} for a in alarms]})
        return
    table = new_table("raised", "onset", "direction", "size", "reason")
    for a in alarms:
        table.add_row(a.timestamp.isoformat(), a.onset.isoformat(), a.direction, f"{a.size:+.3g}", a.reason)
    out.print(table if alarms else "no alarm")


def _rows(file: Path, rows: Iterable[list[str]], columns: int, parse: Callable[..., Row]) -> list[Row]:
    found = []
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        try:
            if len(row) != columns:
                raise ValueError(f"expected {columns} columns, but {len(row)} came")
            at = datetime.fromisoformat(row[0].strip())
            found.append(parse(at if at.tzinfo else at.replace(tzinfo=UTC), *row[1:]))
        except ValueError as error:
            raise CommandError(f"{file}:{number}: {error}") from None
    return found
