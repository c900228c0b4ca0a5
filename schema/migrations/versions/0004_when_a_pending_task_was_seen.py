"""A task is lost by one clock: that of the looks at its experiment."""

import sqlalchemy as sa
from alembic import op

from schema.tables.columns import InstantColumn

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("assignment") as table:
        table.add_column(sa.Column("seen_at", InstantColumn(), nullable=True))
        table.drop_index("assignment_pending")
        table.create_index("assignment_pending", ["experiment_id", "success", "seen_at"])
