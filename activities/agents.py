"""Agents: who is registered, and how the market knows them. Functions, no activities."""

from collections import Counter
from datetime import datetime

from sqlalchemy import func
from sqlmodel import Session, col, select

from activities import identity
from activities.accounts import REQUESTER, TREASURY
from activities.database import Database, insert_new
from activities.standing import COUNTS
from rules import standing as standings
from rules.identity import REVOKED
from schema.messages.market import PLATFORM_META, Agent, Record
from schema.tables.market import AgentRow, AwardRow, MetaTaskRow, RecordRow, TaskRow


def register_agent(
    database: Database,
    agent_id: str,
    operator: str,
    at: datetime,
    public_key: str | None = None,
    built_in: bool = False,
    who: str | None = None,
) -> bool:
    """Add an agent under its operator, with its key. An agent that is registered already stays as it is: False.

    `who` registers the key, for the ledger; None: its operator.

    The platform does a `built_in` agent's tasks in its name; any other brings its own executor. Raises ValueError for
    a bad name or key.
    """
    _check_name(agent_id, operator)
    row = AgentRow(
        agent_id=agent_id,
        operator=operator,
        registered_at=at,
        standing=standings.NEWCOMER_STANDING,
        built_in=built_in,
        active_at=at,
    ).model_dump()
    with database.transaction() as session:
        if not insert_new(session, AgentRow, [row], returning="agent_id"):
            return False
        if public_key is not None:
            identity.put_key(session, agent_id, public_key, who or operator, "registered", at)
        return True


def _check_name(agent_id: str, operator: str) -> None:
    """Raise ValueError for a name that no message can carry, or that is an account of the market's own."""
    # A name that no message can carry would stop every cycle that reads it.
    Agent(agent_id=agent_id, operator=operator, standing=standings.NEWCOMER_STANDING)
    if agent_id == TREASURY or agent_id.startswith(REQUESTER):
        raise ValueError(f"expected a name that is no account of the market, but {agent_id} came")


def roster(session: Session, task_type: str = PLATFORM_META) -> tuple[Agent, ...]:
    """Every registered agent, with its record on `task_type` and the awards it is working on as its load."""
    load = _load_by_agent(session)
    record_rows = session.exec(select(RecordRow).where(RecordRow.task_type == task_type)).all()
    records = {row.agent_id: Record.model_validate(row.model_dump()) for row in record_rows}
    totals = {name: sum(getattr(record, name) for record in records.values()) for name in COUNTS}
    record_of_all = Record(**totals)
    keys = identity.keys(session)

    agents = []
    rows = session.exec(select(AgentRow).order_by(AgentRow.agent_id)).all()
    for row in rows:
        key = keys.get(row.agent_id)
        # An agent whose key was revoked takes part in nothing until it has another one.
        suspended = row.suspended or key == REVOKED
        agent = Agent(
            **row.model_dump(exclude={"registered_at", "suspended"}),
            suspended=suspended,
            load=load[row.agent_id],
            record=records.get(row.agent_id, Record()),
            market=record_of_all,
            public_key=key,
        )
        agents.append(agent)
    return tuple(agents)


def _load_by_agent(session: Session) -> Counter[str | None]:
    """How many cycles and tasks each agent has been awarded that have not ended."""
    awards = select(AwardRow.agent_id, func.count()).join(MetaTaskRow, col(MetaTaskRow.cycle_id) == AwardRow.cycle_id)
    open_awards = awards.where(col(MetaTaskRow.ended_at).is_(None)).group_by(AwardRow.agent_id)
    awarded = select(TaskRow.agent_id, func.count()).where(col(TaskRow.agent_id).is_not(None))
    open_tasks = awarded.where(col(TaskRow.ended_at).is_(None)).group_by(TaskRow.agent_id)
    return Counter(dict(session.exec(open_awards).all())) + Counter(dict(session.exec(open_tasks).all()))
