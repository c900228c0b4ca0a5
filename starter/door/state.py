"""What the routes share, for as long as the door is open."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import structlog
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.requests import Request

from activities.database import Database
from schema.messages.platform import Platform
from starter.door.access import Keys
from starter.door.problems import Problem
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver

log = structlog.get_logger()

Result = TypeVar("Result")

# A writer that waits for longer has a store that does not answer.
WRITE_TIMEOUT_S = 10.0
RETRY_AFTER_S = 2
# Beyond these, a request is better repeated than kept.
MOST_WAITING = 64


class Writer:
    """Writes one after another, as the store does anyway. What has returned is committed."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="door-writer")
        self._waiting = 0

    async def write(self, work: Callable[[], Result]) -> Result:
        """The result of a transaction. Raises Problem (503) where the store is away or busy.

        It may then be committed later; to send the same again changes nothing.
        """
        if self._waiting >= MOST_WAITING:
            raise _away(f"{self._waiting} requests wait already")
        self._waiting += 1
        future = self._thread.submit(work)
        future.add_done_callback(lambda _: self._done())
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise _away(f"it has not answered for {WRITE_TIMEOUT_S:g} s") from None
        except (OperationalError, InternalError, PoolTimeout) as error:
            # InternalError: a server that has become a standby takes no writes. What it says names hosts and users.
            log.warning("door.store_away", error=str(getattr(error, "orig", error)))
            raise _away("it is away") from None

    def _done(self) -> None:
        self._waiting -= 1

    def close(self) -> None:
        """End after what is being written; what waits has been refused by then."""
        self._thread.shutdown(cancel_futures=True)


def _away(why: str) -> Problem:
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE, f"expected the store to answer, but {why}; send the same again", RETRY_AFTER_S
    )


@dataclass(frozen=True)
class Door:
    """The parts behind the routes."""

    database: Database
    platform: Platform
    keys: Keys
    resolver: ParameterResolver
    recorder: Recorder
    writer: Writer


def door_of(request: Request) -> Door:
    """The door that a request came through."""
    door: Door = request.app.state.door
    return door
