"""Market: agents and their records, meta-tasks, awards, standing, transfers, and the end of a cycle.

The end of a cycle is one transaction: its ledger entry, the winner's reward, the standing it earned, the released locks
and the event. Doing it twice finds the entry and changes nothing.
"""

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, delete, select
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities import identity, ledger
from activities.database import Database, insert_new, lock
from activities.events import emit
from activities.experiment import parameter_states, release
from activities.observatory import counts_since, guardrails, healthy_counts, objectives
from activities.rollups import count_fill
from rules import standing as standings
from rules.identity import REVOKED
from rules.standing import faded
from schema import wire
from schema.messages.cycle import Briefing, CycleEnd, CycleOpening, Ending, RecordedAct
from schema.messages.events import EventType
from schema.messages.ledger import EntryKind
from schema.messages.market import PLATFORM_META, Agent, Award, Record, Standing
from schema.messages.platform import Platform
from schema.messages.tasks import task_workflow_id
from schema.tables.market import AgentRow, AwardRow, MetaTaskRow, RecordRow, StandingRow, TaskRow, TransferRow

TREASURY = "treasury"
# The account of who asks for a task; no agent may have such a name.
REQUESTER = "requester:"
COUNTS = tuple(Record.model_fields)


def register_agent(
    database: Database,
    agent_id: str,
    operator: str,
    at: datetime,
    public_key: str | None = None,
    house: bool = False,
) -> bool:
    """Add an agent under its operator, with its key; False where the agent is there already, whose operator and key
    stay as they are. Raises ValueError for a bad name or key.

    The platform does a `house` agent's tasks in its name; any other brings its own executor.
    """
    # A name that no message can carry would stop every cycle that reads it.
    Agent(agent_id=agent_id, operator=operator, standing=standings.NEWCOMER_STANDING)
    if agent_id == TREASURY or agent_id.startswith(REQUESTER):
        raise ValueError(f"expected a name that is no account of the market, but {agent_id} came")
    row = AgentRow(
        agent_id=agent_id,
        operator=operator,
        registered_at=at,
        standing=standings.NEWCOMER_STANDING,
        house=house,
        active_at=at,
    ).model_dump()
    with database.transaction() as session:
        if not insert_new(session, AgentRow, [row], returning="agent_id"):
            return False
        if public_key is not None:
            identity.put_key(session, agent_id, public_key, operator, "registered", at)
        return True


def roster(session: Session, task_type: str = PLATFORM_META) -> tuple[Agent, ...]:
    """Every registered agent, with its record on `task_type` and the awards it is working on as its load."""
    busy = (
        select(AwardRow.agent_id, func.count())
        .join(MetaTaskRow, col(MetaTaskRow.cycle_id) == AwardRow.cycle_id)
        .where(col(MetaTaskRow.ended_at).is_(None))
        .group_by(AwardRow.agent_id)
    )
    working = (
        select(TaskRow.agent_id, func.count())
        .where(col(TaskRow.ended_at).is_(None), col(TaskRow.agent_id).is_not(None))
        .group_by(TaskRow.agent_id)
    )
    load = Counter(dict(session.exec(busy).all())) + Counter(dict(session.exec(working).all()))
    mine = session.exec(select(RecordRow).where(RecordRow.task_type == task_type)).all()
    records = {row.agent_id: Record.model_validate(row.model_dump()) for row in mine}
    market = Record(**{name: sum(getattr(record, name) for record in records.values()) for name in COUNTS})
    rows, keys = session.exec(select(AgentRow).order_by(AgentRow.agent_id)).all(), identity.keys(session)
    found = []
    for row in rows:
        key = keys.get(row.agent_id)
        agent = Agent(
            **row.model_dump(exclude={"registered_at"}),
            load=load[row.agent_id],
            record=records.get(row.agent_id, Record()),
            market=market,
            public_key=key,
        )
        # Who has lost its key takes part in nothing, until it is given another.
        found.append(agent.model_copy(update={"suspended": True}) if key == REVOKED else agent)
    return tuple(found)


def balance(session: Session, account: str) -> int:
    """Credits of an account: what came in less what went out."""
    received = session.exec(select(func.coalesce(func.sum(TransferRow.amount), 0)).where(TransferRow.credit == account))
    paid = session.exec(select(func.coalesce(func.sum(TransferRow.amount), 0)).where(TransferRow.debit == account))
    return int(received.one()) - int(paid.one())


def transfer(session: Session, reference: str, debit: str, credit: str, amount: int, at: datetime, memo: str) -> None:
    """Move credits, once per reference."""
    row = {"reference": reference, "debit": debit, "credit": credit, "amount": amount, "at": at, "memo": memo}
    insert_new(session, TransferRow, [row], returning="reference")


def move_standing(session: Session, result: Standing) -> None:
    """Let a result count, once: standing, records, the penalty, and suspension where it has become too much."""
    lock(session, f"standing:{result.agent_id}")
    agent = session.get_one(AgentRow, result.agent_id)
    moved = standings.after(agent.standing, result.result)
    row = {**result.model_dump(include={"cycle_id", "agent_id", "at"}), "result": result.result.value}
    if not insert_new(session, StandingRow, [row | {"standing": moved}], returning="agent_id"):
        return
    others = _others(session, result.agent_id, result.task_type)
    agent.standing, agent.attempts, agent.active_at = moved, agent.attempts + 1, result.at
    agent.successes += standings.succeeded(result.result)
    agent.doubt = standings.doubt_after(agent.doubt, result.result, others)
    _count(session, result)
    if result.penalty:
        reference = f"penalty:{result.cycle_id}:{result.agent_id}"
        transfer(session, reference, result.agent_id, TREASURY, result.penalty, result.at, "missed its deadline")
    failing = standings.is_suspended(agent.standing, agent.attempts, agent.doubt)
    if failing and not agent.suspended and not _has_a_speciality(session, agent.agent_id):
        agent.suspended, agent.suspended_at = True, result.at
        key = f"{agent.agent_id}:{result.cycle_id}"
        record = f"{agent.successes} of {agent.attempts} results were good"
        emit(session, EventType.AGENT_SUSPENDED, agent.agent_id, key, result.at, agent_id=agent.agent_id, reason=record)
    session.add(agent)


def _has_a_speciality(session: Session, agent_id: str) -> bool:
    """Whether the agent does as well as the others at some task type; it stops winning the rest by itself."""
    rows = session.exec(select(RecordRow).where(RecordRow.agent_id == agent_id)).all()
    return any(
        standings.is_speciality(Record.model_validate(row.model_dump()), _others(session, agent_id, row.task_type))
        for row in rows
    )


def _others(session: Session, agent_id: str, task_type: str) -> Record:
    """What all other agents together have done on a task type."""
    sums = select(func.sum(RecordRow.attempts), func.sum(RecordRow.successes)).where(
        RecordRow.task_type == task_type, RecordRow.agent_id != agent_id
    )
    attempts, successes = session.exec(sums).one()
    return Record(attempts=attempts or 0.0, successes=successes or 0.0)


def _count(session: Session, result: Standing) -> None:
    key = (result.agent_id, result.task_type)
    record = session.get(RecordRow, key) or RecordRow(agent_id=result.agent_id, task_type=result.task_type)
    record.attempts += 1
    record.successes += standings.succeeded(result.result)
    if result.quality is not None:
        record.rated, record.quality_sum = record.rated + 1, record.quality_sum + result.quality
    if result.duration_s is not None:
        record.timed, record.seconds_sum = record.timed + 1, record.seconds_sum + result.duration_s
    session.add(record)


def was_awarded(session: Session, work_id: str) -> bool:
    """Whether anybody ever had this cycle's or task's award."""
    return session.exec(select(AwardRow.agent_id).where(AwardRow.cycle_id == work_id)).first() is not None


def write_award(
    session: Session, award: Award, body: dict[str, Any], task_type: str, at: datetime, interval_s: int
) -> bool:
    """Write down who got a task and why; False where it was written before. The first award of a task fills it."""
    row = {"cycle_id": award.cycle_id, "agent_id": award.agent_id, "at": at, "body": body}
    first = not was_awarded(session, award.cycle_id)
    if not insert_new(session, AwardRow, [row], returning="agent_id"):
        return False
    if first:
        count_fill(session, task_type, at, True, interval_s)
    return True


class MarketActivities:
    """Opens, awards and closes meta-tasks, and keeps the agents' standing."""

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
                if (forgery := identity.opening_refusal(session, opening, self._platform.unsigned_agents)) is not None:
                    raise ApplicationError(forgery, type=wire.OPEN_CYCLE, non_retryable=True)
                row = self._new_meta_task(session, opening)
            task_types = self._task_types(opening)
            window = timedelta(seconds=self._platform.observatory.floor_window_s)
            onset = request.anomaly.onset if request.anomaly else at - window
            observatory = self._platform.observatory
            aims = objectives(session, request.anomaly, observatory)
            return Briefing(
                cycle_id=row.cycle_id,
                attempt=row.attempt,
                failed_attempts=_failures_in_a_row(session, row),
                rules=self._platform.cycle,
                parameters=parameter_states(session, self._platform),
                agents=roster(session),
                baseline=counts_since(session, task_types, onset, None, aims),
                baselines={
                    t.name: counts_since(session, [t.name], onset, None, aims) for t in self._platform.task_types
                },
                healthy=healthy_counts(session, task_types, at, observatory, aims),
                guardrails=guardrails(session, task_types, at, observatory, bool(aims)),
                objectives=aims,
                duplicate=row.run_id != opening.run_id,
                unsigned_agents=self._platform.unsigned_agents,
                market=self._platform.market,
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
        body, interval_s = award.model_dump(mode="json"), self._platform.observatory.interval_s
        with self._database.transaction() as session:
            if write_award(session, award, body, PLATFORM_META, at, interval_s):
                key = f"{award.cycle_id}:{award.agent_id}"
                emit(session, EventType.META_TASK_AWARDED, award.cycle_id, key, at, award=body)

    @activity.defn
    def record_missed_award(self, missed: Standing) -> None:
        """The winner let the deadline pass: it loses standing and pays, once, and its task is free for the next."""
        with self._database.transaction() as session:
            move_standing(session, missed)
            held = select(TaskRow).where(
                TaskRow.task_id == missed.cycle_id.removeprefix(task_workflow_id("")),
                TaskRow.agent_id == missed.agent_id,
            )
            if missed.task_type != PLATFORM_META and (task := session.exec(held).first()) is not None:
                task.agent_id = None
                session.add(task)
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
            if end.agent_id is not None:
                _settle(session, end, end.agent_id)
            if end.ending is Ending.NO_BIDS:
                count_fill(session, PLATFORM_META, end.at, False, self._platform.observatory.interval_s)
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

    @activity.defn
    def restore_agents(self, at: datetime) -> str | None:
        """Let the suspended whose time is over come back, on probation; the names of who did.

        Their records start anew: by the old ones they would never win a task again, however well they now do.
        """
        due = at - timedelta(seconds=self._platform.market.suspension_s)
        with self._database.reading() as session:
            names = session.exec(
                select(AgentRow.agent_id).where(col(AgentRow.suspended), col(AgentRow.suspended_at) <= due)
            ).all()
        # One transaction each: the event's lock comes after the agent's, as everywhere.
        for name in names:
            with self._database.transaction() as session:
                lock(session, f"standing:{name}")
                agent = session.get_one(AgentRow, name)
                if agent.suspended and agent.suspended_at is not None and agent.suspended_at <= due:
                    key = f"{name}:{agent.suspended_at.isoformat()}"
                    agent.suspended, agent.suspended_at, agent.doubt = False, None, 0.0
                    agent.standing, agent.active_at = standings.RETURN_STANDING, at
                    session.add(agent)
                    session.exec(delete(RecordRow).where(col(RecordRow.agent_id) == name))
                    emit(session, EventType.AGENT_RESTORED, name, key, at, agent_id=name)
        return f"restored: {', '.join(names)}" if names else None

    @activity.defn
    def fade_idle(self, at: datetime) -> str | None:
        """Move idle agents' standing towards a newcomer's, and their records towards none.

        What is counted is the time since the last result or the last fading, so that doing it twice is doing it once.
        """
        half_life_s = self._platform.market.idle_half_life_s
        with self._database.reading() as session:
            names = session.exec(select(AgentRow.agent_id).where(~col(AgentRow.suspended))).all()
        for name in names:
            with self._database.transaction() as session:
                lock(session, f"standing:{name}")
                agent = session.get_one(AgentRow, name)
                idle_s = (at - (agent.active_at or agent.registered_at)).total_seconds()
                if idle_s <= 0:
                    continue
                agent.standing = faded(agent.standing, standings.NEWCOMER_STANDING, idle_s, half_life_s)
                agent.doubt, agent.active_at = faded(agent.doubt, 0.0, idle_s, half_life_s), at
                session.add(agent)
                for record in session.exec(select(RecordRow).where(RecordRow.agent_id == name)).all():
                    for count in COUNTS:
                        setattr(record, count, faded(getattr(record, count), 0.0, idle_s, half_life_s))
                    session.add(record)
        return None


def _settle(session: Session, end: CycleEnd, agent_id: str) -> None:
    """What the proposer earns and pays, each with a reference of its own, and what its standing makes of it."""
    payments = {"reward": end.reward, "bonus": end.bonus, "forecast": end.forecast, "penalty": -end.penalty}
    for name, amount in payments.items():
        if amount:
            debit, credit = (TREASURY, agent_id) if amount > 0 else (agent_id, TREASURY)
            transfer(session, f"{name}:{end.cycle_id}", debit, credit, abs(amount), end.at, end.reason)
    if end.result is not None:
        move_standing(session, Standing(cycle_id=end.cycle_id, agent_id=agent_id, result=end.result, at=end.at))


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
