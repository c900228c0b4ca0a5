"""Alembic's environment: migrates the connection that `activities.database.migrate` gives it."""

from alembic import context
from sqlmodel import SQLModel

import schema.tables  # noqa: F401  (fills the metadata)


def run(connection: object) -> None:
    context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)  # type: ignore[arg-type]
    with context.begin_transaction():
        context.run_migrations()


run(context.config.attributes["connection"])
