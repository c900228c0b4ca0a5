"""Verdicts, published reports and who hears of a task get a place of their own: the outbox may be pruned."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from schema.tables.columns import InstantColumn

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the places, and fill them from the events that are still in the outbox."""
    verdict = op.create_table(
        "verdict",
        sa.Column("experiment_id", sa.String(), primary_key=True),
        sa.Column("body", sa.JSON(), nullable=False),
    )
    published = op.create_table(
        "published_report",
        sa.Column("night", sa.String(), primary_key=True),
        sa.Column("at", InstantColumn(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
    )
    with op.batch_alter_table("task") as table:
        table.add_column(sa.Column("notify", sa.String(), nullable=False, server_default=""))
    task = sa.table("task", sa.column("task_id", sa.String), sa.column("notify", sa.String))
    connection = op.get_bind()
    for row in _events("experiment.concluded"):
        values = {"experiment_id": row.data["experiment_id"], "body": row.data["reading"]}
        connection.execute(verdict.insert().values(**values))
    for row in _events("report.published"):
        night = row.key.removeprefix("report.published:")
        connection.execute(published.insert().values(night=night, at=row.at, text=row.data["text"]))
    for row in _events("task.opened"):
        of_task = task.c.task_id == row.data["task_id"]
        connection.execute(task.update().where(of_task).values(notify=row.data["notify"]))


def _events(type: str) -> list[Any]:
    event = sa.table(
        "event",
        sa.column("key", sa.String),
        sa.column("type", sa.String),
        sa.column("at", InstantColumn),
        sa.column("data", sa.JSON),
    )
    return list(op.get_bind().execute(sa.select(event).where(event.c.type == type)).all())
