"""The database: one engine, short transactions, the same guarantees on SQLite and PostgreSQL.

A transaction that compares and then writes is serialised against the others: on SQLite every one takes the write lock
at its beginning, on PostgreSQL `lock` takes an advisory lock that ends with the transaction.
"""

import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.pool import ConnectionPoolEntry
from sqlmodel import Session, SQLModel, create_engine

from activities.reading import existing_file
from activities.schema_version import MIGRATIONS, SchemaState, SchemaVersion, copy_beside, schema_version
from schema.messages.base import Value

_MIGRATING = threading.Lock()
READ_ONLY = "nautilus_read_only"


class Database:
    """An engine for `url`. Safe to share between threads; `close` closes its connections."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.url = parsed
        is_sqlite = parsed.drivername == "sqlite"
        self.engine = _sqlite_engine(parsed.database) if is_sqlite else _postgresql_engine(parsed)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session whose changes are all committed at the end, or none of them."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A consistent view that takes no lock; nothing may be written in it."""
        # One snapshot for all statements of a reading; SQLite has no other kind.
        options = {READ_ONLY: True} if self.engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        with Session(self.engine.execution_options(**options), expire_on_commit=False) as session, session.begin():
            yield session

    def rows(self, statement: str, **values: Value) -> list[dict[str, Any]]:
        """The rows of a statement in plain SQL that only reads; for `activities.reading`."""
        with self.reading() as session:
            return [dict(row) for row in session.execute(text(statement), values).mappings()]

    def close(self) -> None:
        self.engine.dispose()


def existing(url: str) -> Database:
    """The database that `nautilus up` has made; raises ValueError where there is none, or no driver for it."""
    parsed = make_url(url)
    if parsed.drivername == "sqlite":
        existing_file(parsed.database)
    return connected(url)


def connected(url: str) -> Database:
    """The database at `url`, which may be yet to be made; raises ValueError where there is no driver for it."""
    try:
        return Database(url)
    except ImportError as error:
        raise ValueError(f"expected a driver for {make_url(url).drivername}, but {error}") from None


def _postgresql_engine(url: URL) -> Engine:
    """An engine that has the server prepare no statements.

    One that is prepared within a transaction that fails is gone, and psycopg would go on using it; a pooler in front of
    the server knows none either.
    """
    return create_engine(url, pool_pre_ping=True, connect_args={"prepare_threshold": None})


def _sqlite_engine(path: str | None) -> Engine:
    """An engine whose transactions are durable, and serialized where they write; without a path, in memory."""
    if path and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    # The timeout lets a writer wait for another's commit instead of failing; commits last milliseconds.
    engine = create_engine(f"sqlite:///{path or ':memory:'}", connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: ConnectionPoolEntry) -> None:
        # The driver's own transaction handling would begin late, after the reads that a write depends on.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        # FULL: what a recorder has acknowledged survives the machine, not only the process.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # Taking the write lock first makes read-compare-write safe; a deferred lock can fail half-way.
        is_read_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if is_read_only else "BEGIN IMMEDIATE")

    return engine


def lock(session: Session, name: str) -> None:
    """Serialise the rest of this transaction against every other that locks `name`."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": zlib.crc32(name.encode())})


def insert_new(session: Session, table: type[SQLModel], rows: Iterable[Mapping[str, Any]], returning: str) -> set[Any]:
    """Insert the rows whose key is new; return the `returning` column of those."""
    values = [dict(row) for row in rows]
    if not values:
        return set()
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    into = table.__table__  # type: ignore[attr-defined]
    # Values as parameters and not in the statement: SQLAlchemy compiles it once, and splits long lists itself.
    statement = dialect.insert(into).on_conflict_do_nothing().returning(into.c[returning])
    return set(session.execute(statement, values).scalars())


class Upgrade(NamedTuple):
    """What `migrate` did: the versions before (None of a new database) and after, and the copy of a SQLite file."""

    before: str | None
    after: str
    copy: Path | None = None


def version_of(database: Database) -> SchemaVersion:
    """The version of the database's schema, beside the one that this release expects."""
    with database.reading() as session:
        return schema_version(session.connection())


def expect_newest(database: Database) -> Database:
    """The database itself; raises ValueError, with the mend, unless its schema is the one of this release."""
    mistake = version_of(database).mistake
    if mistake is not None:
        database.close()
        raise ValueError(mistake)
    return database


def migrate(database: Database) -> Upgrade:
    """Bring the database to the newest version of the schema; idempotent.

    A new one gets the tables of the models at once, and only one that exists goes through revisions (Alembic's
    cookbook, "Building an Up to Date Database from Scratch"). A SQLite file is copied before. Raises ValueError where
    the schema is newer than this release, or has the right version and lacks tables.
    """
    from alembic import command  # loads slowly, and only starters migrate
    from alembic.config import Config

    import schema.tables  # noqa: F401  (fills the metadata)

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    # Alembic keeps its context in module variables: one migration at a time in a process, and on a database.
    with _MIGRATING, database.transaction() as session:
        lock(session, "migrate")
        connection = config.attributes["connection"] = session.connection()
        found = schema_version(connection)
        copy = None
        match found.state:
            case SchemaState.NEWER | SchemaState.DAMAGED:
                raise ValueError(found.mistake)
            case SchemaState.OLDER:
                copy = _copy_before(database.url, str(found.version))
                command.upgrade(config, "head")
            case SchemaState.MISSING:
                SQLModel.metadata.create_all(connection)
                command.stamp(config, "head")
    return Upgrade(found.version, found.expected, copy)


def _copy_before(url: URL, version: str) -> Path | None:
    """Copy a SQLite file. The caller holds its write lock, so that the copy is what is upgraded."""
    is_file = url.drivername == "sqlite" and url.database and url.database != ":memory:"
    return copy_beside(Path(str(url.database)), version, datetime.now(UTC)) if is_file else None
