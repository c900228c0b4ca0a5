"""Rows of the ledger: a hash chain that only grows."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from .columns import Moment


class LedgerRow(SQLModel, table=True):
    """`body` is canonical JSON text, stored as it was hashed."""

    __tablename__ = "ledger"

    sequence: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    key: str = Field(unique=True)
    kind: str
    subject: str = Field(index=True)
    at: datetime = Field(sa_type=Moment)
    body: str
    previous: str
    digest: str
