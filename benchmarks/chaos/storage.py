"""Storage that can fail for real: a database and a disk that are taken away, locked and filled.

Both lie on file systems of their own in memory, so that they can be full; root mounts them. Without root, nothing is
mounted, and those two faults are left out, with the reason.
"""

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

from sqlalchemy import text

from activities.database import Database
from benchmarks.phases import lock_database
from tests.postgres import PrivateServer

SIZE_MB = 2_000
# What a database's writers meet first: recorders, experiments, the ledger, the outbox.
LOCKED_TABLES = "outcome, rollup, ledger, event, parameter, transfer, meta_task"


class Disk:
    """A folder on a file system of its own, where that can be mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.why_not = ""

    @contextmanager
    def mounted(self) -> Iterator["Disk"]:
        self.folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(self.folder)]
        tried = subprocess.run(mount, capture_output=True, text=True, check=False)
        self.why_not = tried.stderr.strip() or "mount failed" if tried.returncode else ""
        try:
            yield self
        finally:
            if not self.why_not:
                kept = shutil.copytree(self.folder, self.folder.with_suffix(".kept"), symlinks=True)
                # Lazily: a process that was killed a moment ago may hold a file.
                subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
                kept.rename(self.folder)

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        """Take all that is free away, so that nothing more can be written; give it back at the end."""
        used_kb = (shutil.disk_usage(self.folder).used + 1_023) // 1_024
        await self._resize(f"{used_kb}k")
        try:
            yield
        finally:
            await self._resize(f"{SIZE_MB}m")

    async def _resize(self, size: str) -> None:
        command = ["mount", "-o", f"remount,size={size}", str(self.folder)]
        await asyncio.to_thread(subprocess.run, command, check=True)


class Storage(Protocol):
    """A database that faults can strike."""

    url: str

    async def stop(self) -> None: ...

    async def start(self) -> None: ...

    async def lock(self, seconds: float) -> None: ...


class Sqlite:
    """A SQLite file. To stop it is to move its folder away: what is open stays open, nothing can be opened anew."""

    def __init__(self, disk: Path) -> None:
        self._folder = disk / "sqlite"
        self._folder.mkdir()
        self.url = f"sqlite:///{self._folder / 'nautilus.db'}"

    async def stop(self) -> None:
        self._folder.rename(self._folder.with_suffix(".away"))

    async def start(self) -> None:
        self._folder.with_suffix(".away").rename(self._folder)

    async def lock(self, seconds: float) -> None:
        await asyncio.to_thread(lock_database, self._folder / "nautilus.db", seconds)


class Postgresql:
    """A private server. To stop it is to stop it at once (`pg_ctl stop -m immediate`): it recovers when it starts."""

    def __init__(self, server: PrivateServer) -> None:
        self._server = server
        self.url = server.url("nautilus").render_as_string(hide_password=False)

    async def stop(self) -> None:
        # It may have stopped by itself, on a full disk.
        with contextlib.suppress(subprocess.CalledProcessError):
            await asyncio.to_thread(self._server.stop)

    async def start(self) -> None:
        await asyncio.to_thread(self._server.start)

    async def lock(self, seconds: float) -> None:
        database = Database(self.url)
        try:
            with database.engine.begin() as connection:
                connection.execute(text(f"LOCK TABLE {LOCKED_TABLES} IN ACCESS EXCLUSIVE MODE"))
                await asyncio.sleep(seconds)
        finally:
            database.close()


@contextmanager
def sqlite(disk: Path) -> Iterator[Sqlite]:
    yield Sqlite(disk)


@contextmanager
def postgresql(disk: Path) -> Iterator[Postgresql]:
    server = PrivateServer(disk / "pg")
    server.create("nautilus")
    try:
        yield Postgresql(server)
    finally:
        server.remove()


KINDS: dict[str, Callable[[Path], AbstractContextManager[Storage]]] = {"sqlite": sqlite, "postgresql": postgresql}
