"""Long texts among the values of parameters are stored once, by the hash of their content.

Values that are in the table `parameter` already stay as they are: they can be read, and the next change replaces them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "text",
        sa.Column("content_hash", sa.String(), primary_key=True),
        sa.Column("text", sa.String(), nullable=False),
    )
