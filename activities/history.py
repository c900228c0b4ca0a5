"""History: what was recorded in a span of time, read from the roll-ups. Functions, no activities."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import and_, func, or_
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from activities.parameters import last_change
from activities.rollups import FAILURE_COLUMNS, SKETCHES, good, rollups, together
from rules.reasons import merged
from schema.messages.observatory import Counts, Guardrail, Interval
from schema.messages.platform import ObservatoryRules, Platform
from schema.tables.observatory import OutcomeRow, RollupRow

# With fewer tasks since a change, those since the onset say more.
FEWEST_SINCE_CHANGE = 50


def history(session: Session, since: datetime, until: datetime) -> dict[str, list[Interval]]:
    """The intervals of each task type that start in [since, until), oldest first."""
    rows = session.exec(
        select(RollupRow)
        .options(*(defer(getattr(RollupRow, name)) for name in SKETCHES))
        .where(col(RollupRow.start) >= since, col(RollupRow.start) < until)
        .order_by(col(RollupRow.start))
    ).all()
    tracks: dict[str, list[Interval]] = defaultdict(list)
    for row in rows:
        failures = {kind: getattr(row, column) for kind, column in FAILURE_COLUMNS.items() if getattr(row, column)}
        counts = Counts(tasks=row.tasks, successes=row.successes)
        mean_s = row.duration_sum_s / row.tasks if row.tasks else None
        interval = Interval(
            start=row.start, counts=counts, failures=failures, mean_duration_s=mean_s, reasons=row.reasons
        )
        tracks[row.task_type].append(interval)
    return dict(tracks)


def failures_by_reason(session: Session, since: datetime, until: datetime) -> dict[str, dict[str, int]]:
    """Failures by task type and by reason (`rules.reasons`) in the intervals that start in [since, until)."""
    rows = session.exec(
        select(RollupRow.task_type, RollupRow.reasons).where(
            col(RollupRow.start) >= since, col(RollupRow.start) < until, col(RollupRow.successes) < RollupRow.tasks
        )
    ).all()
    counts: dict[str, list[Mapping[str, int]]] = defaultdict(list)
    for task_type, reasons in rows:
        counts[task_type].append(reasons)
    return {task_type: merged(parts) for task_type, parts in sorted(counts.items())}


def counts_since(
    session: Session,
    task_types: Sequence[str],
    since: datetime,
    until: datetime | None = None,
    objectives: Mapping[str, Guardrail] | None = None,
) -> Counts:
    """Tasks and successes of some task types in the intervals that start at `since` or later (and before `until`).

    A success is what is good by the `objectives`, where there are some.
    """
    until = until or datetime.max.replace(tzinfo=UTC)
    if objectives:
        tracks = rollups(session, since, until, task_types)
        good_by_type = [good(together(track), objectives.get(name)) for name, track in tracks.items()]
        return Counts.total(good_by_type)

    sums = select(func.sum(RollupRow.tasks), func.sum(RollupRow.successes)).where(
        col(RollupRow.task_type).in_(task_types), col(RollupRow.start) >= since, col(RollupRow.start) < until
    )
    tasks, successes = session.exec(sums).one()
    return Counts(tasks=tasks or 0, successes=successes or 0)  # the sum of no rows is NULL


def counts_of_started(
    session: Session, since: datetime, until: datetime | None = None, well_rated: Mapping[str, float] | None = None
) -> Counts:
    """Tasks of all types, and successes, that started at `since` or later (and before `until`) and have ended.

    Of the types in `well_rated` a success is one rated so or higher, and tasks without a rating do not count.
    """
    bounds = well_rated or {}
    others = col(OutcomeRow.task_type).not_in(bounds)
    rated = [
        and_(col(OutcomeRow.task_type) == name, col(OutcomeRow.quality) >= bound) for name, bound in bounds.items()
    ]
    succeeded = func.count().filter(or_(and_(others, col(OutcomeRow.failure).is_(None)), *rated))
    query = select(func.count(), succeeded).where(col(OutcomeRow.started_at) >= since)
    query = query.where(or_(others, col(OutcomeRow.quality).is_not(None)))
    if until is not None:
        query = query.where(col(OutcomeRow.started_at) < until)
    tasks, successes = session.exec(query).one()
    return Counts(tasks=tasks, successes=successes)


def counted_from(session: Session, platform: Platform, task_types: Sequence[str], onset: datetime) -> datetime:
    """From when on tasks show what is wrong now: the onset, or the last change of a parameter after it.

    What the tasks did before a change says nothing of what it has left to mend.
    """
    changed = last_change(session, platform, task_types)
    if changed is None or changed <= onset:
        return onset
    return changed if counts_since(session, task_types, changed).tasks >= FEWEST_SINCE_CHANGE else onset


def healthy_counts(
    session: Session,
    task_types: Sequence[str],
    at: datetime,
    rules: ObservatoryRules,
    objectives: Mapping[str, Guardrail] | None = None,
) -> Counts | None:
    """The counts of the baseline window before the guard gap; None where nothing was recorded there."""
    counts = counts_since(session, task_types, *baseline_window(at, rules), objectives)
    return counts if counts.tasks else None


def baseline_window(at: datetime, rules: ObservatoryRules) -> tuple[datetime, datetime]:
    """The start and the end of the baseline window of `at`: it ends before the guard gap."""
    end = at - timedelta(seconds=rules.guard_s)
    return end - timedelta(seconds=rules.baseline_s), end
