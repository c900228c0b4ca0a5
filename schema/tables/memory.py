"""Rows of the memory: patterns, and what each consolidation has read and learned."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel

from .columns import Counter, InstantColumn


class MemoryRow(SQLModel, table=True):
    __tablename__ = "memory"

    pattern_id: str = Field(primary_key=True)
    kind: str
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class ConsolidationRow(SQLModel, table=True):
    """The newest one is the cursor: the ledger was read up to `ledger_sequence`."""

    __tablename__ = "consolidation"

    at: datetime = Field(sa_type=InstantColumn, primary_key=True)
    ledger_sequence: int = Field(sa_column=Column(Counter, nullable=False))
    lesson: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
