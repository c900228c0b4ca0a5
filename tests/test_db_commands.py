"""`nautilus db`: what is said of a schema that is not the newest, and how it is brought there, on both databases."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlmodel import select

from activities.agents import register_agent
from activities.database import Database, expect_newest, migrate, version_of
from activities.reading import agent_ids
from activities.schema_version import MIGRATIONS, SchemaState, versions
from schema.tables.observatory import RetentionRow
from starter.cli import main
from tests.builders import NOW
from tests.databases import url_of
from tests.earlier import FIRST, NEWEST, carry_to
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.test_cli import DECLARATION, ROOT, settings, start

Said = tuple[int, str, str]
LATER = f"{int(NEWEST) + 1:04}"


@pytest.fixture
def database(either_empty_database: Database) -> Database:
    return either_empty_database


@pytest.fixture
def nautilus(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """Runs a command on the database: exit code, standard output, standard error."""
    (tmp_path / "platform.toml").write_text(DECLARATION)

    def run(*arguments: str) -> Said:
        for name, value in settings(tmp_path).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("NAUTILUS_DATABASE_URL", url_of(database))
        monkeypatch.setattr(sys, "argv", ["nautilus", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        structlog.reset_defaults()
        code = left.value.code if isinstance(left.value.code, int) else 0
        return code, *capsys.readouterr()

    return run


def mark(database: Database, version: str) -> None:
    """The version that another release would have left."""
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")


def copies(database: Database) -> list[Path]:
    """The copies beside a SQLite file."""
    file = Path(str(database.url.database))
    return sorted(file.parent.glob(f"{file.stem}-*.db"))


def test_the_versions_are_those_of_the_migrations_in_their_order() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)

    assert [script.revision for script in scripts.walk_revisions()] == list(reversed(versions()))
    assert scripts.get_heads() == [NEWEST]


def test_check_says_which_schema_it_is_and_what_to_do(database: Database, nautilus: Callable[..., Said]) -> None:
    carry_to(database, FIRST)
    expected = (
        f"nautilus: expected the database's schema to be version {NEWEST}, but it is {FIRST}; run `nautilus db upgrade`"
    )

    code, printed, complaint = nautilus("db", "check")
    json_code, document, _ = nautilus("db", "check", "--json")

    assert (code, printed, complaint) == (1, "", f"{expected}\n")
    said = json.loads(document)
    assert json_code == 1
    assert (said["ok"], said["state"], said["version"], said["expected"]) == (False, "older", FIRST, NEWEST)
    assert f"nautilus: {said['mistake']}" == expected


def test_an_upgrade_says_from_which_to_which_and_the_second_finds_nothing_to_do(
    database: Database, nautilus: Callable[..., Said]
) -> None:
    carry_to(database, FIRST)

    code, printed, _ = nautilus("db", "upgrade")
    again = nautilus("db", "upgrade")
    document = json.loads(nautilus("db", "upgrade", "--json")[1])
    checked = nautilus("db", "check", "--json")

    assert (code, printed.splitlines()[-1]) == (0, f"upgraded from schema {FIRST} to {NEWEST}")
    assert again == (0, f"nothing to do: the schema is {NEWEST}, which is the newest\n", "")
    assert document == {"from": NEWEST, "to": NEWEST, "copy": None}
    assert (checked[0], json.loads(checked[1])["state"]) == (0, "newest")


def test_an_upgrade_makes_the_schema_of_a_new_database(database: Database, nautilus: Callable[..., Said]) -> None:
    database.engine.connect().close()  # a SQLite file exists from its first connection on

    code, _, complaint = nautilus("db", "check")
    made = nautilus("db", "upgrade")

    assert (code, made) == (1, (0, f"made schema {NEWEST} in a new database\n", ""))
    assert "but the database has none; run `nautilus db upgrade`" in complaint
    assert version_of(database).state is SchemaState.NEWEST


def test_a_sqlite_file_is_copied_before_its_upgrade_and_the_copy_is_named(
    database: Database, nautilus: Callable[..., Said]
) -> None:
    carry_to(database, FIRST)
    with database.transaction() as session:
        session.add(RetentionRow(subject="outcome", before=NOW))

    document = json.loads(nautilus("db", "upgrade", "--json")[1])

    if database.engine.dialect.name == "postgresql":
        assert document["copy"] is None
        return
    assert [str(copy) for copy in copies(database)] == [document["copy"]]
    before = Database(f"sqlite:///{document['copy']}")
    assert version_of(before).version == FIRST
    with before.reading() as session:
        assert session.exec(select(RetentionRow.before)).one() == NOW
    assert migrate(before).after == NEWEST  # as after a restoration
    before.close()


@pytest.mark.parametrize("arguments", [("db", "check"), ("db", "upgrade"), ("worker",), ("door",)], ids=" ".join)
def test_a_database_that_is_newer_than_the_release_is_refused_in_one_line_and_left_alone(
    database: Database, nautilus: Callable[..., Said], arguments: tuple[str, ...]
) -> None:
    migrate(database)
    mark(database, LATER)

    code, printed, complaint = nautilus(*arguments)

    assert (code, printed) == (1, "")
    assert complaint == (
        f"nautilus: expected the database's schema to be version {NEWEST}, but it is {LATER}, which is newer than this "
        "release; install the release that has made it, or restore a backup\n"
    )
    assert version_of(database).version == LATER


def test_up_refuses_a_database_that_is_newer_in_one_line(tmp_path: Path, either_database: Database) -> None:
    (tmp_path / "platform.toml").write_text(DECLARATION)
    mark(either_database, LATER)

    ports = [str(free_port()) for _ in range(3)]
    up = start(
        *("up", "--port", ports[0], "--ui-port", ports[1], "--door-port", ports[2]), home=tmp_path, TEMPORAL_ADDRESS=""
    )
    _, complaint = up.communicate(timeout=PATIENCE_S)

    assert up.returncode == 1
    assert complaint.splitlines()[-1].startswith("nautilus: expected the database's schema to be version")
    assert "newer than this release" in complaint
    assert "Traceback" not in complaint
    mark(either_database, NEWEST)


def test_a_worker_is_not_started_on_an_older_schema(database: Database) -> None:
    carry_to(database, FIRST)

    with pytest.raises(ValueError, match="run `nautilus db upgrade`"):
        expect_newest(database)


def test_a_database_that_has_lost_a_table_or_a_column_is_told_from_a_whole_one(
    database: Database, nautilus: Callable[..., Said]
) -> None:
    migrate(database)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE arm")
        connection.exec_driver_sql("ALTER TABLE outcome DROP COLUMN detail")

    code, _, complaint = nautilus("db", "check")
    upgrading, _, _ = nautilus("db", "upgrade")

    assert (code, upgrading) == (1, 1)
    assert "but it lacks arm, outcome.detail; restore a backup" in complaint


def test_an_upgrade_whose_copy_does_not_fit_on_the_disk_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "nautilus.db"
    database = Database(f"sqlite:///{file}")
    carry_to(database, FIRST)
    database.close()
    # Half of what the copy takes: as where the disk is full.
    limited = f"ulimit -f {file.stat().st_size // 1024 // 2}; exec {sys.executable} -m starter db upgrade"

    done = subprocess.run(
        ["bash", "-c", limited],
        cwd=ROOT,
        env=os.environ | settings(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nautilus: the database cannot be used: ")
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.glob("*nautilus*") if path.suffix not in (".db-shm", ".db-wal")] == [
        file.name
    ]
    assert version_of(database).version == FIRST
    database.close()


def test_a_backup_is_a_folder_that_is_a_home_and_an_earlier_one_is_not_overwritten(
    database: Database, nautilus: Callable[..., Said], tmp_path: Path
) -> None:
    migrate(database)
    register_agent(database, "ada", "op-ada", NOW)
    folder = tmp_path / "backups" / "monday"

    code, printed, complaint = nautilus("db", "backup", str(folder))

    if database.engine.dialect.name == "postgresql":
        assert (code, printed) == (1, "")
        assert "`pg_dump` copies it" in complaint
        return
    name = Path(str(database.url.database)).name
    assert (code, printed) == (0, f"{folder} holds {name}\n")
    copy = Database(f"sqlite:///{folder / name}")
    assert agent_ids(copy) == ["ada"]
    copy.close()
    code, _, complaint = nautilus("db", "backup", str(folder))
    assert (code, complaint) == (1, f"nautilus: expected a new folder for the backup, but {folder} exists\n")
