"""The whole suite runs on either database: a test takes what `--database` says, unless it has a reason."""

from pathlib import Path

import pytest

from activities.database import Database
from tests.databases import usual_kind

HERE = Path(__file__).parent
# What names a SQLite file or its driver, and why.
ABOUT_SQLITE = {
    "databases.py": "makes the files that the others take",
    "earlier.py": "names the script of the first schema",
    "own_platforms.py": "walks docs/adopting.md, whose reader has no server",
    "record_histories.py": "records histories, in which no database shows",
    "test_backup.py": "`nautilus db backup` is for SQLite; PostgreSQL has pg_dump, which is tried beside it",
    "test_cli.py": "an empty file that is a database without tables",
    "test_databases.py": "this table",
    "test_db_commands.py": "the copy before an upgrade, and the backup, are of a SQLite file",
    "record_tasks.py": "records histories once, and is no test",
    "test_migrations.py": "keeps the rows with which either database is filled",
}


def test_no_test_makes_a_sqlite_file_of_its_own_without_a_reason() -> None:
    names = {
        path.name for path in HERE.glob("*.py") if "sqlite:///" in path.read_text() or "sqlite3" in path.read_text()
    }

    assert names <= set(ABOUT_SQLITE)


def test_the_database_of_a_test_is_of_the_kind_that_the_run_is_for(
    usual_database: Database, request: pytest.FixtureRequest
) -> None:
    assert usual_database.engine.dialect.name == usual_kind(request.config)
