"""Where ratings decide an experiment, a task without one is evidence neither for nor against."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    with op.batch_alter_table("assignment") as table:
        table.add_column(sa.Column("excluded", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.drop_index("assignment_pending")
        table.create_index("assignment_pending", ["experiment_id", "success", "excluded", "seen_at"])
    with op.batch_alter_table("arm") as table:
        table.add_column(sa.Column("excluded", sa.Integer(), nullable=False, server_default="0"))
