"""The night reads the last days of outcomes anew, so it no longer keeps until when it has read them."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("consolidation") as table:
        table.drop_column("read_until")
