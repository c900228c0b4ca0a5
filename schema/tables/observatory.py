"""Rows of the Observatory: outcomes, their roll-ups, snapshots and anomalies."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, Index, LargeBinary
from sqlmodel import Field, SQLModel

from .columns import InstantColumn


class OutcomeRow(SQLModel, table=True):
    __tablename__ = "outcome"
    # By type for an investigator's samples, by age for the retention.
    __table_args__ = (
        Index("outcome_by_type", "task_type", "finished_at"),
        Index("outcome_by_age", "finished_at"),
    )

    task_id: str = Field(primary_key=True)
    task_type: str
    agent_id: str
    started_at: datetime = Field(sa_type=InstantColumn)
    finished_at: datetime = Field(sa_type=InstantColumn)
    duration_s: float
    failure: str | None
    quality: float | None
    cost: float
    reason: str = ""
    detail: str = ""
    attributes: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class RollupRow(SQLModel, table=True):
    """One interval of one task type, with sketches (activities.sketches) of durations, quality and cost.

    `reasons` are failures by reason, as `rules.reasons` counts them.
    """

    __tablename__ = "rollup"

    start: datetime = Field(sa_type=InstantColumn, primary_key=True)
    task_type: str = Field(primary_key=True)
    tasks: int = 0
    successes: int = 0
    timeouts: int = 0
    invalid_results: int = 0
    errors: int = 0
    lost: int = 0
    duration_sum_s: float = 0.0
    rated: int = 0
    quality_sum: float = 0.0
    cost_sum: float = 0.0
    durations: bytes = Field(default=b"", sa_type=LargeBinary)
    qualities: bytes = Field(default=b"", sa_type=LargeBinary)
    costs: bytes = Field(default=b"", sa_type=LargeBinary)
    reasons: dict[str, int] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class AgentRollupRow(SQLModel, table=True):
    """One interval of one task type and agent; `arm` is a variant, or empty for a task that no experiment exposed."""

    __tablename__ = "agent_rollup"

    start: datetime = Field(sa_type=InstantColumn, primary_key=True)
    task_type: str = Field(primary_key=True)
    arm: str = Field(primary_key=True)
    agent_id: str = Field(primary_key=True)
    tasks: int = 0
    successes: int = 0
    duration_sum_s: float = 0.0
    rated: int = 0
    quality_sum: float = 0.0
    cost_sum: float = 0.0


class RetentionRow(SQLModel, table=True):
    """Until when the rows of a table were deleted: what is older may have been counted already."""

    __tablename__ = "retention"

    subject: str = Field(primary_key=True)
    before: datetime = Field(sa_type=InstantColumn)


class SnapshotRow(SQLModel, table=True):
    __tablename__ = "snapshot"

    at: datetime = Field(sa_type=InstantColumn, primary_key=True)
    health: float | None
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    detector: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class AnomalyRow(SQLModel, table=True):
    __tablename__ = "anomaly"

    anomaly_id: str = Field(primary_key=True)
    subject: str = Field(index=True)
    detected_at: datetime = Field(sa_type=InstantColumn)
    closed_at: datetime | None = Field(default=None, sa_type=InstantColumn)
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
