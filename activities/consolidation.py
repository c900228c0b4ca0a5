"""Consolidation (autoDream): reads what happened since it last did, and merges what that teaches into memory.

Facts are gathered before the write lock is taken, so that a long night holds no recorder up. What was learned, the
cursors of what was read and the event are one transaction: a night that is taken twice teaches nothing twice.
"""

from collections import Counter
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
# The only metric that an experiment is judged by, and so the only one that a remedy can be known for.
METRIC = "success_rate"
# More cycles than these do not end in a night; what is left is read in the next.
MOST_CYCLES = 1_000
# Eight occurrences of each hour of the week: enough to leave one out, and little to read.
WEEKS_BACK = timedelta(weeks=8)
# Records of agents are not read further back: whoever was away for longer starts afresh.
DAYS_BACK = 7
DAY = timedelta(days=1)
# A symptom is what its latest week shows; an onset may lie months back.
LONGEST_SYMPTOM = timedelta(days=7)


class ConsolidationActivities:
    """Learns at night."""

    def __init__(self, database: Database, platform: Platform) -> None:
        self._database = database
        self._platform = platform

    @activity.defn
    def consolidate(self, at: datetime) -> Lesson:
        """Read what is new since the last consolidation, merge it, and announce what was learned."""
        until = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        with self._database.reading() as session:
            last = _last(session)
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
            current = _last(session)
            if (current.at if current else None) != (last.at if last else None):
                raise RuntimeError(f"expected to consolidate alone, but another one of {current and current.at} did")
            if last is not None and after == before and row.ledger_sequence == cursor:
                return Lesson(at=at, text=f"nothing new since {last.at:%Y-%m-%d %H:%M} UTC")
            memory.keep(session, before, after)
            session.add(row)
            emit(session, MemoryConsolidated(lesson=lesson), SUBJECT, at.isoformat(), at)
        return lesson

    def _weekly_lows(self, session: Session, before: Mapping[str, Memory], until: datetime) -> Iterator[Learned]:
        if self._platform.observatory.interval_s > 3_600:
            return  # such roll-ups do not tell the hours of a day apart
        known_lows = [m.claim for m in before.values() if m.claim.kind is PatternKind.WEEKLY_LOW]
        for task_type, intervals in history(session, until - WEEKS_BACK, until).items():
            hours = {c.hour for c in known_lows if c.hour is not None and c.symptom.task_type == task_type}
            yield from patterns.weekly_lows(METRIC, task_type, intervals, hours)


def _last(session: Session) -> ConsolidationRow | None:
    return session.exec(select(ConsolidationRow).order_by(col(ConsolidationRow.at).desc()).limit(1)).first()


def _ended_cycles(session: Session, after: int) -> Sequence[LedgerRow]:
    return session.exec(
        select(LedgerRow)
        .where(LedgerRow.kind == EntryKind.CYCLE_ENDED.value, LedgerRow.sequence > after)
        .order_by(col(LedgerRow.sequence))
        .limit(MOST_CYCLES)
    ).all()


def _remedies(session: Session, ends: Sequence[LedgerRow]) -> Iterator[Learned]:
    """What the experiments of ended cycles say about their changes."""
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
        if (learned := patterns.remedy(end, design, _symptom(session, design))) is not None:
            yield learned


def _symptom(session: Session, design: ExperimentDesign) -> Symptom:
    """What was wrong when the cycle opened: in the task type of its anomaly, or that of its types that failed most."""
    task = session.get_one(MetaTaskRow, design.cycle_id)
    row = session.get(AnomalyRow, task.anomaly_id) if task.anomaly_id else None
    anomaly = Anomaly.model_validate(row.body) if row else None
    onset = max(anomaly.onset if anomaly else task.opened_at - DAY, task.opened_at - LONGEST_SYMPTOM)
    failures: dict[str, Counter[str]] = {task_type: Counter() for task_type in design.task_types}
    for task_type, intervals in history(session, onset, task.opened_at).items():
        for interval in intervals:
            failures.setdefault(task_type, Counter()).update({k.value: n for k, n in interval.failures.items()})
    named = anomaly.task_type if anomaly else ""
    task_type = named or max(design.task_types, key=lambda name: (failures[name].total(), name))
    return Symptom.of(design.metric, task_type, failures.get(task_type, Counter()).items())


def _work(session: Session, until: datetime) -> Iterator[Learned]:
    """How each agent did on each task type, day by day; read again for a week, because outcomes may come late."""
    for days in range(1, DAYS_BACK + 1):
        start = until - days * DAY
        for (agent_id, task_type), done in agent_record(session, start, start + DAY).items():
            yield patterns.skill(METRIC, task_type, agent_id, start.date().isoformat(), start, done)


def _meta_tasks(session: Session, at: datetime) -> Iterator[Learned]:
    """How each agent did on meta-tasks. Read again for some weeks: a result may be written long after its instant."""
    rows = session.exec(
        select(StandingRow)
        # What came of users' tasks is in the roll-ups.
        .where(col(StandingRow.at) >= at - WEEKS_BACK, ~col(StandingRow.cycle_id).startswith(task_workflow_id("")))
        .order_by(col(StandingRow.at))
    ).all()
    for row in rows:
        counts = Counts(tasks=1, successes=int(row.result == AwardResult.PROMOTED.value))
        yield patterns.skill(METRIC, PLATFORM_META, row.agent_id, row.cycle_id, row.at, counts)
