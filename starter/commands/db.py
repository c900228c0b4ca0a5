"""Commands about the database: the version of its schema, its upgrade, and a backup of a SQLite file."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from starter.command import AsJson, CommandError, answer, emit, open_database, out

app = typer.Typer(
    no_args_is_help=True, help="The database: its schema and its backup.", epilog="Example: nautilus db check"
)


@app.callback()
def db() -> None:
    """The database: its schema and its backup."""


@app.command("check", epilog="Example: nautilus db check")
def db_check(as_json: AsJson = False) -> None:
    """Whether the schema is the one that this release expects, and what to do; exit code 1 where it is not."""
    from activities.database import version_of

    with closing(open_database()) as database:
        found = version_of(database)
    if as_json:
        # The URL as SQLAlchemy prints it: without the password.
        emit({"database": str(database.url), "ok": found.mistake is None, "mistake": found.mistake, **found._asdict()})
        raise typer.Exit(0 if found.mistake is None else 1)
    if found.mistake is not None:
        raise CommandError(found.mistake)
    out.print(f"schema {found.version}, which is the newest: {database.url}", soft_wrap=True)


@app.command("upgrade", epilog="Example: nautilus db upgrade")
def db_upgrade(as_json: AsJson = False) -> None:
    """Bring the schema to the version that this release expects, or make it in a new database; idempotent.

    A SQLite file is copied first, beside it. Stop what runs on the earlier release before. `up` upgrades, too.
    """
    from activities.database import Database, migrate
    from schema.settings import Settings

    with closing(Database(Settings().database)) as database:
        upgrade = migrate(database)

    def in_words() -> None:
        if upgrade.copy is not None:
            out.print(f"the database as it was is in {upgrade.copy}", soft_wrap=True)
        match upgrade.before:
            case None:
                out.print(f"made schema {upgrade.after} in a new database", soft_wrap=True)
            case upgrade.after:
                out.print(f"nothing to do: the schema is {upgrade.after}, which is the newest", soft_wrap=True)
            case _:
                out.print(f"upgraded from schema {upgrade.before} to {upgrade.after}", soft_wrap=True)

    copy = None if upgrade.copy is None else str(upgrade.copy)
    answer(as_json, {"from": upgrade.before, "to": upgrade.after, "copy": copy}, in_words)


@app.command("backup", epilog="Example: nautilus db backup nautilus-backup.db")
def db_backup(
    file: Annotated[Path, typer.Argument(help="The copy, which must not exist yet.")], as_json: AsJson = False
) -> None:
    """Copy a SQLite database while it is written to; to restore, put the copy where the database was.

    Of PostgreSQL, `pg_dump` does it; docs/operators.md has both, and what of Temporal belongs to a backup.
    """
    from activities.schema_version import copy_sqlite

    database = open_database()
    if database.url.drivername != "sqlite":
        raise CommandError(f"expected a SQLite database, but this is {database.url.drivername}; use pg_dump")
    copy_sqlite(Path(str(database.url.database)), file)
    size = file.stat().st_size
    answer(as_json, {"copy": str(file), "bytes": size}, lambda: out.print(f"{file}: {size:,} bytes", soft_wrap=True))
