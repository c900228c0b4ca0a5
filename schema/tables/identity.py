"""Rows of identity: every key that an agent has had, which belongs to it alone for ever, and the keys of the door."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel

from .columns import InstantColumn


class AgentKeyRow(SQLModel, table=True):
    """The key without `revoked_at` is in force; an agent has at most one. `why` is the reason of its revocation."""

    __tablename__ = "agent_key"

    public_key: str = Field(primary_key=True)
    agent_id: str = Field(index=True)
    valid_from: datetime = Field(sa_type=InstantColumn)
    revoked_at: datetime | None = Field(default=None, sa_type=InstantColumn)
    why: str = ""


class DoorKeyRow(SQLModel, table=True):
    """A key of the door, by the part of it that is no secret; of the secret, the SHA-256 alone.

    `holder` is the name of a platform, or an agent where the scope is that of agents.
    """

    __tablename__ = "door_key"

    key_id: str = Field(primary_key=True)
    secret_hash: str
    holder: str
    scopes: list[Any] = Field(sa_column=Column(JSON, nullable=False))
    created_at: datetime = Field(sa_type=InstantColumn)
    created_by: str
    revoked_at: datetime | None = Field(default=None, sa_type=InstantColumn)
