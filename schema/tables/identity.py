"""Rows of identity: every key that an agent has had. A key is one agent's, once, and never comes back."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from .columns import InstantColumn


class AgentKeyRow(SQLModel, table=True):
    """The key without `revoked_at` is in force; an agent has at most one. `why` says why it was revoked."""

    __tablename__ = "agent_key"

    public_key: str = Field(primary_key=True)
    agent_id: str = Field(index=True)
    valid_from: datetime = Field(sa_type=InstantColumn)
    revoked_at: datetime | None = Field(default=None, sa_type=InstantColumn)
    why: str = ""
