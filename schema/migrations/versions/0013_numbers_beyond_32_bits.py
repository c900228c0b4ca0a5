"""Numbers of events and of entries, and amounts, have 64 bits on PostgreSQL as they have on SQLite."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

COLUMNS = {
    "cursor": "sequence",
    "ledger": "sequence",
    "consolidation": "ledger_sequence",
    "transfer": "amount",
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":  # its INTEGER has 64 bits
        return
    for table, column in COLUMNS.items():
        op.alter_column(table, column, type_=sa.BigInteger(), existing_type=sa.Integer(), existing_nullable=False)
