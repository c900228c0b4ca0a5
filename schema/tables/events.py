"""Rows of the Event Bus: the outbox, a cursor for each subscriber, and what is undelivered before it."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, Index
from sqlmodel import Field, SQLModel

from .columns import Counter, InstantColumn


class EventRow(SQLModel, table=True):
    __tablename__ = "event"

    sequence: int | None = Field(default=None, sa_column=Column(Counter, primary_key=True, autoincrement=True))
    key: str = Field(unique=True)
    type: str
    subject: str = Field(index=True)
    at: datetime = Field(sa_type=InstantColumn)
    data: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class CursorRow(SQLModel, table=True):
    """The last event that was delivered to a subscriber, or waits for it as an undelivered row."""

    __tablename__ = "cursor"

    subscriber: str = Field(primary_key=True)
    sequence: int = Field(default=0, sa_column=Column(Counter, nullable=False))


class UndeliveredRow(SQLModel, table=True):
    """An event that failed, or that is parked behind one of its subject that did. Only a subject's first row is tried.

    `failed_at` is the first failure; `dead_at` is set where only a person can set it going again.
    """

    __tablename__ = "undelivered"
    __table_args__ = (Index("ix_undelivered_subject", "subscriber", "subject", "sequence"),)

    subscriber: str = Field(primary_key=True)
    sequence: int = Field(sa_column=Column(Counter, primary_key=True, autoincrement=False))
    subject: str
    attempts: int = 0
    error: str = ""
    due_at: datetime = Field(sa_type=InstantColumn)
    failed_at: datetime | None = Field(default=None, sa_type=InstantColumn)
    dead_at: datetime | None = Field(default=None, sa_type=InstantColumn)
