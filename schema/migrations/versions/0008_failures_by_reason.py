"""Roll-ups count failures by reason; those from before had none, and such a failure counts under its kind."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

KINDS = {"timeouts": "timeout", "invalid_results": "invalid_result", "errors": "error", "lost": "lost"}


def upgrade() -> None:
    with op.batch_alter_table("rollup") as table:
        table.add_column(sa.Column("reasons", sa.JSON(), nullable=False, server_default="{}"))
    # In the database: a year of minutes of many task types is a million rows.
    entries = [
        f"CASE WHEN {name} > 0 THEN '\"{kind}\": ' || {name} || ', ' ELSE '' END" for name, kind in KINDS.items()
    ]
    reasons = f"'{{' || rtrim({' || '.join(entries)}, ', ') || '}}'"
    if op.get_bind().dialect.name == "postgresql":
        reasons = f"CAST({reasons} AS JSON)"
    # The driver's own text: a colon would otherwise begin a parameter.
    op.get_bind().exec_driver_sql(f"UPDATE rollup SET reasons = {reasons} WHERE {' + '.join(KINDS)} > 0")
