"""Rows of the market: agents, meta-tasks, awards, standing and double-entry transfers."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from .columns import Counter, InstantColumn


class AgentRow(SQLModel, table=True):
    __tablename__ = "agent"

    agent_id: str = Field(primary_key=True)
    operator: str
    registered_at: datetime = Field(sa_type=InstantColumn)
    standing: float
    successes: int = 0
    attempts: int = 0
    suspended: bool = False
    built_in: bool = False
    failure_log_ratio: float = 0.0
    suspended_at: datetime | None = Field(default=None, sa_type=InstantColumn)
    active_at: datetime | None = Field(default=None, sa_type=InstantColumn)


class MetaTaskRow(SQLModel, table=True):
    """A task about the platform itself: one improvement cycle."""

    __tablename__ = "meta_task"
    __table_args__ = (UniqueConstraint("subject", "attempt"),)

    cycle_id: str = Field(primary_key=True)
    request_id: str = Field(unique=True)
    subject: str
    attempt: int
    workflow_id: str
    run_id: str
    anomaly_id: str | None
    opened_at: datetime = Field(sa_type=InstantColumn)
    ended_at: datetime | None = Field(default=None, sa_type=InstantColumn)
    ending: str | None = None


class FillRow(SQLModel, table=True):
    """One interval of one task type's market: tasks whose bidding was over, and those of them that were awarded."""

    __tablename__ = "fill"

    start: datetime = Field(sa_type=InstantColumn, primary_key=True)
    task_type: str = Field(primary_key=True)
    tasks: int = 0
    awarded: int = 0


class RecordRow(SQLModel, table=True):
    """An agent's results on one task type; they decay while it is idle."""

    __tablename__ = "record"

    agent_id: str = Field(primary_key=True)
    task_type: str = Field(primary_key=True, index=True)
    attempts: float = 0.0
    successes: float = 0.0
    rated: float = 0.0
    quality_sum: float = 0.0
    timed: float = 0.0
    seconds_sum: float = 0.0


class TaskRow(SQLModel, table=True):
    """A user task; `agent_id` has it now, and `settlement` is written once, with all that depends on it.

    `notify` names the notification that gets its report.
    """

    __tablename__ = "task"
    __table_args__ = (
        # An agent's load is counted at every award, however many tasks there have been.
        Index(
            "task_open", "agent_id", sqlite_where=text("ended_at IS NULL"), postgresql_where=text("ended_at IS NULL")
        ),
    )

    task_id: str = Field(primary_key=True)
    task_type: str
    requester: str
    run_id: str
    opened_at: datetime = Field(sa_type=InstantColumn)
    agent_id: str | None = None
    ended_at: datetime | None = Field(default=None, sa_type=InstantColumn)
    ending: str | None = None
    settlement: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON))
    notify: str = ""


class TaskTypeRow(SQLModel, table=True):
    """A task type that an agent registered, with the executor it brings."""

    __tablename__ = "task_type"

    name: str = Field(primary_key=True)
    operator: str
    agent_id: str
    direct: bool
    description: str
    payload_schema: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    registered_at: datetime = Field(sa_type=InstantColumn)


class AwardRow(SQLModel, table=True):
    __tablename__ = "award"

    cycle_id: str = Field(primary_key=True)
    agent_id: str = Field(primary_key=True)
    at: datetime = Field(sa_type=InstantColumn)
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class StandingRow(SQLModel, table=True):
    """A result that moved an agent's standing; the key makes it move once."""

    __tablename__ = "standing"

    cycle_id: str = Field(primary_key=True)
    agent_id: str = Field(primary_key=True)
    result: str
    at: datetime = Field(sa_type=InstantColumn)
    standing: float


class TransferRow(SQLModel, table=True):
    """Credits move from one account to another, once per reference; every account's sum is its balance."""

    __tablename__ = "transfer"

    number: int | None = Field(default=None, sa_column=Column(Counter, primary_key=True, autoincrement=True))
    reference: str = Field(unique=True)
    debit: str = Field(index=True)
    credit: str = Field(index=True)
    amount: int = Field(sa_column=Column(Counter, nullable=False))
    at: datetime = Field(sa_type=InstantColumn)
    memo: str = ""
