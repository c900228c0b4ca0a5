"""Rows of the ledger: a hash chain that only grows."""

from sqlalchemy import Column
from sqlmodel import Field, SQLModel

from .columns import Counter


class LedgerRow(SQLModel, table=True):
    """`body` (canonical JSON) and `at` (ISO 8601, UTC) are texts, stored as they were hashed."""

    __tablename__ = "ledger"

    sequence: int = Field(sa_column=Column(Counter, primary_key=True, autoincrement=False))
    key: str = Field(unique=True)
    kind: str
    subject: str = Field(index=True)
    at: str
    body: str
    previous: str
    digest: str
