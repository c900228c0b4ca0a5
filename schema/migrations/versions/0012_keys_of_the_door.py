"""Keys of the door; tasks whose platform reported another arm than theirs."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    with op.batch_alter_table("assignment") as table:
        table.add_column(sa.Column("contradicting", sa.Boolean(), nullable=False, server_default=sa.false()))
    with op.batch_alter_table("arm") as table:
        table.add_column(sa.Column("contradicting", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "door_key",
        sa.Column("key_id", sa.String(), primary_key=True),
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
    )
