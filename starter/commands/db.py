"""Commands about the database: the version of its schema, its upgrade, and the backup of an embedded platform."""

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

    database = open_database()
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


@app.command("backup", epilog="Example: nautilus db backup backups/monday")
def db_backup(
    folder: Annotated[Path, typer.Argument(help="Where to; it must not exist yet.")], as_json: AsJson = False
) -> None:
    """Copy the SQLite database, the embedded Temporal server's file and the keys of the built-in agents, as all run.

    The folder is a NAUTILUS_HOME of its own: `up` on it, or on a copy, is the restoration. For PostgreSQL and for a
    Temporal server of your own, docs/operators.md has the commands.
    """
    from schema.settings import Settings
    from starter.backup import back_up

    url = open_database().url
    if url.drivername != "sqlite":
        raise CommandError(f"expected a SQLite database, but {url} is another kind; `pg_dump` copies it")
    names = back_up(Settings().home, Path(str(url.database)), folder)
    said = f"{folder} holds {', '.join(names)}"
    answer(as_json, {"folder": str(folder), "files": names}, lambda: out.print(said, soft_wrap=True))
