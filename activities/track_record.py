"""Track record: all that a platform has written down of its cycles, for whoever judges them. No activities."""

from datetime import datetime
from typing import NamedTuple

from sqlmodel import Session, col, func, select

from activities import ledger
from activities.accounts import balance
from activities.database import Database
from schema.messages.events import AnomalyDetected
from schema.messages.experiment import ExperimentDesign, Promotion
from schema.messages.ledger import EntryKind
from schema.messages.observatory import Anomaly
from schema.tables.events import EventRow
from schema.tables.experiment import ExperimentRow
from schema.tables.ledger import LedgerRow
from schema.tables.market import AgentRow, MetaTaskRow
from schema.tables.observatory import AnomalyRow
from schema.tables.proposals import ProposalRow
from schema.wire import EventType

BY_PEOPLE = (
    EntryKind.PERSON_ACTED,
    EntryKind.ANOMALY_CLOSED,
    EntryKind.PARAMETER_FROZEN,
    EntryKind.PARAMETER_THAWED,
)


class CycleRecord(NamedTuple):
    """One cycle; `ending` is None while it runs."""

    cycle_id: str
    subject: str
    opened_at: datetime
    ending: str | None
    ended_at: datetime | None


class Swap(NamedTuple):
    """A promotion, or the rollback of one."""

    at: datetime
    change: Promotion
    is_rollback: bool


class Proposed(NamedTuple):
    """A proposal that came to the vote."""

    cycle_id: str
    agent_id: str
    at: datetime


class AgentRecord(NamedTuple):
    """What an agent has come to: its standing (0 to 1) and its credits."""

    standing: float
    balance: int


class Call(NamedTuple):
    """A call for a person about an anomaly, beside the cycles on it or in their place."""

    subject: str
    at: datetime


class TrackRecord(NamedTuple):
    """Everything in the order in which it happened; designs by cycle, agents by name."""

    anomalies: tuple[Anomaly, ...]
    cycles: tuple[CycleRecord, ...]
    designs: dict[str, ExperimentDesign]
    swaps: tuple[Swap, ...]
    proposals: tuple[Proposed, ...]
    agents: dict[str, AgentRecord]
    ledger_entries: int
    human_actions: int
    calls: tuple[Call, ...] = ()


def open_cycles(database: Database) -> list[str]:
    """The workflow ids of the cycles that run, sorted."""
    running = select(MetaTaskRow.workflow_id).where(col(MetaTaskRow.ended_at).is_(None))
    with database.reading() as session:
        return sorted(session.exec(running))


def track_record(database: Database) -> TrackRecord:
    """All that is recorded so far, in one consistent reading."""
    with database.reading() as session:
        anomaly_rows = session.exec(select(AnomalyRow).order_by(col(AnomalyRow.detected_at)))
        cycle_rows = session.exec(select(MetaTaskRow).order_by(col(MetaTaskRow.opened_at)))
        proposal_rows = session.exec(select(ProposalRow).order_by(col(ProposalRow.at)))
        experiment_rows = session.exec(select(ExperimentRow))
        agent_rows = session.exec(select(AgentRow))

        return TrackRecord(
            anomalies=tuple(Anomaly.model_validate(row.body) for row in anomaly_rows),
            cycles=tuple(
                CycleRecord(row.cycle_id, row.subject, row.opened_at, row.ending, row.ended_at) for row in cycle_rows
            ),
            designs={row.experiment_id: ExperimentDesign.model_validate(row.design) for row in experiment_rows},
            swaps=_swaps(session),
            proposals=tuple(Proposed(row.cycle_id, row.agent_id, row.at) for row in proposal_rows),
            agents={row.agent_id: AgentRecord(row.standing, balance(session, row.agent_id)) for row in agent_rows},
            ledger_entries=session.exec(select(func.count()).select_from(LedgerRow)).one(),
            human_actions=_human_actions(session),
            calls=_calls(session),
        )


def _swaps(session: Session) -> tuple[Swap, ...]:
    kinds = (EntryKind.PARAMETER_PROMOTED.value, EntryKind.PARAMETER_ROLLED_BACK.value)
    entries = select(LedgerRow).where(col(LedgerRow.kind).in_(kinds)).order_by(col(LedgerRow.sequence))
    return tuple(
        Swap(
            at=datetime.fromisoformat(entry.at),
            change=ledger.read(Promotion, entry.body),
            is_rollback=entry.kind == EntryKind.PARAMETER_ROLLED_BACK,
        )
        for entry in session.exec(entries)
    )


def _human_actions(session: Session) -> int:
    by_people = col(LedgerRow.kind).in_([kind.value for kind in BY_PEOPLE])
    return session.exec(select(func.count()).select_from(LedgerRow).where(by_people)).one()


def _calls(session: Session) -> tuple[Call, ...]:
    """Each anomaly with a need for a person is announced once without an attempt; the outbox must not be pruned."""
    announced = select(EventRow).where(EventRow.type == EventType.ANOMALY_DETECTED.value)
    events = [(row, AnomalyDetected.model_validate(row.data)) for row in session.exec(announced)]
    return tuple(
        Call(detected.anomaly.subject, row.at)
        for row, detected in events
        if detected.attempt is None and detected.anomaly.escalation
    )
