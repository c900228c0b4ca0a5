"""Consolidation (autoDream): reads what happened since the last run, and merges what that teaches into memory.

Facts are gathered before the write lock is taken, so that a long run delays no recorder. What was learned, the cursor
of what was read and the event are one transaction: a run that is repeated counts no fact twice.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from sqlmodel import Session, col, select
from temporalio import activity

from activities import ledger, memory
from activities.database import Database, lock
from activities.events import emit
from activities.history import agent_record, history
from rules import patterns
from rules.patterns import Learned
from schema.messages.cycle import CycleEnd
from schema.messages.events import MemoryConsolidated
from schema.messages.experiment import ExperimentDesign
from schema.messages.ledger import EntryKind
from schema.messages.market import PLATFORM_META, AwardResult
from schema.messages.memory import Lesson, Memory, PatternKind, Symptom
from schema.messages.observatory import Anomaly, Counts
from schema.messages.platform import Platform
from schema.messages.tasks import task_workflow_id
from schema.tables.ledger import LedgerRow
from schema.tables.market import MetaTaskRow, StandingRow
from schema.tables.memory import ConsolidationRow
from schema.tables.observatory import AnomalyRow

SUBJECT = "memory"
# The only metric that decides an experiment, and so the only one that a remedy can be learned for.
METRIC = "success_rate"
# More cycles than these end on no day; what is left is read by the next run.
MOST_CYCLES = 1_000
# Eight occurrences of each hour of the week: enough to leave one out, and few rows.
WEEKS_BACK = timedelta(weeks=8)
# Agents' records are read this far back, because outcomes may come late.
DAYS_BACK = 7
DAY = timedelta(days=1)
# A symptom is what the last week shows; an onset may lie months back.
LONGEST_SYMPTOM = timedelta(days=7)


class ConsolidationActivities:
    """The nightly job that learns."""

    def __init__(self, database: Database, platform: Platform) -> None:
        self._database = database
        self._platform = platform

    @activity.defn
    def consolidate(self, at: datetime) -> Lesson:
        """Read what is new since the last consolidation, merge it, and announce what was learned."""
        until = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        with self._database.reading() as session:
            last = _last_run(session)
            if last is not None and at <= last.at:
                return Lesson.model_validate(last.lesson)
            cursor = last.ledger_sequence if last else 0
            ends = _ended_cycles(session, cursor)
            before = memory.remembered(session)
            learned = [
                *_remedies(session, ends),
                *self._weekly_lows(session, before, until),
                *_work(session, until),
                *_meta_tasks(session, at),
            ]
        after = patterns.merge(before, learned, at)
        lesson = patterns.lesson(patterns.judge(before, last.at if last else at), patterns.judge(after, at), at)
        row = ConsolidationRow(
            at=at,
            ledger_sequence=ends[-1].sequence if ends else cursor,
            lesson=lesson.model_dump(mode="json"),
        )
        with self._database.transaction() as session:
            lock(session, "memory")
            current = _last_run(session)
            if (current.at if current else None) != (last.at if last else None):
                raise RuntimeError(f"expected one run at a time, but another ended at {current and current.at}")
            if last is not None and after == before and row.ledger_sequence == cursor:
                return Lesson(at=at, text=f"nothing new since {last.at:%Y-%m-%d %H:%M} UTC")
            memory.keep(session, before, after)
            session.add(row)
            emit(session, MemoryConsolidated(lesson=lesson), SUBJECT, at.isoformat(), at)
        return lesson

    def _weekly_lows(self, session: Session, before: Mapping[str, Memory], until: datetime) -> Iterator[Learned]:
        if self._platform.observatory.interval_s > 3_600:
            return  # roll-ups of more than an hour cannot show a low hour
        hours: dict[str, set[int]] = defaultdict(set)
        for claim in (entry.claim for entry in before.values()):
            if claim.kind is PatternKind.WEEKLY_LOW and claim.hour is not None:
                hours[claim.symptom.task_type].add(claim.hour)
        for task_type, intervals in history(session, until - WEEKS_BACK, until).items():
            yield from patterns.weekly_lows(METRIC, task_type, intervals, hours[task_type])


def _last_run(session: Session) -> ConsolidationRow | None:
    return session.exec(select(ConsolidationRow).order_by(col(ConsolidationRow.at).desc()).limit(1)).first()


def _ended_cycles(session: Session, after: int) -> Sequence[LedgerRow]:
    return session.exec(
        select(LedgerRow)
        .where(LedgerRow.kind == EntryKind.CYCLE_ENDED.value, LedgerRow.sequence > after)
        .order_by(col(LedgerRow.sequence))
        .limit(MOST_CYCLES)
    ).all()


def _remedies(session: Session, ends: Sequence[LedgerRow]) -> Iterator[Learned]:
    """What the experiments of ended cycles show about their changes."""
    for entry in ends:
        end = ledger.read(CycleEnd, entry.body)
        registered = session.exec(
            select(LedgerRow.body).where(
                LedgerRow.kind == EntryKind.EXPERIMENT_DESIGNED.value, LedgerRow.key == end.cycle_id
            )
        ).first()
        if registered is None:
            continue  # it ended before an experiment
        design = ledger.read(ExperimentDesign, registered)
        remedy = patterns.remedy(end, design, _symptom(session, design))
        if remedy is not None:
            yield remedy


def _symptom(session: Session, design: ExperimentDesign) -> Symptom:
    """What was wrong when the cycle opened: in its anomaly's task type, or in the one of its types that failed most."""
    task = session.get_one(MetaTaskRow, design.cycle_id)
    row = session.get(AnomalyRow, task.anomaly_id) if task.anomaly_id else None
    anomaly = Anomaly.model_validate(row.body) if row else None
    onset = max(anomaly.onset if anomaly else task.opened_at - DAY, task.opened_at - LONGEST_SYMPTOM)
    failures: dict[str, Counter[str]] = {task_type: Counter() for task_type in design.task_types}
    for task_type, intervals in history(session, onset, task.opened_at).items():
        for interval in intervals:
            by_kind = {kind.value: count for kind, count in interval.failures.items()}
            failures.setdefault(task_type, Counter()).update(by_kind)
    task_type = anomaly.task_type if anomaly else ""
    if not task_type:
        task_type = max(design.task_types, key=lambda name: (failures[name].total(), name))
    return Symptom.of(design.metric, task_type, failures.get(task_type, Counter()).items())


def _work(session: Session, until: datetime) -> Iterator[Learned]:
    """How each agent did on each task type, day by day; a week is read again, because outcomes may come late."""
    for days in range(1, DAYS_BACK + 1):
        start = until - days * DAY
        for (agent_id, task_type), counts in agent_record(session, start, start + DAY).items():
            yield patterns.skill(METRIC, task_type, agent_id, start.date().isoformat(), start, counts)


def _meta_tasks(session: Session, at: datetime) -> Iterator[Learned]:
    """How each agent did on meta-tasks; weeks are read again, because a result may be recorded long after it came."""
    rows = session.exec(
        select(StandingRow)
        # Results of users' tasks are in the roll-ups.
        .where(col(StandingRow.at) >= at - WEEKS_BACK, ~col(StandingRow.cycle_id).startswith(task_workflow_id("")))
        .order_by(col(StandingRow.at))
    ).all()
    for row in rows:
        counts = Counts(tasks=1, successes=int(row.result == AwardResult.PROMOTED.value))
        yield patterns.skill(METRIC, PLATFORM_META, row.agent_id, row.cycle_id, row.at, counts)
