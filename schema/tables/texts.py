"""Rows of texts: each is stored once, under the hash of its content."""

from sqlmodel import Field, SQLModel


class TextRow(SQLModel, table=True):
    """A text that production runs on, or ran on. It is never changed or deleted: a rollback refers to it again."""

    __tablename__ = "text"

    content_hash: str = Field(primary_key=True)
    text: str
