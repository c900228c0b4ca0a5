"""Access: who calls, what they may do, how often, and how much they may send.

It stands before the application, so that nothing of a request is read or parsed before its key was accepted.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from time import monotonic

import structlog
from anyio.to_thread import run_sync
from limits import RateLimitItem, RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from activities.door_keys import KnownKey, matching
from schema.messages.door import DoorKey, DoorRules, Scope
from starter.door.problems import TRACES, Problem

log = structlog.get_logger()

# Which scope a path needs, by the beginning of the path.
SCOPES = {
    "/ofrep/": Scope.PARAMETERS,
    "/v1/flags": Scope.PARAMETERS,
    "/v1/configuration": Scope.PARAMETERS,
    "/v1/exposures": Scope.OUTCOMES,
    "/v1/outcomes": Scope.OUTCOMES,
    TRACES: Scope.OUTCOMES,
    "/mcp": Scope.AGENTS,
}
# Without a key: whether the door works, and what it takes.
OPEN = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})
# What the page of the routes is made of.
PAGE = "/docs/"
# As long as a revoked key may still open the door.
KEYS_REFRESH_S = 1.0
# A key that is not known may be a new one: an exporter of spans that is refused once drops what it has. No oftener, or
# who sends wrong keys would have the store read for each.
UNKNOWN_REFRESH_S = 0.1
# A store that hangs must not keep every request: they go on with the last keys, as when it is away.
KEYS_PATIENCE_S = 0.5
# Where there are no last keys yet.
FIRST_KEYS_PATIENCE_S = 10.0
# Wrong keys from one address: a client that has a typing mistake sends few, and nobody guesses 256 bits.
WRONG_KEYS_PER_S = 10
# Requests of one key that are under way, each with a body in memory: a platform's processes have a few each.
MOST_UNDER_WAY = 100
# A body that comes more slowly than this occupies memory for no good reason.
BODY_TIMEOUT_S = 30.0


class Keys:
    """The keys in force, read again when they have aged; the last ones that were read while the store is away.

    One reading at a time, and where it takes longer than KEYS_PATIENCE_S, requests go on without it.
    """

    def __init__(self, load: Callable[[], dict[str, KnownKey]]) -> None:
        self._load = load
        self._keys: Mapping[str, KnownKey] | None = None
        self._read_at = 0.0
        self._reading: asyncio.Task[None] | None = None
        self._began_at = 0.0

    async def matching(self, text: str) -> DoorKey | None:
        """The key in force whose text this is. Raises Problem where none were ever read."""
        key = matching(await self._younger_than(KEYS_REFRESH_S), text)
        if key is None and text:
            key = matching(await self._younger_than(UNKNOWN_REFRESH_S), text)
        return key

    async def _younger_than(self, age_s: float) -> Mapping[str, KnownKey]:
        """The keys as they were so long ago at most, or the last ones, where the store does not give them in time."""
        if self._keys is None or monotonic() - self._read_at > age_s:
            if self._reading is None or self._reading.done():
                self._began_at = monotonic()
                self._reading = asyncio.create_task(self._read())
            patience_s = FIRST_KEYS_PATIENCE_S if self._keys is None else KEYS_PATIENCE_S
            await asyncio.wait({self._reading}, timeout=max(0.0, self._began_at + patience_s - monotonic()))
        if self._keys is None:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "expected to read the keys, but the store is away", 5)
        return self._keys

    async def _read(self) -> None:
        try:
            # Abandoned when the door closes, which must not wait for a store that hangs.
            self._keys = await run_sync(self._load, abandon_on_cancel=True)
        except (SQLAlchemyError, ValueError) as error:
            log.warning("door.keeps_last_keys", error=str(getattr(error, "orig", error)))
        self._read_at = monotonic()


class Access:
    """ASGI middleware: refuses a request, or passes it on with its key (`request.state.key`) and its whole body."""

    def __init__(self, app: ASGIApp, keys: Keys, rules: DoorRules) -> None:
        self._app = app
        self._keys = keys
        self._largest_body = rules.largest_body_kb * 1_000
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._rates: dict[bool, RateLimitItem] = {
            True: RateLimitItemPerSecond(rules.agent_requests_per_s),
            False: RateLimitItemPerSecond(rules.platform_requests_per_s),
        }
        self._wrong_keys = RateLimitItemPerSecond(WRONG_KEYS_PER_S)
        self._under_way = Counter[str]()

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        if connection["type"] == "http" and connection["method"] == "HEAD":
            # Every GET answers it (RFC 9110), and monitors ask so; the server leaves the body out.
            connection = dict(connection) | {"method": "GET"}
        if connection["type"] != "http" or connection["path"] in OPEN or connection["path"].startswith(PAGE):
            await self._app(connection, receive, send)
            return
        try:
            key = await self._admitted(connection)
            with self._counted(key.key_id):
                connection.setdefault("state", {})["key"] = key
                body = await self._body(Headers(scope=connection), receive)
                await self._app(connection, _replayed(body, receive), send)
        except Problem as refused:
            await refused.response(connection)(connection, receive, send)

    @contextmanager
    def _counted(self, key_id: str) -> Iterator[None]:
        """Count a request as long as it is under way. Raises Problem where the key has too many."""
        if self._under_way[key_id] >= MOST_UNDER_WAY:
            expected = f"expected at most {MOST_UNDER_WAY} requests of a key at once"
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, f"{expected}, but more came", 1)
        self._under_way[key_id] += 1
        try:
            yield
        finally:
            self._under_way[key_id] -= 1

    async def _admitted(self, connection: Connection) -> DoorKey:
        """The key of a request that may go on. Raises Problem."""
        text = _presented(Headers(scope=connection))
        key = await self._keys.matching(text)
        if key is None:
            client = connection.get("client") or ("", 0)
            await self._count(self._wrong_keys, f"wrong:{client[0]}")
            came = "one came that is unknown or revoked" if text else "none came"
            raise Problem(
                HTTPStatus.UNAUTHORIZED,
                f"expected a key in force, as `Authorization: Bearer nautilus_...` or `X-API-Key`, but {came}; "
                "`nautilus door key create` makes one",
            )
        needed = next((scope for path, scope in SCOPES.items() if connection["path"].startswith(path)), None)
        if needed is not None and needed not in key.scopes:
            scopes = ", ".join(key.scopes)
            raise Problem(
                HTTPStatus.FORBIDDEN, f"expected a key with the scope {needed}, but {key.key_id} has {scopes}"
            )
        await self._count(self._rates[Scope.AGENTS in key.scopes], key.key_id)
        return key

    async def _count(self, rate: RateLimitItem, name: str) -> None:
        """Count a request. Raises Problem where there were too many in this second."""
        if not await self._limiter.hit(rate, name):
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS, f"expected at most {rate.amount} requests a second, but more came", 1
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body. Raises Problem for one that is too large, or comes too slowly."""
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._largest_body:
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        more = True
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while more:
                    message = await receive()
                    chunk = message.get("body", b"")
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > self._largest_body:
                        raise self._too_large()
                    more = message.get("more_body", False)
        except TimeoutError:
            expected = f"expected the whole body within {BODY_TIMEOUT_S:g} s"
            raise Problem(HTTPStatus.REQUEST_TIMEOUT, f"{expected}, but {size} bytes came") from None
        return b"".join(chunks)

    def _too_large(self) -> Problem:
        largest_kb = self._largest_body // 1_000
        return Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a body of at most {largest_kb} kB, but a larger one came"
        )


def _presented(headers: Headers) -> str:
    """The text of a key, from either of the headers that OFREP knows; empty where there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return headers.get("x-api-key", "")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the application the body that was read, and then whatever comes: the end of the connection."""
    was_given = False

    async def replay() -> Message:
        nonlocal was_given
        if was_given:
            return await receive()
        was_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
