"""Standing: how results change an agent's standing and records. Functions, no activities."""

from sqlalchemy import func
from sqlmodel import Session, select

from activities.accounts import TREASURY, transfer
from activities.database import insert_new, lock
from activities.events import emit
from rules import standing as standings
from schema.messages.events import AgentSuspended
from schema.messages.market import Record, Standing
from schema.tables.market import AgentRow, RecordRow, StandingRow

COUNTS = tuple(Record.model_fields)


def move_standing(session: Session, result: Standing) -> None:
    """Count a result, once: standing, records, the penalty, and the suspension of an agent that fails too often."""
    lock(session, f"standing:{result.agent_id}")
    agent = session.get_one(AgentRow, result.agent_id)
    standing = standings.after(agent.standing, result.result)
    row = result.model_dump(include={"cycle_id", "agent_id", "at"})
    row |= {"result": result.result.value, "standing": standing}
    is_new = bool(insert_new(session, StandingRow, [row], returning="agent_id"))
    if not is_new:
        return
    _update_agent(session, agent, standing, result)
    _count(session, result)
    _take_penalty(session, result)
    _suspend_if_failing(session, agent, result)


def _update_agent(session: Session, agent: AgentRow, standing: float, result: Standing) -> None:
    """Move the agent's standing and totals, and the evidence that it does worse than the others."""
    others = _others(session, agent.agent_id, result.task_type)
    agent.standing = standing
    agent.attempts += 1
    if standings.succeeded(result.result):
        agent.successes += 1
    agent.failure_log_ratio = standings.failure_log_ratio_after(agent.failure_log_ratio, result.result, others)
    agent.active_at = result.at
    session.add(agent)


def _take_penalty(session: Session, result: Standing) -> None:
    """Transfer what a missed deadline costs to the treasury."""
    if not result.penalty:
        return
    reference = f"penalty:{result.cycle_id}:{result.agent_id}"
    transfer(
        session,
        reference,
        debit=result.agent_id,
        credit=TREASURY,
        amount=result.penalty,
        at=result.at,
        memo="missed its deadline",
    )


def _suspend_if_failing(session: Session, agent: AgentRow, result: Standing) -> None:
    """Suspend an agent that fails too often and has no speciality, for a caller that has counted the result."""
    if agent.suspended or not standings.is_suspended(agent.standing, agent.attempts, agent.failure_log_ratio):
        return
    if _has_a_speciality(session, agent.agent_id):
        return
    agent.suspended = True
    agent.suspended_at = result.at
    session.add(agent)
    suspended = AgentSuspended(
        agent_id=agent.agent_id, reason=f"{agent.successes} of {agent.attempts} results were good"
    )
    emit(session, suspended, agent.agent_id, f"{agent.agent_id}:{result.cycle_id}", result.at)


def _has_a_speciality(session: Session, agent_id: str) -> bool:
    """Whether the agent does as well as the others at some task type; it then stops winning the rest by itself."""
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
    """Count the result in the agent's record on the task type."""
    key = (result.agent_id, result.task_type)
    record = session.get(RecordRow, key) or RecordRow(agent_id=result.agent_id, task_type=result.task_type)
    record.attempts += 1
    if standings.succeeded(result.result):
        record.successes += 1
    if result.quality is not None:
        record.rated += 1
        record.quality_sum += result.quality
    if result.duration_s is not None:
        record.timed += 1
        record.seconds_sum += result.duration_s
    session.add(record)
