"""Rows of experiments: production configuration, running experiments, who got which variant."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, Index
from sqlmodel import Field, SQLModel

from .columns import Moment, Scalar


class ParameterRow(SQLModel, table=True):
    """The value that production runs on. `version` grows by one with every change: what compare-and-swap compares."""

    __tablename__ = "parameter"

    key: str = Field(primary_key=True)
    value: Any = Field(sa_type=Scalar)
    version: int
    changed_at: datetime = Field(sa_type=Moment)
    changed_by: str


class ExperimentRow(SQLModel, table=True):
    """An experiment, or the watch after a promotion (the old value is its control, kept by the holdback)."""

    __tablename__ = "experiment"

    experiment_id: str = Field(primary_key=True)
    cycle_id: str = Field(index=True)
    parameter: str
    open: bool = Field(index=True)
    treatment_share: float
    opened_at: datetime = Field(sa_type=Moment)
    closed_at: datetime | None = Field(default=None, sa_type=Moment)
    design: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class TaskTypeLockRow(SQLModel, table=True):
    """One cycle experiments on a task type at a time, from the first assignment to the end of its watch."""

    __tablename__ = "task_type_lock"

    task_type: str = Field(primary_key=True)
    cycle_id: str = Field(index=True)


class AssignmentRow(SQLModel, table=True):
    """A task that an experiment exposed. `success` is None while it runs; a task never reported ends as a failure."""

    __tablename__ = "assignment"
    __table_args__ = (Index("assignment_pending", "experiment_id", "success", "assigned_at"),)

    experiment_id: str = Field(primary_key=True)
    task_id: str = Field(primary_key=True)
    variant: str
    treatment_share: float
    assigned_at: datetime = Field(sa_type=Moment)
    success: bool | None = None


class ArmRow(SQLModel, table=True):
    """Counters of one arm in one stratum: what a decision reads, so that its cost does not grow with the tasks."""

    __tablename__ = "arm"

    experiment_id: str = Field(primary_key=True)
    treatment_share: float = Field(primary_key=True)
    variant: str = Field(primary_key=True)
    assigned: int = 0
    finished: int = 0
    successes: int = 0
