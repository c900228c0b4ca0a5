"""Outcomes say why a task failed, in the platform's words, and what else the platform knows of it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    with op.batch_alter_table("outcome") as table:
        table.add_column(sa.Column("reason", sa.String(), nullable=False, server_default=""))
        table.add_column(sa.Column("detail", sa.String(), nullable=False, server_default=""))
        table.add_column(sa.Column("attributes", sa.JSON(), nullable=False, server_default="{}"))
