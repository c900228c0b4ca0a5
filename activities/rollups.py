"""Roll-ups: what each interval's outcomes add up to, by task type, and by arm and agent.

They are kept in the transaction that records the outcomes, and everything that looks back reads them: its cost depends
on the intervals it looks at and never on how many tasks there were. A departure of durations, quality or cost is judged
as the share of tasks beyond a quantile of the baseline, which the sketches of the intervals count exactly.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import LargeBinary, delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel, col, select

from activities.database import lock
from activities.sketches import Sketch, above, below, pack, quantile, sketch, unpack, value
from rules.baseline import PRIOR_TASKS
from schema.messages.observatory import (
    Counts,
    FailureKind,
    Guardrail,
    GuardrailKind,
    Interval,
    Measures,
    TaskOutcome,
)
from schema.tables.market import FillRow
from schema.tables.observatory import AgentRollupRow, RollupRow

FAILURE_COLUMNS = {
    FailureKind.TIMEOUT: "timeouts",
    FailureKind.INVALID_RESULT: "invalid_results",
    FailureKind.ERROR: "errors",
    FailureKind.LOST: "lost",
}
# Which sketch, the baseline's quantile that is the limit, and on which side of it tasks are bad.
SHARES = {
    "slow_share": ("durations", 0.95, above),
    "duration_share": ("durations", 0.5, above),
    "low_quality_share": ("qualities", 0.25, below),
    "high_cost_share": ("costs", 0.95, above),
}
SKETCHES = ("durations", "qualities", "costs")


class Rollup(NamedTuple):
    """One interval, or several together. `durations` are those of completed tasks, `costs` those that are not 0.

    A task that failed is counted by the success rate: one cause, one anomaly.
    """

    start: datetime
    tasks: int
    successes: int
    duration_sum_s: float
    rated: int
    quality_sum: float
    cost_sum: float
    durations: Sketch
    qualities: Sketch
    costs: Sketch

    @property
    def counts(self) -> Counts:
        return Counts(tasks=self.tasks, successes=self.successes)


def interval_start(at: datetime, interval_s: int) -> datetime:
    """The start of the roll-up interval that `at` falls into; intervals are aligned to the Unix epoch."""
    return datetime.fromtimestamp(at.timestamp() // interval_s * interval_s, UTC)


def roll_up(session: Session, outcomes: Iterable[TaskOutcome], arms: Mapping[str, str], interval_s: int) -> None:
    """Count outcomes in the intervals they finished in, for a caller that has locked the roll-ups.

    `arms` are those of the tasks that an experiment exposed.
    """
    parts: dict[tuple[float, str, str, str], list[TaskOutcome]] = defaultdict(list)
    for outcome in outcomes:
        slot = outcome.finished_at.timestamp() // interval_s
        parts[slot, outcome.task_type, arms.get(outcome.task_id, ""), outcome.agent_id].append(outcome)
    if not parts:
        return
    groups: dict[tuple[datetime, str], list[TaskOutcome]] = defaultdict(list)
    totals: dict[tuple[datetime, str], Counter[str]] = defaultdict(Counter)
    agents = []
    for (_, task_type, arm, agent_id), part in sorted(parts.items()):
        start, sums = interval_start(part[0].finished_at, interval_s), _sums(part)
        groups[start, task_type] += part
        totals[start, task_type].update(sums)
        agents.append({"start": start, "task_type": task_type, "arm": arm, "agent_id": agent_id, **sums})
    table = RollupRow.__table__.c  # type: ignore[attr-defined]
    kept = session.execute(
        select(*(table[name] for name in ("start", "task_type", *SKETCHES))).where(
            table.start.in_({start for start, _ in groups}), table.task_type.in_({name for _, name in groups})
        )
    )
    before = {(start, task_type): sketches for start, task_type, *sketches in kept}
    rows = []
    for (start, task_type), group in groups.items():
        failures = Counter(outcome.failure for outcome in group)
        row: dict[str, Any] = {"start": start, "task_type": task_type, **totals[start, task_type]}
        row |= {column: failures[kind] for kind, column in FAILURE_COLUMNS.items()}
        added = (
            sketch([o.duration_s for o in group if o.failure is None]),
            sketch([o.quality for o in group if o.quality is not None]),
            sketch([o.cost for o in group if o.cost]),
        )
        stored = before.get((start, task_type), (b"",) * len(SKETCHES))
        for name, old, new in zip(SKETCHES, stored, added, strict=True):
            merged = unpack(old)
            merged.update(new)
            row[name] = pack(merged)
        rows.append(row)
    dialect = session.get_bind().dialect.name
    session.execute(_adding(RollupRow, dialect), rows)
    session.execute(_adding(AgentRollupRow, dialect), agents)


def rearm(session: Session, outcomes: Iterable[TaskOutcome], arms: Mapping[str, str], interval_s: int) -> None:
    """Count outcomes in their arms that were counted in none, for a caller that has locked the roll-ups."""
    parts: dict[tuple[float, str, str, str], list[TaskOutcome]] = defaultdict(list)
    for outcome in outcomes:
        if (arm := arms.get(outcome.task_id)) is not None:
            parts[outcome.finished_at.timestamp() // interval_s, outcome.task_type, arm, outcome.agent_id].append(
                outcome
            )
    rows = []
    for (_, task_type, arm, agent_id), part in sorted(parts.items()):
        key = {"start": interval_start(part[0].finished_at, interval_s), "task_type": task_type, "agent_id": agent_id}
        sums = _sums(part)
        rows += [key | sums | {"arm": arm}, key | {name: -number for name, number in sums.items()} | {"arm": ""}]
    if rows:
        session.execute(_adding(AgentRollupRow, session.get_bind().dialect.name), rows)
        left = (col(AgentRollupRow.arm) == "", col(AgentRollupRow.tasks) == 0)
        starts = col(AgentRollupRow.start).in_({row["start"] for row in rows})
        session.execute(delete(AgentRollupRow).where(*left, starts).execution_options(synchronize_session=False))


def count_fill(session: Session, task_type: str, at: datetime, awarded: bool, interval_s: int) -> None:
    """Count a task whose bidding is over: it was awarded (for the first time), or nobody bid."""
    # Every caller announces something too, before or after: in one order, or two of them wait for each other.
    lock(session, "event")
    row = {"start": interval_start(at, interval_s), "task_type": task_type, "tasks": 1, "awarded": int(awarded)}
    session.execute(_adding(FillRow, session.get_bind().dialect.name), row)


def _sums(group: Sequence[TaskOutcome]) -> dict[str, Any]:
    ratings = [outcome.quality for outcome in group if outcome.quality is not None]
    return {
        "tasks": len(group),
        "successes": sum([outcome.failure is None for outcome in group]),
        "duration_sum_s": sum([outcome.duration_s for outcome in group]),
        "rated": len(ratings),
        "quality_sum": sum(ratings),
        "cost_sum": sum([outcome.cost for outcome in group]),
    }


@cache
def _adding(table: type[SQLModel], dialect: str) -> sqlite.Insert | postgresql.Insert:
    """Insert roll-ups, or add their numbers to those that are there; sketches come merged."""
    columns = table.__table__.columns  # type: ignore[attr-defined]
    insert: sqlite.Insert | postgresql.Insert = (sqlite if dialect == "sqlite" else postgresql).insert(columns[0].table)
    new = insert.excluded
    changed = {
        column.name: new[column.name] if isinstance(column.type, LargeBinary) else column + new[column.name]
        for column in columns
        if not column.primary_key
    }
    keys = [column for column in columns if column.primary_key]
    return insert.on_conflict_do_update(index_elements=keys, set_=changed)


def rollups(
    session: Session, since: datetime, until: datetime, task_types: Sequence[str] | None = None
) -> dict[str, list[Rollup]]:
    """The roll-ups of each task type that start in [since, until), oldest first."""
    table = RollupRow.__table__.c  # type: ignore[attr-defined]
    query = select(table.task_type, *(table[name] for name in Rollup._fields)).where(
        table.start >= since, table.start < until
    )
    if task_types is not None:
        query = query.where(table.task_type.in_(task_types))
    found: dict[str, list[Rollup]] = defaultdict(list)
    for task_type, *numbers, durations, qualities, costs in session.execute(query.order_by(table.start)):
        found[task_type].append(Rollup._make((*numbers, *map(unpack, (durations, qualities, costs)))))
    return dict(found)


def together(several: Iterable[Rollup]) -> Rollup:
    """What several roll-ups add up to; it starts with the first of them."""
    found = list(several)
    start = min((one.start for one in found), default=datetime.fromtimestamp(0, UTC))
    numbers = (sum(one[field] for one in found) for field in range(1, 7))  # type: ignore[misc]
    sketches: tuple[Sketch, ...] = (Counter(), Counter(), Counter())
    for one in found:
        for whole, part in zip(sketches, one[7:], strict=True):
            for bucket, times in part.items():  # half the time of Counter.update, and most of a snapshot's
                whole[bucket] += times
    return Rollup._make((start, *numbers, *sketches))


def measures(total: Rollup) -> Measures:
    """What a report says of some roll-ups together; quantiles are those of completed tasks."""

    def duration(share: float) -> float | None:
        bucket = quantile(total.durations, share)
        return None if bucket is None else value(bucket)

    return Measures(
        mean_duration_s=total.duration_sum_s / total.tasks if total.tasks else None,
        p50_duration_s=duration(0.5),
        p95_duration_s=duration(0.95),
        mean_quality=total.quality_sum / total.rated if total.rated else None,
        spending=total.cost_sum,
    )


def good(one: Rollup, objective: Guardrail | None) -> Counts:
    """The tasks of an interval, and those that are good by an objective; without one, those that succeeded.

    Exact, where the bound lies between two buckets.
    """
    bound, within = (objective.bound if objective else 0.0), one.successes
    match objective.kind if objective else GuardrailKind.COMPLETED:
        case GuardrailKind.FAST:
            within = sum(count for bucket, count in one.durations.items() if value(bucket) <= bound)
        case GuardrailKind.WELL_RATED:
            within = sum(count for bucket, count in one.qualities.items() if value(bucket) >= bound)
        case GuardrailKind.CHEAP:
            within = one.tasks - sum(count for bucket, count in one.costs.items() if value(bucket) > bound)
    return Counts(tasks=one.tasks, successes=within)


def histories(
    tracks: Mapping[str, Sequence[Rollup]], start: datetime, end: datetime
) -> dict[str, dict[str, list[Interval]]]:
    """Every metric of the tasks by name, then by task type, as shares that a detector can judge.

    The limits come from the baseline window [start, end), which must hold enough values for a baseline; a task that was
    not rated (or cost nothing) is no evidence about quality (or cost).
    """
    found: dict[str, dict[str, list[Interval]]] = {
        "success_rate": {name: [_interval(r, r.tasks, r.successes) for r in track] for name, track in tracks.items()},
        "throughput": {name: [_interval(r, r.tasks, r.tasks) for r in track] for name, track in tracks.items()},
    }
    for task_type, track in tracks.items():
        usual = together(one for one in track if start <= one.start < end)
        for metric, (field, share, beyond) in SHARES.items():
            normal: Sketch = getattr(usual, field)
            limit = quantile(normal, share)
            if limit is not None and normal.total() >= PRIOR_TASKS:
                sketches = ((one, getattr(one, field)) for one in track)
                intervals = [_interval(one, counted.total(), beyond(counted, limit)) for one, counted in sketches]
                found.setdefault(metric, {})[task_type] = intervals
    return found


def _interval(one: Rollup, tasks: int, successes: int) -> Interval:
    return Interval(start=one.start, counts=Counts(tasks=tasks, successes=successes))
