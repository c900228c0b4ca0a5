"""Rows of the nightly report."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from .columns import InstantColumn


class PublishedReportRow(SQLModel, table=True):
    """A nightly report as published. `night` is its date in UTC, as 2026-11-22."""

    __tablename__ = "published_report"

    night: str = Field(primary_key=True)
    at: datetime = Field(sa_type=InstantColumn)
    text: str
