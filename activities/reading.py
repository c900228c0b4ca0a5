"""Reading: queries in plain SQL for commands that must start fast, because importing SQLAlchemy takes most of the time.

Each query is a statement on one of `schema.tables`, for any `Readable`: a `Database`, or a SQLite file by itself.
"""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from activities import texts
from schema.messages.base import Value

if TYPE_CHECKING:
    from schema.messages.ledger import LedgerEntry
    from schema.messages.memory import Memory, Pattern
    from schema.messages.observatory import AnomalyRecord, Snapshot
    from schema.messages.outbox import Event
    from schema.messages.platform import Freeze, Parameter, ParameterState, Platform

LATEST = 100


class Readable(Protocol):
    """Answers a statement with rows. Values are as the driver returns them: a statement casts JSON to text."""

    def rows(self, statement: str, **values: Value) -> list[dict[str, Any]]: ...


def existing_file(path: str | None) -> Path:
    """The path of a database that exists: no reader and no worker creates an empty one. Raises ValueError."""
    if not path or not Path(path).is_file():
        raise ValueError(
            f"expected a database at {path}, but there is none; run `nautilus up` first or set NAUTILUS_HOME"
        )
    return Path(path)


class SqliteFile:
    """A SQLite database, opened for reading only."""

    def __init__(self, path: Path) -> None:
        self._address = f"{path.absolute().as_uri()}?mode=ro"

    def rows(self, statement: str, **values: Value) -> list[dict[str, Any]]:
        # The timeout of `Database`: a recovery or a checkpoint locks the file for a moment.
        with closing(sqlite3.connect(self._address, uri=True, timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(statement, values)]


def in_force(readable: Readable) -> dict[str, tuple[Value, int]]:
    """The value and the version of each parameter that was ever declared."""
    rows = readable.rows("SELECT key, value, version FROM parameter")
    values = texts.read(readable, [json.loads(row["value"]) for row in rows])
    return {row["key"]: (value, row["version"]) for row, value in zip(rows, values, strict=True)}


def previous_value(readable: Readable, key: str) -> Value:
    """The value that a parameter had before its last change; its first value where it was never changed."""
    (row,) = readable.rows("SELECT previous FROM parameter WHERE key = :key", key=key)
    (value,) = texts.read(readable, [json.loads(row["previous"])])
    return value


def freezes(readable: Readable) -> "dict[str, Freeze]":
    """What people have frozen, by scope: a parameter's key, or everything (`*`)."""
    from schema.messages.platform import Freeze

    rows = readable.rows('SELECT scope, who, why, at FROM "freeze"')
    return {row["scope"]: Freeze.model_validate(row | {"at": instant(row["at"])}) for row in rows}


def parameter_states(platform: "Platform", values: Mapping[str, tuple[Value, int]]) -> "tuple[ParameterState, ...]":
    """The declared parameters with what production runs on."""
    from schema.messages.platform import ParameterState

    states = []
    for declared in platform.parameters:
        if declared.key in values:
            stored, version = values[declared.key]
            mode = declared.mode or platform.mode
            value = resolved(declared, stored)
            states.append(ParameterState(declaration=declared, value=value, version=version, mode=mode))
    return tuple(states)


def resolved(declared: "Parameter", stored: Value) -> Value:
    """What production runs on where `stored` was promoted last; a value that is out of bounds yields the default."""
    return stored if declared.refusal(stored) is None else declared.default


class ListedExperiment(NamedTuple):
    """An experiment in a list. Its `state` is waits, runs or closed."""

    experiment_id: str
    parameter: str
    state: str


def experiments(readable: Readable) -> list[ListedExperiment]:
    """Every experiment, oldest first."""
    state = "CASE WHEN closed_at IS NOT NULL THEN 'closed' WHEN opened_at IS NOT NULL THEN 'runs' ELSE 'waits' END"
    rows = readable.rows(f"SELECT experiment_id, parameter, {state} AS state FROM experiment ORDER BY queued_at")
    return [ListedExperiment(**row) for row in rows]


def entries(
    readable: Readable, subject: str | None = None, latest: int | None = None, sequence: int | None = None
) -> "list[LedgerEntry]":
    """The ledger's entries, oldest first: all, those of a `subject`, or the one with the number `sequence`.

    `latest` leaves only so many of the newest. A `subject` makes `sequence` count for nothing.
    """
    from schema.messages.ledger import LedgerEntry

    statement = "SELECT * FROM ledger"
    values: dict[str, Value] = {}
    if subject is not None:
        statement += " WHERE subject = :subject"
        values["subject"] = subject
    elif sequence is not None:
        statement += " WHERE sequence = :sequence"
        values["sequence"] = sequence
    statement += " ORDER BY sequence DESC"
    if latest is not None:
        statement += " LIMIT :latest"
        values["latest"] = latest
    rows = readable.rows(statement, **values)
    return [LedgerEntry.model_validate(row | {"body": json.loads(row["body"])}) for row in reversed(rows)]


def outbox(readable: Readable, after: int | None = None, latest: int = LATEST) -> "list[Event]":
    """Events in order: the next ones after a sequence number, or the latest."""
    from schema.messages.outbox import Event
    from schema.wire import EventType

    types = ", ".join(f"'{type.value}'" for type in EventType)  # a newer version may have recorded other types
    order = "DESC" if after is None else "ASC"
    statement = (
        "SELECT sequence, key, type, subject, at, CAST(data AS TEXT) AS data FROM event"
        f" WHERE type IN ({types}) AND sequence > :after ORDER BY sequence {order} LIMIT :latest"
    )
    rows = readable.rows(statement, after=after or 0, latest=latest)
    events = [Event.model_validate(row | {"at": instant(row["at"]), "data": json.loads(row["data"])}) for row in rows]
    return events if after is not None else events[::-1]


def latest_snapshot(readable: Readable) -> "Snapshot | None":
    """The newest snapshot; None before the first."""
    from schema.messages.observatory import Snapshot

    rows = readable.rows("SELECT CAST(body AS TEXT) AS body FROM snapshot ORDER BY at DESC LIMIT 1")
    return Snapshot.model_validate_json(rows[0]["body"]) if rows else None


def anomalies(readable: Readable, closed: bool = False) -> "list[AnomalyRecord]":
    """The open anomalies, oldest first; with `closed`, the closed ones as well."""
    from schema.messages.observatory import Anomaly, AnomalyRecord

    still_open = "" if closed else " WHERE closed_at IS NULL"
    statement = (
        f"SELECT closed_at, CAST(body AS TEXT) AS body FROM anomaly{still_open} ORDER BY detected_at, anomaly_id"
    )
    return [
        AnomalyRecord(
            anomaly=Anomaly.model_validate_json(row["body"]),
            closed_at=instant(row["closed_at"]) if row["closed_at"] else None,
        )
        for row in readable.rows(statement)
    ]


def subjects(readable: Readable, platform: "Platform") -> list[str]:
    """What may be asked about: what anomalies and cycles were about, then every metric of every task type."""
    from rules.series import METRICS, PLATFORM, SILENCE, subject_of

    rows = readable.rows("SELECT subject FROM anomaly UNION SELECT subject FROM meta_task ORDER BY subject")
    names = [*(declared.name for declared in platform.task_types), PLATFORM]
    metrics = [*(metric.name for metric in METRICS), SILENCE]
    usual = [subject_of(metric, name) for metric in metrics for name in names]
    return list(dict.fromkeys([row["subject"] for row in rows] + usual))


def everything_remembered(readable: Readable, at: datetime) -> "list[tuple[Pattern, Memory]]":
    """Every pattern as judged at `at`, with its observations; the weightiest first."""
    from rules import patterns
    from schema.messages.memory import Memory, PatternKind

    kinds = ", ".join(f"'{kind.value}'" for kind in PatternKind)  # an earlier release may have learned others
    statement = f"SELECT pattern_id, CAST(body AS TEXT) AS body FROM memory WHERE kind IN ({kinds}) ORDER BY pattern_id"
    rows = readable.rows(statement)
    remembered = {row["pattern_id"]: Memory.model_validate_json(row["body"]) for row in rows}
    judged = patterns.judge(remembered, at).values()
    ordered = sorted(judged, key=lambda p: (-(p.support + p.against), p.pattern_id))
    return [(pattern, remembered[pattern.pattern_id]) for pattern in ordered]


def agent_ids(readable: Readable) -> list[str]:
    """Every registered agent."""
    return [row["agent_id"] for row in readable.rows("SELECT agent_id FROM agent ORDER BY agent_id")]


def instant(stored: datetime | str) -> datetime:
    """A stored instant in UTC; SQLite stores it as text without a zone."""
    at = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
