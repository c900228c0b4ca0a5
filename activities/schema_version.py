"""Which version of the schema a database has, which one this release expects, and the copy before an upgrade.

It never changes a database: `activities.database.migrate` does.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, inspect, text
from sqlmodel import SQLModel

MIGRATIONS = Path(__file__).parent.parent / "schema" / "migrations"
# Of a script's name, as in 0012_keys_of_the_door.py: read without Alembic, which loads slowly.
DIGITS = 4
VERSION_TABLE = "alembic_version"


class SchemaState(StrEnum):
    """How a database's schema compares with what this release expects."""

    NEWEST = "newest"
    OLDER = "older"
    NEWER = "newer"  # also a version that no release of ours has made
    MISSING = "missing"  # no schema at all
    DAMAGED = "damaged"  # the right version, but tables or columns are missing


class SchemaVersion(NamedTuple):
    """`version` is None in a database without a schema; `lacks` names tables, and columns as table.column."""

    version: str | None
    expected: str
    state: SchemaState
    lacks: tuple[str, ...] = ()

    @property
    def finding(self) -> str:
        """What was expected, and what came."""
        expected = f"expected the database's schema to be version {self.expected}, but"
        match self.state:
            case SchemaState.NEWEST:
                return f"version {self.version}, the newest"
            case SchemaState.MISSING:
                return f"{expected} the database has none"
            case SchemaState.OLDER:
                return f"{expected} it is {self.version}"
            case SchemaState.NEWER:
                return f"{expected} it is {self.version}, which is newer than this release"
            case SchemaState.DAMAGED:
                return f"{expected} it lacks {', '.join(self.lacks)}"

    @property
    def mend(self) -> str:
        """What to do; empty where the schema is the newest."""
        match self.state:
            case SchemaState.NEWEST:
                return ""
            case SchemaState.MISSING | SchemaState.OLDER:
                return "run `nautilus db upgrade`"
            case SchemaState.NEWER:
                return "install the release that has made it, or restore a backup"
            case SchemaState.DAMAGED:
                return "restore a backup"

    @property
    def mistake(self) -> str | None:
        """One line with the mend; None where the schema is the newest."""
        return None if self.state is SchemaState.NEWEST else f"{self.finding}; {self.mend}"


def versions() -> Sequence[str]:
    """Every version of the schema that this release knows, oldest first."""
    scripts = (MIGRATIONS / "versions").glob("[0-9]*.py")
    return sorted(script.name[:DIGITS] for script in scripts)


def schema_version(connection: Connection) -> SchemaVersion:
    """The version of the schema in the database that a connection leads to."""
    version = None
    if inspect(connection).has_table(VERSION_TABLE):
        version = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    by_number = compared(version)
    if by_number.state is SchemaState.NEWEST and (lacks := _lacks(connection)):
        return by_number._replace(state=SchemaState.DAMAGED, lacks=lacks)
    return by_number


def compared(version: str | None) -> SchemaVersion:
    """How a version compares with the one that this release expects, by its number alone."""
    known = versions()
    expected = known[-1]
    if version is None:
        return SchemaVersion(None, expected, SchemaState.MISSING)
    if version not in known:
        return SchemaVersion(version, expected, SchemaState.NEWER)
    return SchemaVersion(version, expected, SchemaState.NEWEST if version == expected else SchemaState.OLDER)


def _lacks(connection: Connection) -> tuple[str, ...]:
    """The tables and columns of the models that the database lacks, as after a restoration that failed half-way."""
    import schema.tables  # noqa: F401  (fills the metadata)

    columns_by_table = {name: columns for (_, name), columns in inspect(connection).get_multi_columns().items()}
    lacks = []
    for table in SQLModel.metadata.sorted_tables:
        if table.name not in columns_by_table:
            lacks.append(table.name)
            continue
        present = {column["name"] for column in columns_by_table[table.name]}
        lacks += [f"{table.name}.{column.name}" for column in table.columns if column.name not in present]
    return tuple(lacks)


def copy_beside(file: Path, version: str, at: datetime | None) -> Path:
    """Copy a SQLite database of this version of the schema; returns the copy's path, which has version and time."""
    time = f"-{at:%Y%m%dT%H%M%S.%fZ}" if at else ""
    copy = file.with_name(f"{file.stem}-{version}{time}{file.suffix}")
    copy_sqlite(file, copy)
    return copy


def copy_sqlite(file: Path, copy: Path) -> None:
    """Copy a SQLite database by SQLite's backup API, while others read and write it; a copy is whole or absent.

    A plain copy of the file would lack what is in the log beside it. Raises ValueError where `copy` exists.
    """
    if copy.exists():
        raise ValueError(f"expected a new file for the copy, but {copy} exists")
    unfinished = copy.with_name(f"{copy.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        source = f"{file.absolute().as_uri()}?mode=ro"
        with (
            closing(sqlite3.connect(source, uri=True, timeout=30)) as original,
            closing(sqlite3.connect(unfinished)) as target,
        ):
            original.backup(target)
            # The copy is one file: a log beside it would be left behind by whoever moves it.
            target.execute("PRAGMA journal_mode=DELETE")
        unfinished.rename(copy)
    finally:
        unfinished.unlink(missing_ok=True)
