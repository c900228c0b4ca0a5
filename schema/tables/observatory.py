"""Rows of the Observatory: outcomes, their roll-ups, snapshots and anomalies."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, Index
from sqlmodel import Field, SQLModel

from .columns import Moment


class OutcomeRow(SQLModel, table=True):
    __tablename__ = "outcome"
    __table_args__ = (Index("outcome_by_type", "task_type", "finished_at"),)

    task_id: str = Field(primary_key=True)
    task_type: str
    agent_id: str
    started_at: datetime = Field(sa_type=Moment)
    finished_at: datetime = Field(sa_type=Moment)
    duration_s: float
    failure: str | None
    quality: float | None
    cost: float


class RollupRow(SQLModel, table=True):
    """One interval of one task type; kept in the transaction that records the outcomes."""

    __tablename__ = "rollup"

    start: datetime = Field(sa_type=Moment, primary_key=True)
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


class SnapshotRow(SQLModel, table=True):
    __tablename__ = "snapshot"

    at: datetime = Field(sa_type=Moment, primary_key=True)
    health: float | None
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    detector: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class AnomalyRow(SQLModel, table=True):
    __tablename__ = "anomaly"

    anomaly_id: str = Field(primary_key=True)
    subject: str = Field(index=True)
    detected_at: datetime = Field(sa_type=Moment)
    closed_at: datetime | None = Field(default=None, sa_type=Moment)
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
