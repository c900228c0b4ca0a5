"""Databases as earlier releases left them: the schema of any version, on SQLite and on PostgreSQL.

A database of the first release has the schema that is written down beside this module; each later one is that, carried
on by the migrations up to its version.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config

from activities.database import Database
from activities.schema_version import MIGRATIONS, versions

FIRST, NEWEST = versions()[0], versions()[-1]
SCRIPTS = {"sqlite": "first_schema.sql", "postgresql": "first_schema_postgresql.sql"}


def carry_to(database: Database, version: str) -> None:
    """Give an empty database the schema of a version."""
    script = (Path(__file__).parent / SCRIPTS[database.engine.dialect.name]).read_text(encoding="utf-8")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.transaction() as session:
        connection = config.attributes["connection"] = session.connection()
        for statement in script.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
        command.upgrade(config, version)
