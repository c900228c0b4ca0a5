"""Rows of experiments: production configuration, running experiments, who got which variant."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, Index
from sqlmodel import Field, SQLModel

from .columns import InstantColumn, Scalar


class ParameterRow(SQLModel, table=True):
    """The value that production runs on. `version` grows by one with every change: what compare-and-swap compares.

    Of a long text, `value` and `previous` hold a reference (activities.texts).
    """

    __tablename__ = "parameter"

    key: str = Field(primary_key=True)
    value: Any = Field(sa_type=Scalar)
    previous: Any = Field(sa_type=Scalar)
    version: int
    changed_at: datetime = Field(sa_type=InstantColumn)
    changed_by: str


class FreezeRow(SQLModel, table=True):
    """A person's freeze of one parameter, or of everything (`*`): production values only, no promotion."""

    __tablename__ = "freeze"

    scope: str = Field(primary_key=True)
    who: str
    why: str
    at: datetime = Field(sa_type=InstantColumn)


class ExperimentRow(SQLModel, table=True):
    """An experiment, or the watch after a promotion (the old value is its control, kept by the holdback).

    It waits (`opened_at` is None), then runs until `closed_at`. While it runs it is `exposing` tasks, unless a person
    holds it or it has all the tasks that it was designed for. `extended` once its exposure was widened.
    """

    __tablename__ = "experiment"

    experiment_id: str = Field(primary_key=True)
    cycle_id: str = Field(index=True)
    parameter: str
    exposing: bool = Field(index=True)
    exposure: float
    extended: bool = False
    queued_at: datetime = Field(sa_type=InstantColumn)
    opened_at: datetime | None = Field(default=None, sa_type=InstantColumn)
    closed_at: datetime | None = Field(default=None, sa_type=InstantColumn, index=True)
    design: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class VerdictRow(SQLModel, table=True):
    """What an experiment was found to show: the reading that ended it."""

    __tablename__ = "verdict"

    experiment_id: str = Field(primary_key=True)
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class TaskTypeLockRow(SQLModel, table=True):
    """One cycle experiments on a task type at a time, from the first assignment to the end of its watch."""

    __tablename__ = "task_type_lock"

    task_type: str = Field(primary_key=True)
    cycle_id: str = Field(index=True)


class AssignmentRow(SQLModel, table=True):
    """A task that an experiment exposed. `success` is None while it runs; a task never reported ends as a failure.

    Where ratings decide, a task that ends without one is `excluded`, and its `success` stays None. So is a task whose
    platform reported another arm than its own (`contradicting`).
    `assigned_at` is by the platform's clock, `seen_at` by that of the first evaluation that found the task pending.
    """

    __tablename__ = "assignment"
    __table_args__ = (Index("assignment_pending", "experiment_id", "success", "excluded", "seen_at"),)

    experiment_id: str = Field(primary_key=True)
    task_id: str = Field(primary_key=True)
    variant: str
    treatment_share: float
    assigned_at: datetime = Field(sa_type=InstantColumn)
    success: bool | None = None
    seen_at: datetime | None = Field(default=None, sa_type=InstantColumn)
    excluded: bool = False
    contradicting: bool = False


class GuardRow(SQLModel, table=True):
    """Counters of one guardrail in one arm of one stratum: finished tasks, those it could judge, and good ones."""

    __tablename__ = "guard"

    experiment_id: str = Field(primary_key=True)
    treatment_share: float = Field(primary_key=True)
    variant: str = Field(primary_key=True)
    guardrail: str = Field(primary_key=True)
    tasks: int = 0
    judged: int = 0
    good: int = 0


class ArmRow(SQLModel, table=True):
    """Counters of one arm in one stratum: what a decision reads, so that its cost does not grow with the tasks.

    `finished` are the tasks that are evidence; `excluded` are none, the `contradicting` among them.
    """

    __tablename__ = "arm"

    experiment_id: str = Field(primary_key=True)
    treatment_share: float = Field(primary_key=True)
    variant: str = Field(primary_key=True)
    assigned: int = 0
    finished: int = 0
    successes: int = 0
    excluded: int = 0
    contradicting: int = 0
