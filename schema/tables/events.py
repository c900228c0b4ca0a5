"""Rows of the Event Bus: the outbox and a cursor for each subscriber."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel

from .columns import Counter, Moment


class EventRow(SQLModel, table=True):
    __tablename__ = "event"

    sequence: int | None = Field(default=None, sa_column=Column(Counter, primary_key=True, autoincrement=True))
    key: str = Field(unique=True)
    type: str
    subject: str = Field(index=True)
    at: datetime = Field(sa_type=Moment)
    data: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class CursorRow(SQLModel, table=True):
    """The last event that a subscriber has had."""

    __tablename__ = "cursor"

    subscriber: str = Field(primary_key=True)
    sequence: int = 0
