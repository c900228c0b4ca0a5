"""Recording: stores the outcomes that are new, counts them, and expires old ones. Functions, no activities.

Roll-ups are kept in the transaction that records the outcomes, so whatever reads them never reads raw outcomes.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

from sqlalchemy import ColumnElement, CursorResult, delete, exists, func, insert
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, SQLModel, col, select
from sqlmodel.sql.expression import SelectOfScalar

from activities.assignments import finish_assignments, recorded_outcomes
from activities.database import lock
from activities.rollups import roll_up
from schema.messages.observatory import Fate, TaskOutcome
from schema.messages.tasks import Settlement, TaskEnding
from schema.tables.experiment import AssignmentRow, ExperimentRow
from schema.tables.market import FillRow, TaskRow
from schema.tables.observatory import AgentRollupRow, OutcomeRow, RetentionRow, RollupRow

# SQLite takes at most 32,766 values in a statement.
RECORDED_AT_A_TIME = 5_000
# Deleting these takes some tenths of a second, during which recorders wait.
EXPIRED_AT_A_TIME = 20_000
# A settlement may take 100 kB, and is read and written again while recorders wait.
FORGOTTEN_AT_A_TIME = 500
# Long enough to compare with the same season of last year.
ROLLUP_RETENTION = timedelta(days=400)
# Built once, as each outcome that comes alone would pay for it.
EXPIRED_BEFORE = select(RetentionRow.before).where(RetentionRow.subject == OutcomeRow.__tablename__)


class Recorded(NamedTuple):
    """How many outcomes had which fate."""

    new: int = 0
    known: int = 0
    conflicting: int = 0
    too_old: int = 0

    def plus(self, other: "Recorded") -> "Recorded":
        return Recorded(*(count + added for count, added in zip(self, other, strict=True)))


def record_outcomes(session: Session, outcomes: Iterable[TaskOutcome], interval_s: int) -> Recorded:
    """Store the outcomes that are new, and count them in roll-ups and experiments."""
    return Recorded(**Counter(fate.value for fate in record_each(session, list(outcomes), interval_s)))


def record_each(session: Session, outcomes: Sequence[TaskOutcome], interval_s: int) -> list[Fate]:
    """Store the outcomes that are new, and count them; the fate of each, in their order.

    One that is older than what has been expired is not stored: it could have been counted before.
    """
    # One order for all writers: the roll-ups before the arms of experiments.
    lock(session, "rollup")
    expired_before = session.exec(EXPIRED_BEFORE).first()

    first_reports: dict[str, TaskOutcome] = {}
    for outcome in outcomes:
        if not _is_too_old(outcome, expired_before):
            first_reports.setdefault(outcome.task_id, outcome)
    stored_before = _store_in_batches(session, list(first_reports.values()), interval_s)
    return _fates(outcomes, stored_before, expired_before)


def _fates(
    outcomes: Sequence[TaskOutcome], stored_before: Mapping[str, TaskOutcome], expired_before: datetime | None
) -> list[Fate]:
    """The fate of each outcome: what was stored before stands, and of a new task the first report."""
    standing = dict(stored_before)
    fates: list[Fate] = []
    for outcome in outcomes:
        if _is_too_old(outcome, expired_before):
            fates.append(Fate.TOO_OLD)
        elif outcome.task_id not in standing:
            standing[outcome.task_id] = outcome
            fates.append(Fate.NEW)
        elif outcome == standing[outcome.task_id]:
            fates.append(Fate.KNOWN)
        else:
            fates.append(Fate.CONFLICTING)
    return fates


def _is_too_old(outcome: TaskOutcome, expired_before: datetime | None) -> bool:
    return expired_before is not None and outcome.finished_at < expired_before


def _store_in_batches(session: Session, outcomes: Sequence[TaskOutcome], interval_s: int) -> dict[str, TaskOutcome]:
    """Store the outcomes of tasks that have none yet; the stored outcomes of the other tasks, by task id."""
    stored_before: dict[str, TaskOutcome] = {}
    for start in range(0, len(outcomes), RECORDED_AT_A_TIME):
        stored_before |= _store_new(session, outcomes[start : start + RECORDED_AT_A_TIME], interval_s)
    return stored_before


def _store_new(session: Session, outcomes: Sequence[TaskOutcome], interval_s: int) -> dict[str, TaskOutcome]:
    """Store one batch, of at most RECORDED_AT_A_TIME outcomes, and count what is new in it."""
    new = {outcome.task_id: outcome for outcome in outcomes}
    stored_before: dict[str, TaskOutcome] = {}
    try:
        # As if all were new: a repeated report is rare, and querying for it first takes time.
        with session.connection().begin_nested():
            _insert(session, new.values())
    except IntegrityError:
        stored_before = recorded_outcomes(session, new)
        for task_id in stored_before:
            del new[task_id]
        _insert(session, new.values())

    if new:
        arms = finish_assignments(session, new)
        roll_up(session, new.values(), arms, interval_s)
    return stored_before


def _insert(session: Session, outcomes: Collection[TaskOutcome]) -> None:
    """Insert outcomes, without the ORM: there may be thousands."""
    rows = [dict(vars(outcome), failure=outcome.failure and outcome.failure.value) for outcome in outcomes]
    if rows:
        session.connection().execute(insert(OutcomeRow.__table__), rows)  # type: ignore[attr-defined]


def expire_outcomes(session: Session, before: datetime, limit: int) -> int:
    """Delete at most `limit` outcomes that finished before an instant, and assignments of experiments closed before it.

    Returns how many of these rows were deleted. With its outcome, a failed task's settlement forgets the message; where
    there are more than FORGOTTEN_AT_A_TIME, fewer outcomes go than `limit`, and the next call goes on. Whatever an open
    experiment may have counted stays. Roll-ups are deleted after ROLLUP_RETENTION.
    """
    lock(session, "rollup")
    cutoff = _advance_retention(session, before)
    old = select(OutcomeRow.task_id).where(col(OutcomeRow.finished_at) < cutoff)
    # The order is total, so that all statements mean the same rows.
    old = old.order_by(col(OutcomeRow.finished_at), col(OutcomeRow.task_id))
    while limit > FORGOTTEN_AT_A_TIME and _failed_tasks(session, old.limit(limit)) > FORGOTTEN_AT_A_TIME:
        limit //= 2
    oldest = old.limit(limit)
    _forget_messages(session, oldest)
    deleted = _delete(session, OutcomeRow, col(OutcomeRow.task_id).in_(oldest))
    for experiment_id in _with_assignments_closed_before(session, cutoff):
        if deleted >= limit:
            return deleted  # the next call deletes the rest
        # All at once, or an audit would take those that are left for all there were.
        deleted += _delete(session, AssignmentRow, col(AssignmentRow.experiment_id) == experiment_id)

    for table in (RollupRow, AgentRollupRow, FillRow):
        _delete(session, table, col(table.start) < cutoff - ROLLUP_RETENTION)
    return deleted


def _failed_tasks(session: Session, expiring: SelectOfScalar[str]) -> int:
    """How many of these tasks have a settlement that says why they failed."""
    return session.exec(select(func.count()).select_from(TaskRow).where(*_failed_among(expiring))).one()


def _failed_among(expiring: SelectOfScalar[str]) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return col(TaskRow.task_id).in_(expiring), col(TaskRow.ending) == TaskEnding.FAILED.value


def _forget_messages(session: Session, expiring: SelectOfScalar[str]) -> None:
    """Clear what the settlements of these tasks still hold of the messages of their failures."""
    for task in session.exec(select(TaskRow).where(*_failed_among(expiring))):
        settlement = Settlement.model_validate(task.settlement)
        label = settlement.failure_reason or settlement.failure
        forgotten = {"reason": f"{label}: the message has expired", "summary": "", "failure_detail": ""}
        task.settlement = settlement.model_copy(update=forgotten).model_dump(mode="json")
        session.add(task)


def _with_assignments_closed_before(session: Session, cutoff: datetime) -> Sequence[str]:
    """The closed experiments that still have assignments, the first that was closed first."""
    assigned = exists().where(col(AssignmentRow.experiment_id) == ExperimentRow.experiment_id)
    closed = select(ExperimentRow.experiment_id).where(col(ExperimentRow.closed_at) < cutoff, assigned)
    return session.exec(closed.order_by(col(ExperimentRow.closed_at))).all()


def _advance_retention(session: Session, before: datetime) -> datetime:
    """Write down for recorders up to when outcomes expire: `before`, or the opening of the oldest open experiment."""
    running = select(func.min(ExperimentRow.opened_at)).where(col(ExperimentRow.closed_at).is_(None))
    oldest_needed = session.exec(running).one() or before
    cutoff = min(before, oldest_needed)
    subject = OutcomeRow.__tablename__
    retention = session.get(RetentionRow, subject) or RetentionRow(subject=subject, before=cutoff)
    retention.before = max(retention.before, cutoff)
    session.add(retention)
    return cutoff


def _delete(session: Session, table: type[SQLModel], condition: ColumnElement[bool]) -> int:
    statement = delete(table).where(condition).execution_options(synchronize_session=False)
    return cast(CursorResult[Any], session.execute(statement)).rowcount
