"""Rows of the ledger: a hash chain that only grows."""

from sqlmodel import Field, SQLModel


class LedgerRow(SQLModel, table=True):
    """`body` (canonical JSON) and `at` (ISO 8601, UTC) are texts, stored as they were hashed."""

    __tablename__ = "ledger"

    sequence: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    key: str = Field(unique=True)
    kind: str
    subject: str = Field(index=True)
    at: str
    body: str
    previous: str
    digest: str
