"""Market: agents, meta-tasks, awards, standing, transfers, and the end of a cycle.

The end of a cycle is one transaction: its ledger entry, the winner's reward, the standing it earned, the released locks
and the event. Doing it twice finds the entry and changes nothing.
"""

from datetime import datetime, timedelta

from sqlalchemy import func
from sqlmodel import Session, col, select
from temporalio import activity

from activities import ledger
from activities.database import Database, insert_new, lock
from activities.events import emit
from activities.experiment import parameter_states, release
from activities.observatory import counts_since, guardrails, healthy_counts
from rules import standing as standings
from schema.messages.cycle import Briefing, CycleEnd, CycleOpening, RecordedAct
from schema.messages.events import EventType
from schema.messages.ledger import EntryKind
from schema.messages.market import Agent, Award, AwardResult, Standing
from schema.messages.platform import Platform
from schema.tables.market import AgentRow, AwardRow, MetaTaskRow, StandingRow, TransferRow

TREASURY = "treasury"


def register_agent(
    database: Database, agent_id: str, operator: str, at: datetime, public_key: str | None = None
) -> bool:
    """Add an agent under its operator; False where the agent is there already. Raises ValueError for a bad name."""
    # A name that no message can carry would stop every cycle that reads it.
    Agent(agent_id=agent_id, operator=operator, standing=standings.NEWCOMER_STANDING)
    row = {
        "agent_id": agent_id,
        "operator": operator,
        "registered_at": at,
        "standing": standings.NEWCOMER_STANDING,
        "successes": 0,
        "attempts": 0,
        "suspended": False,
        "public_key": public_key,
    }
    with database.transaction() as session:
        return bool(insert_new(session, AgentRow, [row], returning="agent_id"))


def roster(session: Session) -> tuple[Agent, ...]:
    """Every registered agent, with the awards it is working on as its load."""
    busy = (
        select(AwardRow.agent_id, func.count())
        .join(MetaTaskRow, col(MetaTaskRow.cycle_id) == AwardRow.cycle_id)
        .where(col(MetaTaskRow.ended_at).is_(None))
        .group_by(AwardRow.agent_id)
    )
    load = dict(session.exec(busy).all())
    rows = session.exec(select(AgentRow).order_by(AgentRow.agent_id)).all()
    return tuple(Agent(**row.model_dump(exclude={"registered_at"}), load=load.get(row.agent_id, 0)) for row in rows)


def balance(session: Session, account: str) -> int:
    """Credits of an account: what came in less what went out."""
    received = session.exec(select(func.coalesce(func.sum(TransferRow.amount), 0)).where(TransferRow.credit == account))
    paid = session.exec(select(func.coalesce(func.sum(TransferRow.amount), 0)).where(TransferRow.debit == account))
    return int(received.one()) - int(paid.one())


def transfer(session: Session, reference: str, debit: str, credit: str, amount: int, at: datetime, memo: str) -> None:
    """Move credits, once per reference."""
    row = {"reference": reference, "debit": debit, "credit": credit, "amount": amount, "at": at, "memo": memo}
    insert_new(session, TransferRow, [row], returning="reference")


def _move_standing(session: Session, result: Standing) -> None:
    lock(session, f"standing:{result.agent_id}")
    agent = session.get_one(AgentRow, result.agent_id)
    moved = standings.after(agent.standing, result.result)
    row = {**result.model_dump(), "result": result.result.value, "standing": moved}
    if not insert_new(session, StandingRow, [row], returning="agent_id"):
        return
    agent.standing, agent.attempts = moved, agent.attempts + 1
    agent.successes += result.result is AwardResult.PROMOTED
    agent.suspended = standings.is_suspended(agent.standing, agent.attempts)
    session.add(agent)


class MarketActivities:
    """Opens, awards and closes meta-tasks."""

    def __init__(self, database: Database, platform: Platform) -> None:
        self._database = database
        self._platform = platform

    @activity.defn
    def open_meta_task(self, opening: CycleOpening) -> Briefing:
        """Number the attempt and gather what the cycle must know; the same request is opened once.

        A request that another run has already had comes back as a duplicate of that run's cycle.
        """
        request, at = opening.request, opening.at
        with self._database.transaction() as session:
            lock(session, f"subject:{request.subject}")
            row = session.exec(select(MetaTaskRow).where(MetaTaskRow.request_id == request.request_id)).first()
            if row is None:
                row = self._new_meta_task(session, opening)
            task_types = self._task_types(opening)
            window = timedelta(seconds=self._platform.observatory.floor_window_s)
            onset = request.anomaly.onset if request.anomaly else at - window
            return Briefing(
                cycle_id=row.cycle_id,
                attempt=row.attempt,
                failed_attempts=_failures_in_a_row(session, row),
                rules=self._platform.cycle,
                parameters=parameter_states(session, self._platform),
                agents=roster(session),
                baseline=counts_since(session, task_types, onset),
                baselines={t.name: counts_since(session, [t.name], onset) for t in self._platform.task_types},
                healthy=healthy_counts(session, task_types, at, self._platform.observatory),
                guardrails=guardrails(session, task_types, at, self._platform.observatory),
                duplicate=row.run_id != opening.run_id,
            )

    def _new_meta_task(self, session: Session, opening: CycleOpening) -> MetaTaskRow:
        request, at = opening.request, opening.at
        last = session.exec(select(func.max(MetaTaskRow.attempt)).where(MetaTaskRow.subject == request.subject)).one()
        attempt = (last or 0) + 1
        row = MetaTaskRow(
            cycle_id=f"{request.subject}#{attempt}",
            request_id=request.request_id,
            subject=request.subject,
            attempt=attempt,
            workflow_id=opening.workflow_id,
            run_id=opening.run_id,
            anomaly_id=request.anomaly.anomaly_id if request.anomaly else None,
            opened_at=at,
        )
        session.add(row)
        emit(session, EventType.META_TASK_OPENED, row.subject, row.cycle_id, at, cycle_id=row.cycle_id)
        return row

    def _task_types(self, opening: CycleOpening) -> list[str]:
        """The task types whose counts are the baseline: the anomaly's, or all that the proposed parameter touches."""
        request = opening.request
        if request.anomaly is not None:
            named = request.anomaly.task_type
            return [named] if named else [declared.name for declared in self._platform.task_types]
        assert request.proposal is not None
        return [t for p in self._platform.parameters if p.key == request.proposal.parameter for t in p.task_types]

    @activity.defn
    def record_award(self, award: Award, at: datetime) -> None:
        """Write down who got the meta-task and why."""
        row = {"cycle_id": award.cycle_id, "agent_id": award.agent_id, "at": at, "body": award.model_dump(mode="json")}
        with self._database.transaction() as session:
            if insert_new(session, AwardRow, [row], returning="agent_id"):
                key = f"{award.cycle_id}:{award.agent_id}"
                emit(session, EventType.META_TASK_AWARDED, award.cycle_id, key, at, award=award.model_dump(mode="json"))

    @activity.defn
    def record_missed_award(self, missed: Standing) -> None:
        """The winner let the deadline pass: it loses standing, once."""
        with self._database.transaction() as session:
            _move_standing(session, missed)
            key = f"{missed.cycle_id}:{missed.agent_id}"
            emit(session, EventType.AWARD_MISSED, missed.cycle_id, key, missed.at, agent_id=missed.agent_id)

    @activity.defn
    def record_act(self, recorded: RecordedAct) -> None:
        """Write down what a person did to a cycle, and why."""
        key = f"{recorded.cycle_id}:{recorded.act.message_id}"
        with self._database.transaction() as session:
            if ledger.append(session, EntryKind.PERSON_ACTED, key, recorded.cycle_id, recorded.at, recorded):
                body = recorded.model_dump(mode="json")
                emit(session, EventType.PERSON_ACTED, recorded.cycle_id, key, recorded.at, act=body)

    @activity.defn
    def end_cycle(self, end: CycleEnd) -> None:
        """Write the ending to the ledger and settle everything that hangs on it, in one transaction."""
        with self._database.transaction() as session:
            if not ledger.append(session, EntryKind.CYCLE_ENDED, f"{end.cycle_id}:ended", end.subject, end.at, end):
                return
            if end.agent_id is not None and end.reward:
                transfer(session, f"reward:{end.cycle_id}", TREASURY, end.agent_id, end.reward, end.at, end.reason)
            if end.agent_id is not None and end.penalty:
                transfer(session, f"penalty:{end.cycle_id}", end.agent_id, TREASURY, end.penalty, end.at, end.reason)
            if end.agent_id is not None and end.result is not None:
                _move_standing(
                    session, Standing(cycle_id=end.cycle_id, agent_id=end.agent_id, result=end.result, at=end.at)
                )
            release(session, end.cycle_id, end.at)
            task = session.get_one(MetaTaskRow, end.cycle_id)
            task.ended_at, task.ending = end.at, end.ending.value
            session.add(task)
            emit(
                session,
                EventType.CYCLE_ENDED,
                end.subject,
                end.cycle_id,
                end.at,
                cycle_id=end.cycle_id,
                ending=end.ending.value,
                reason=end.reason,
            )


def _failures_in_a_row(session: Session, opened: MetaTaskRow) -> int:
    """How many attempts on the subject have ended without a promotion since the last one that had it."""
    earlier = session.exec(
        select(MetaTaskRow.ending)
        .where(
            MetaTaskRow.subject == opened.subject,
            MetaTaskRow.attempt < opened.attempt,
            MetaTaskRow.anomaly_id == opened.anomaly_id,
            col(MetaTaskRow.ending).is_not(None),
        )
        .order_by(col(MetaTaskRow.attempt).desc())
    ).all()
    count = 0
    for ending in earlier:
        if ending == "promoted":
            break
        count += 1
    return count
