"""The memory holds remedies only: nothing that decides read the weekly lows and the skills of agents."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0007"


def upgrade() -> None:
    memory = sa.table("memory", sa.column("kind", sa.String))
    op.execute(memory.delete().where(memory.c.kind.in_(["weekly_low", "skill"])))
