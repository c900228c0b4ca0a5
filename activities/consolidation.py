"""Consolidation (autoDream): reads what happened since the last run, and merges what that teaches into memory.

Facts are gathered before the write lock is taken, so that a long run delays no recorder. What was learned, the cursor
of what was read and the event are one transaction: a run that is repeated counts no fact twice.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from sqlmodel import Session, col, select
from temporalio import activity

from activities import ledger, memory
from activities.database import Database, lock
from activities.events import emit
from activities.symptoms import symptom
from rules import patterns
from rules.patterns import Learned
from schema.messages.cycle import CycleEnd
from schema.messages.events import MemoryConsolidated
from schema.messages.experiment import ExperimentDesign
from schema.messages.ledger import EntryKind
from schema.messages.memory import Lesson, Symptom
from schema.messages.observatory import Anomaly
from schema.messages.platform import Platform
from schema.parameter_roles import role_of
from schema.tables.ledger import LedgerRow
from schema.tables.market import MetaTaskRow
from schema.tables.memory import ConsolidationRow
from schema.tables.observatory import AnomalyRow

SUBJECT = "memory"
# More cycles than these end on no day; what is left is read by the next run.
MOST_CYCLES = 1_000
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
        """Read what is new since the last consolidation, merge it, and announce what was learned.

        A run for an instant that has been consolidated returns that lesson again.
        """
        with self._database.reading() as session:
            last = _last_run(session)
            if last is not None and at <= last.at:
                return Lesson.model_validate(last.lesson)
            cursor = last.ledger_sequence if last else 0
            ends = _ended_cycles(session, cursor)
            remembered = memory.remembered(session)
            learned = list(self._remedies(session, ends))

        merged = patterns.merge(remembered, learned, at)
        judged_before = patterns.judge(remembered, _time_of(last) or at)
        judged_now = patterns.judge(merged, at)
        lesson = patterns.lesson(judged_before, judged_now, at)
        read_to = ends[-1].sequence if ends else cursor

        with self._database.transaction() as session:
            lock(session, "memory")
            _check_that_none_ran_since(session, last)
            if last is not None and merged == remembered and read_to == cursor:
                return Lesson(at=at, text=f"nothing new since {last.at:%Y-%m-%d %H:%M} UTC")
            memory.keep(session, remembered, merged)
            session.add(ConsolidationRow(at=at, ledger_sequence=read_to, lesson=lesson.model_dump(mode="json")))
            emit(session, MemoryConsolidated(lesson=lesson), SUBJECT, at.isoformat(), at)
        return lesson

    def _remedies(self, session: Session, ends: Sequence[LedgerRow]) -> Iterator[Learned]:
        """What the experiments of ended cycles show about their changes, whatever metric they were to improve."""
        for entry in ends:
            end = ledger.read(CycleEnd, entry.body)
            is_design = LedgerRow.kind == EntryKind.EXPERIMENT_DESIGNED.value
            designed = select(LedgerRow.body).where(is_design, LedgerRow.key == end.cycle_id)
            registered = session.exec(designed).first()
            if registered is None:
                continue  # it ended before an experiment
            design = ledger.read(ExperimentDesign, registered)
            remedy = patterns.remedy(end, design, _symptom(session, design), self._role(design.parameter))
            if remedy is not None:
                yield remedy

    def _role(self, parameter: str) -> str:
        """The role of a declared parameter; empty where it is declared no more."""
        declared = next((p for p in self._platform.parameters if p.key == parameter), None)
        return role_of(declared).value if declared is not None else ""


def _last_run(session: Session) -> ConsolidationRow | None:
    return session.exec(select(ConsolidationRow).order_by(col(ConsolidationRow.at).desc()).limit(1)).first()


def _check_that_none_ran_since(session: Session, last: ConsolidationRow | None) -> None:
    """Raise RuntimeError where another run has ended since `last` was read."""
    current = _last_run(session)
    if _time_of(current) != _time_of(last):
        raise RuntimeError(f"expected one run at a time, but another ended at {_time_of(current)}")


def _time_of(run: ConsolidationRow | None) -> datetime | None:
    return run.at if run else None


def _ended_cycles(session: Session, after: int) -> Sequence[LedgerRow]:
    ended = select(LedgerRow).where(LedgerRow.kind == EntryKind.CYCLE_ENDED.value, LedgerRow.sequence > after)
    return session.exec(ended.order_by(col(LedgerRow.sequence)).limit(MOST_CYCLES)).all()


def _symptom(session: Session, design: ExperimentDesign) -> Symptom:
    """What was wrong when the cycle opened: in its anomaly's task type, or in the worst of those that it touches."""
    task = session.get_one(MetaTaskRow, design.cycle_id)
    row = session.get(AnomalyRow, task.anomaly_id) if task.anomaly_id else None
    anomaly = Anomaly.model_validate(row.body) if row else None
    onset = max(anomaly.onset if anomaly else task.opened_at - DAY, task.opened_at - LONGEST_SYMPTOM)
    task_types = (anomaly.task_type,) if anomaly and anomaly.task_type else design.task_types
    return symptom(session, design.metric, task_types, onset, task.opened_at, design.objectives)
