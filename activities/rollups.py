"""Roll-ups: what each interval's outcomes add up to, by task type, and by arm and agent.

They are kept in the transaction that records the outcomes, and whatever evaluates the past reads them: its cost
depends on the number of intervals and never on the number of tasks. A departure of durations, quality or cost is
judged as the share of tasks beyond a quantile of the baseline, which the sketches of the intervals count exactly.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any, NamedTuple

from sqlalchemy import JSON, LargeBinary, Select, bindparam, delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel, col, select

from activities.database import lock
from activities.sketches import Sketch, above, below, pack, quantile, sketch, unpack, value
from rules.baseline import PRIOR_TASKS
from rules.reasons import by_reason, merged
from schema.failure_kinds import FailureKind
from schema.messages.observatory import Counts, Guardrail, GuardrailKind, Interval, Measures, TaskOutcome
from schema.tables.market import FillRow
from schema.tables.observatory import AgentRollupRow, RollupRow

FAILURE_COLUMNS = {
    FailureKind.TIMEOUT: "timeouts",
    FailureKind.INVALID_RESULT: "invalid_results",
    FailureKind.ERROR: "errors",
    FailureKind.LOST: "lost",
}


class Share(NamedTuple):
    """The share of tasks beyond a quantile of the baseline; `beyond` counts those on the bad side of a limit."""

    sketch: str
    quantile: float
    beyond: Callable[[Sketch, int], int]


# By metric.
SHARES = {
    "slow_share": Share("durations", 0.95, above),
    "duration_share": Share("durations", 0.5, above),
    "low_quality_share": Share("qualities", 0.25, below),
    "high_cost_share": Share("costs", 0.95, above),
}
SUMS = ("tasks", "successes", "duration_sum_s", "rated", "quality_sum", "cost_sum")
SKETCHES = ("durations", "qualities", "costs")
# Columns that do not add up: they are merged with what is stored, under the lock, and replace it.
MERGED = (*SKETCHES, "reasons")
Key = tuple[datetime, str]  # an interval's start and a task type


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

    Two tables: a row for each interval and task type, and under it one for each arm and agent (a cell). `arms` are
    those of the tasks that an experiment exposed.
    """
    agent_rows: list[dict[str, Any]] = []
    groups: dict[Key, list[TaskOutcome]] = defaultdict(list)
    totals: dict[Key, Counter[str]] = defaultdict(Counter)
    for cell, group in _by_cell(outcomes, arms, interval_s):
        sums = _sums(group)
        agent_rows.append(cell | sums)
        key = (cell["start"], cell["task_type"])
        groups[key] += group
        totals[key].update(sums)
    if not groups:
        return

    stored = _stored(session, groups)
    rows = [_row(key, group, totals[key], stored.get(key, {})) for key, group in groups.items()]
    dialect = session.get_bind().dialect.name
    session.execute(_upsert(RollupRow, dialect), rows)
    session.execute(_upsert(AgentRollupRow, dialect), agent_rows)


def _row(key: Key, group: list[TaskOutcome], sums: Counter[str], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The roll-up row that adds a group of outcomes to what is stored under its key."""
    start, task_type = key
    row: dict[str, Any] = {"start": start, "task_type": task_type, **sums}
    failures = Counter(outcome.failure for outcome in group)
    for kind, column in FAILURE_COLUMNS.items():
        row[column] = failures[kind]
    row.update(_merged_sketches(group, stored))
    row["reasons"] = merged([stored.get("reasons", {}), by_reason(group)])
    return row


def rearm(session: Session, outcomes: Iterable[TaskOutcome], arms: Mapping[str, str], interval_s: int) -> None:
    """Move outcomes that were counted in no arm to their arms, for a caller that has locked the roll-ups."""
    exposed = [outcome for outcome in outcomes if outcome.task_id in arms]
    rows = []
    for cell, group in _by_cell(exposed, arms, interval_s):
        sums = _sums(group)
        rows.append(cell | sums)
        rows.append(cell | {name: -number for name, number in sums.items()} | {"arm": ""})
    if not rows:
        return
    session.execute(_upsert(AgentRollupRow, session.get_bind().dialect.name), rows)
    starts = col(AgentRollupRow.start).in_({row["start"] for row in rows})
    emptied = delete(AgentRollupRow).where(col(AgentRollupRow.arm) == "", col(AgentRollupRow.tasks) == 0, starts)
    session.execute(emptied.execution_options(synchronize_session=False))


def count_fill(session: Session, task_type: str, at: datetime, awarded: bool, interval_s: int) -> None:
    """Count a task whose bidding is over: it was awarded (for the first time), or nobody bid."""
    # Every caller emits an event too, before or after: without one order of locks, two callers could deadlock.
    lock(session, "event")
    row = {"start": interval_start(at, interval_s), "task_type": task_type, "tasks": 1, "awarded": int(awarded)}
    session.execute(_upsert(FillRow, session.get_bind().dialect.name), row)


def _by_cell(
    outcomes: Iterable[TaskOutcome], arms: Mapping[str, str], interval_s: int
) -> Iterator[tuple[dict[str, Any], list[TaskOutcome]]]:
    """Outcomes by interval, task type, arm and agent, in this order: the columns of the key, and the group."""
    groups: dict[tuple[float, str, str, str], list[TaskOutcome]] = defaultdict(list)
    for outcome in outcomes:
        interval = outcome.finished_at.timestamp() // interval_s
        groups[interval, outcome.task_type, arms.get(outcome.task_id, ""), outcome.agent_id].append(outcome)
    for (interval, task_type, arm, agent_id), group in sorted(groups.items()):
        start = datetime.fromtimestamp(interval * interval_s, UTC)
        yield {"start": start, "task_type": task_type, "arm": arm, "agent_id": agent_id}, group


def _stored(session: Session, keys: Iterable[Key]) -> dict[Key, Mapping[str, Any]]:
    """The packed sketches and the reasons, by name, of the roll-ups that are there."""
    starts, task_types = zip(*keys, strict=True)
    wanted = {"starts": set(starts), "task_types": set(task_types)}
    return {(row["start"], row["task_type"]): dict(row) for row in session.execute(_stored_query(), wanted).mappings()}


@cache
def _stored_query() -> Select[Any]:
    """Built once, as each outcome that comes alone would pay for it."""
    table = RollupRow.__table__.c  # type: ignore[attr-defined]
    columns = [table[name] for name in ("start", "task_type", *MERGED)]
    starts, task_types = bindparam("starts", expanding=True), bindparam("task_types", expanding=True)
    return select(*columns).where(table.start.in_(starts), table.task_type.in_(task_types))


def _merged_sketches(group: Sequence[TaskOutcome], stored: Mapping[str, Any]) -> dict[str, bytes]:
    added = {
        "durations": sketch([o.duration_s for o in group if o.failure is None]),
        "qualities": sketch([o.quality for o in group if o.quality is not None]),
        "costs": sketch([o.cost for o in group if o.cost]),
    }
    packed = {}
    for name, new in added.items():
        merged = unpack(stored.get(name, b""))
        merged.update(new)
        packed[name] = pack(merged)
    return packed


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
def _upsert(table: type[SQLModel], dialect: str) -> sqlite.Insert | postgresql.Insert:
    """Insert roll-ups, or add their numbers to those that are there; sketches and reasons arrive merged."""
    columns = table.__table__.columns  # type: ignore[attr-defined]
    insert: sqlite.Insert | postgresql.Insert = (sqlite if dialect == "sqlite" else postgresql).insert(columns[0].table)
    new = insert.excluded
    changed = {
        column.name: new[column.name] if isinstance(column.type, LargeBinary | JSON) else column + new[column.name]
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
    tracks: dict[str, list[Rollup]] = defaultdict(list)
    for task_type, *numbers, durations, qualities, costs in session.execute(query.order_by(table.start)):
        tracks[task_type].append(Rollup._make((*numbers, unpack(durations), unpack(qualities), unpack(costs))))
    return dict(tracks)


def together(intervals: Iterable[Rollup]) -> Rollup:
    """What several roll-ups add up to; it starts with the first of them."""
    parts = list(intervals)
    sketches: dict[str, Any] = {name: Counter() for name in SKETCHES}
    for part in parts:
        for name, whole in sketches.items():
            # Half the time of Counter.update; a snapshot spends most of its time here.
            for bucket, count in getattr(part, name).items():
                whole[bucket] += count
    start = min((part.start for part in parts), default=datetime.fromtimestamp(0, UTC))
    sums = {name: sum(getattr(part, name) for part in parts) for name in SUMS}
    return Rollup(start=start, **sums, **sketches)


def measures(total: Rollup) -> Measures:
    """The figures of several roll-ups together; quantiles are those of completed tasks."""

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


def good(rollup: Rollup, objective: Guardrail | None) -> Counts:
    """The tasks of an interval, and those that are good by an objective; without one, those that succeeded.

    Where the objective is a rating, only rated tasks count, as in an experiment (rules.verdict.is_success). The counts
    are exact where the bound lies between two buckets.
    """
    if objective is None or objective.kind is GuardrailKind.COMPLETED:
        return rollup.counts
    bound = objective.bound
    match objective.kind:
        case GuardrailKind.FAST:
            fast = sum(count for bucket, count in rollup.durations.items() if value(bucket) <= bound)
            return Counts(tasks=rollup.tasks, successes=fast)
        case GuardrailKind.WELL_RATED:
            well_rated = sum(count for bucket, count in rollup.qualities.items() if value(bucket) >= bound)
            return Counts(tasks=rollup.rated, successes=well_rated)
        case GuardrailKind.CHEAP:
            # What cost nothing is not in the sketch, and is cheap.
            costly = sum(count for bucket, count in rollup.costs.items() if value(bucket) > bound)
            return Counts(tasks=rollup.tasks, successes=rollup.tasks - costly)
        case GuardrailKind.RATED:
            # A failed task may be rated too; of such ratings there is no count by interval.
            return Counts(tasks=rollup.successes, successes=min(rollup.rated, rollup.successes))


def histories(
    tracks: Mapping[str, Sequence[Rollup]], start: datetime, end: datetime
) -> dict[str, dict[str, list[Interval]]]:
    """The tasks' metrics by name, then by task type, as shares that a detector can judge.

    The limits come from the baseline window [start, end), which must hold enough values for a baseline; a task that was
    not rated (or cost nothing) is no evidence about quality (or cost).
    """
    by_metric: dict[str, dict[str, list[Interval]]] = {
        "success_rate": {
            name: [_interval(r.start, r.tasks, r.successes) for r in track] for name, track in tracks.items()
        },
        "throughput": {name: [_interval(r.start, r.tasks, r.tasks) for r in track] for name, track in tracks.items()},
    }

    for task_type, track in tracks.items():
        baseline = together(rollup for rollup in track if start <= rollup.start < end)
        for metric, share in SHARES.items():
            limit = _limit(baseline, share)
            if limit is not None:
                by_type = by_metric.setdefault(metric, {})
                by_type[task_type] = _beyond(limit, share, track)
    return by_metric


def _limit(baseline: Rollup, share: Share) -> int | None:
    """The bucket beyond which a value is unusual; None where the baseline holds too few values to say."""
    usual: Sketch = getattr(baseline, share.sketch)
    return quantile(usual, share.quantile) if usual.total() >= PRIOR_TASKS else None


def _beyond(limit: int, share: Share, track: Iterable[Rollup]) -> list[Interval]:
    """How many tasks of each interval lie beyond the limit, of those that were measured."""
    intervals = []
    for rollup in track:
        measured: Sketch = getattr(rollup, share.sketch)
        intervals.append(_interval(rollup.start, measured.total(), share.beyond(measured, limit)))
    return intervals


@lru_cache(maxsize=20_000)
def _interval(start: datetime, tasks: int, successes: int) -> Interval:
    """Made once: each snapshot reads thousands of intervals, and all but the last were in the snapshot before."""
    return Interval(start=start, counts=Counts(tasks=tasks, successes=successes))
