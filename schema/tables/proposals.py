"""Rows of the proposal system: proposals, frozen electorates, ballots."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel

from .columns import InstantColumn


class ProposalRow(SQLModel, table=True):
    __tablename__ = "proposal"

    cycle_id: str = Field(primary_key=True)
    proposal_id: str = Field(index=True)
    agent_id: str
    at: datetime = Field(sa_type=InstantColumn)
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class ElectorateRow(SQLModel, table=True):
    __tablename__ = "electorate"

    cycle_id: str = Field(primary_key=True)
    opened_at: datetime = Field(sa_type=InstantColumn)
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class BallotRow(SQLModel, table=True):
    __tablename__ = "ballot"

    cycle_id: str = Field(primary_key=True)
    agent_id: str = Field(primary_key=True)
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
