"""How well each task type's market fills is counted by the interval, as outcomes are."""

import sqlalchemy as sa
from alembic import op

from schema.tables.columns import InstantColumn

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "fill",
        sa.Column("start", InstantColumn(), primary_key=True),
        sa.Column("task_type", sa.String(), primary_key=True),
        sa.Column("tasks", sa.Integer(), nullable=False),
        sa.Column("awarded", sa.Integer(), nullable=False),
    )
