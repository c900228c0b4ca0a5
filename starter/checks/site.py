"""Site: the installation under examination. Opens its database and its Temporal server once, and only to ask them."""

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Error as SqliteError
from typing import TYPE_CHECKING

from schema.declaration import DeclarationError, declared_platform
from schema.settings import Settings

if TYPE_CHECKING:
    from temporalio.client import Client

    from activities.reading import Readable
    from schema.messages.platform import Platform

# A server that does not answer at all is reported, and not waited for.
CONNECT_S = 10


class Away(Exception):
    """What a check needs is not there; the check named `check` says more."""

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(reason)
        self.check = check


def _now() -> datetime:
    return datetime.now(UTC)


def _free_and_total(path: Path) -> tuple[int, int]:
    usage = shutil.disk_usage(path)
    return usage.free, usage.total


class Site:
    """An installation as the settings name it; `close` it. `full`: check everything, however long it takes."""

    def __init__(
        self,
        settings: Settings,
        full: bool = False,
        now: Callable[[], datetime] = _now,
        environment: Mapping[str, str] = os.environ,
        free_and_total: Callable[[Path], tuple[int, int]] = _free_and_total,
    ) -> None:
        self.settings = settings
        self.full = full
        self.now = now
        self.environment = environment
        self.free_and_total = free_and_total
        self._readable: Readable | Away | None = None
        self._client: Client | Away | None = None

    def platform(self) -> "Platform":
        """The declaration; raises Away where there is no valid one."""
        try:
            return declared_platform(self.settings)
        except DeclarationError as error:
            raise Away("declaration", str(error)) from None

    def readable(self) -> "Readable":
        """The database, which has answered; raises Away where it does not, each time with the first reason."""
        if self._readable is None:
            self._readable = _opened(self.settings.database)
        if isinstance(self._readable, Away):
            raise self._readable
        return self._readable

    async def client(self) -> "Client":
        """The Temporal server, which has answered; raises Away where it does not, each time with the first reason."""
        if self._client is None:
            self._client = await _connected()
        if isinstance(self._client, Away):
            raise self._client
        return self._client

    def close(self) -> None:
        """Close the connections to the database."""
        _close(self._readable)


def _close(readable: object) -> None:
    from activities.database import Database

    if isinstance(readable, Database):  # a SQLite file is open for the length of a statement only
        readable.close()


def _opened(url: str) -> "Readable | Away":
    from sqlalchemy.exc import SQLAlchemyError

    readable = None
    try:
        readable = _open(url)
        readable.rows("SELECT version_num FROM alembic_version")
    except (SQLAlchemyError, SqliteError) as error:
        _close(readable)
        if "no such table" in str(error) or "UndefinedTable" in str(error):
            return Away("database", "expected the platform's tables, but the database has none")
        return Away("database", f"the database cannot be used: {getattr(error, 'orig', None) or error}")
    except (ValueError, OSError) as error:  # there is no file, no such driver, or no such kind of database
        return Away("database", str(error))
    return readable


def _open(url: str) -> "Readable":
    from sqlalchemy.engine import make_url

    from activities.database import existing
    from activities.reading import SqliteFile, existing_file

    parsed = make_url(url)
    if parsed.drivername == "sqlite" and not parsed.query:
        return SqliteFile(existing_file(parsed.database))
    if parsed.get_backend_name() == "postgresql" and "connect_timeout" not in parsed.query:
        parsed = parsed.update_query_dict({"connect_timeout": str(CONNECT_S)})
    return existing(parsed.render_as_string(hide_password=False))


async def _connected() -> "Client | Away":
    from temporalio.service import RPCError

    from schema import connection

    try:
        async with asyncio.timeout(CONNECT_S):
            return await connection.connect()
    except TimeoutError:
        return Away("temporal", f"expected an answer of the Temporal server within {CONNECT_S} s, but none came")
    except (RPCError, RuntimeError, OSError, ValueError) as error:  # an address or a certificate that cannot be used
        return Away("temporal", str(error))
