"""Rows of identity: every key that an agent has had. A key belongs to one agent, once, and is never reused."""

from datetime import datetime

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
