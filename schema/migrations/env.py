"""Alembic's environment: migrates the connection it is given; `alembic` by hand uses NAUTILUS_DATABASE_URL."""

import os

from alembic import context
from sqlalchemy import create_engine
from sqlmodel import SQLModel

import schema.tables  # noqa: F401  (fills the metadata)


def run(connection: object) -> None:
    context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)  # type: ignore[arg-type]
    with context.begin_transaction():
        context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    with create_engine(os.environ["NAUTILUS_DATABASE_URL"]).begin() as own:
        run(own)
