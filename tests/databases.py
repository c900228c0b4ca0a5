"""Which database a test gets: `--database` says which kind; without it SQLite, and both for what takes either.

`make test` runs every test on SQLite, and the rules of the stores on both; `make test-postgres` runs every test that
takes a database on PostgreSQL. A test takes one from a fixture of this module and never names a file of its own, or
says in `sqlite_run` why not.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL
from sqlmodel import SQLModel

from activities.database import Database, migrate
from tests.postgres import PRISTINE, on_server, private_server

SQLITE, POSTGRESQL = "sqlite", "postgresql"
BY_KIND = {SQLITE: "sqlite_database", POSTGRESQL: "postgres_database"}
# A test whose fixtures include none of these touches no database.
FIXTURES = {
    "usual_database",
    "either_database",
    "either_empty_database",
    "postgres_database",
    "postgres",
    "new_database",
}
NewDatabase = Callable[[Path], AbstractContextManager[Database]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database",
        choices=[SQLITE, POSTGRESQL],
        help="the only database of this run; with postgresql, tests that take none are left out",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sqlite_run(reason): belongs to the run on SQLite alone, and why")


def usual_kind(config: pytest.Config) -> str:
    return str(config.getoption("database") or SQLITE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    asked = metafunc.config.getoption("database")
    for fixture in ("either_database", "either_empty_database"):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, [asked] if asked else [SQLITE, POSTGRESQL], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On PostgreSQL, leave out what takes no database or is about SQLite: both have run on SQLite."""
    for item in items:
        for marker in item.iter_markers("sqlite_run"):
            assert marker.kwargs.get("reason"), f"expected a reason why {item.nodeid} does not run on PostgreSQL"
    if usual_kind(config) == SQLITE:
        return
    left_out = [item for item in items if not runs_on_postgresql(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def runs_on_postgresql(item: pytest.Item) -> bool:
    takes_one = isinstance(item, pytest.Function) and not FIXTURES.isdisjoint(item.fixturenames)
    return takes_one and item.get_closest_marker("sqlite_run") is None


# ---- the databases of a test


@pytest.fixture
def usual_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated and empty database of the kind that this run is for; the settings of the test lead to it."""
    database: Database = request.getfixturevalue(BY_KIND[usual_kind(request.config)])
    with in_settings(database):
        yield database


@pytest.fixture
def database(usual_database: Database) -> Database:
    """A module whose tests are quick overrides it by `either_database`."""
    return usual_database


@pytest.fixture
def either_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A migrated and empty database of each kind, unless this run is for one; a SQLite file has a folder of its own."""
    with ExitStack() as stack:
        if request.param == POSTGRESQL:
            database: Database = request.getfixturevalue("postgres_database")
        else:
            folder = tmp_path / "store"
            folder.mkdir()
            database = stack.enter_context(copied(request.getfixturevalue("migrated_file"), folder))
        with in_settings(database):
            yield database


@pytest.fixture
def either_empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """The same without a schema."""
    if request.param == POSTGRESQL:
        with on_the_server(request.getfixturevalue("postgres"), f"empty_{uuid4().hex}", template="template0") as empty:
            yield empty
        return
    database = Database(f"sqlite:///{tmp_path / 'nautilus.db'}")
    yield database
    database.close()


@contextmanager
def in_settings(database: Database) -> Iterator[None]:
    """For what goes by the settings of its process: commands, and the processes that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAUTILUS_DATABASE_URL", url_of(database))
        yield


@pytest.fixture
def sqlite_database(migrated_file: Path, tmp_path: Path) -> Iterator[Database]:
    with copied(migrated_file, tmp_path) as database:
        yield database


@pytest.fixture
def postgres_database(postgres: URL) -> Iterator[Database]:
    """The PostgreSQL database, emptied: making one for each test would take longer than most tests."""
    database = Database(postgres.render_as_string(hide_password=False))
    with database.engine.begin() as connection:
        for table in reversed(SQLModel.metadata.sorted_tables):
            connection.execute(table.delete())
        # Numbers begin at 1, as in a SQLite file of its own.
        connection.exec_driver_sql("SELECT setval(oid, 1, false) FROM pg_class WHERE relkind = 'S'")
    yield database
    database.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    """The URL of a migrated database on a private PostgreSQL server."""
    with private_server() as url:
        yield url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with the newest schema and nothing in it, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "nautilus.db"
    database = Database(f"sqlite:///{path}")
    migrate(database)
    database.close()
    return path


# ---- for what outlives a test, or needs another beside its own


@pytest.fixture(scope="session")
def new_database(request: pytest.FixtureRequest) -> NewDatabase:
    """Makes a migrated and empty database more of this run's kind, in a folder: of a module, or of an example."""
    if usual_kind(request.config) == SQLITE:
        file: Path = request.getfixturevalue("migrated_file")
        return lambda folder: copied(file, folder)
    server: URL = request.getfixturevalue("postgres")
    return lambda _: on_the_server(server, f"more_{uuid4().hex}")


@contextmanager
def copied(file: Path, folder: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{shutil.copy(file, folder / 'nautilus.db')}")
    yield database
    database.close()


@contextmanager
def on_the_server(server: URL, name: str, template: str = PRISTINE) -> Iterator[Database]:
    on_server(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    database = Database(server.set(database=name).render_as_string(hide_password=False))
    yield database
    database.close()
    on_server(server, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def copy_of(database: Database, folder: Path) -> Iterator[Database]:
    """A database with the same content; nobody else may use the original as it is copied."""
    database.close()  # a connection keeps PostgreSQL from copying, and SQLite from folding its log into the file
    if database.url.drivername == SQLITE:
        with copied(Path(str(database.url.database)), folder) as copy:
            yield copy
        return
    with on_the_server(database.url, f"copy_of_{uuid4().hex}", template=str(database.url.database)) as copy:
        yield copy


def url_of(database: Database) -> str:
    """The URL as a setting has it."""
    return database.url.render_as_string(hide_password=False)
