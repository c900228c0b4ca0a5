"""Deliveries to a receiver that answers with everything but what HTTP has: what goes out comes back as an answer.

A delivery ends in time: delivered, refused for good or worth a retry. Nothing that the receiver sends is used but its
status and Retry-After.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random
from time import perf_counter

from activities.deliveries import LONGEST_RETRY_AFTER_S, Deliver, Deliveries, Later, Undeliverable
from benchmarks.fuzz import hostile
from benchmarks.fuzz.stage import Stage
from benchmarks.fuzz.tally import Tally
from benchmarks.fuzz.targets import check_line
from schema.messages.outbox import Event
from schema.messages.platform import Webhook
from schema.wire import EventType
from starter.server import free_port

SENDERS, TIMEOUT_S = 8, 1.0
# How much longer than its time-out a delivery may take, on a busy machine.
GRACE_S = 5.0
SECRET = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldY"  # pragma: allowlist secret
OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS = b"x" * 65_536
RETRY_AFTER = (
    "1" + "0" * 400,
    "-1",
    "NaN",
    "Wed, 21 Oct 99999 07:28:00 GMT",
    "²",
    "1e9",
    "\x00",
    "Mon, 31 Feb 2026 00:00:00 GMT",
    "",
)
ANSWERS: tuple[bytes, ...] = (
    OK + b"Content-Length: 0\r\n\r\n",
    OK + b"Content-Length: 99999999999999\r\n\r\n" + ENDLESS * 4,
    OK + b"Content-Length: -5\r\n\r\n",
    OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc",
    OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    OK + b"X: " + ENDLESS * 8,
    OK + b"X: y\r\n" * 20_000 + b"\r\n",
    OK + b": \r\n\x00: \x00\r\n\r\n",
    b"HTTP/1.1 301 Moved\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/meta-data\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 307 Temporary\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000,
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\nand yet a body",
    b"HTTP/1.1 999 \r\n\r\n",
    b"HTTP/1.1 000 Nothing\r\n\r\n",
    b"HTTP/1.1 -1 Less\r\n\r\n",
    b"HTTP/1.1 20 Short\r\n\r\n",
    b"HTTP/1.1 200\r\n\r\n",
    b"HTTP/9.9 200 OK\r\n\r\n",
    b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 " + b"\x1b[2J" * 20 + b"\r\nContent-Length: 0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x15\x03\x01\x00\x02\x02\x28",
    b"",
)


class Receiver:
    """Takes any request, and answers as the dice say."""

    def __init__(self, dice: int) -> None:
        self._rng = Random(f"receiver {dice}")

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """The URL at which it listens."""
        port = free_port()
        server = await asyncio.start_server(self._answer, "127.0.0.1", port)
        try:
            yield f"http://127.0.0.1:{port}/hook"
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await reader.readuntil(b"\r\n\r\n")
            await self._write(writer)
            await writer.drain()
        writer.close()

    async def _write(self, writer: asyncio.StreamWriter) -> None:
        match self._rng.randrange(12):
            case 0:
                after = self._rng.choice(RETRY_AFTER).encode("latin-1", "replace")
                status = self._rng.choice((b"429 Slow down", b"503 Away", b"408 Late", b"500 No"))
                writer.write(b"HTTP/1.1 " + status + b"\r\nRetry-After: " + after + b"\r\nContent-Length: 0\r\n\r\n")
            case 1 if self._rng.randrange(3) == 0:  # drop by drop, for longer than anybody should wait
                for byte in OK * 20:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.05)
            case 2 if self._rng.randrange(4) == 0:  # nothing, and the connection stays open
                await asyncio.sleep(3 * TIMEOUT_S)
            case 3 | 4 | 5:
                writer.write(hostile.damaged(self._rng.choice(ANSWERS), self._rng))
            case _:
                writer.write(self._rng.choice(ANSWERS))


async def through_the_webhook(stage: Stage, count: int, dice: int) -> Tally:
    """Deliver so many events to the receiver."""
    tally = Tally("webhook")
    async with Receiver(dice).listening() as url:
        declared = Webhook(name="ours", url=url, secret_env="FUZZ_SECRET", timeout_s=TIMEOUT_S)
        platform = stage.platform.model_copy(update={"webhooks": (declared,)})
        deliveries = Deliveries(stage.temporal, platform, stage.database, {"FUZZ_SECRET": SECRET})
        before = stage.rows()
        numbers = iter(range(count))
        async with deliveries.open("webhook:ours") as deliver:

            async def sender() -> None:
                for number in numbers:
                    await _deliver(deliver, number, tally)

            await asyncio.gather(*itertools.starmap(sender, [()] * SENDERS))
        if stage.rows() != before:
            tally.written += 1
            tally.example("rows have changed")
    return tally


async def _deliver(deliver: Deliver, number: int, tally: Tally) -> None:
    data = {"anomaly_id": "a", "reason": "over"}
    now = asyncio.get_running_loop().time()
    event = Event(
        key=f"fuzz-{number}",
        type=EventType.ANOMALY_CLOSED,
        subject="fuzz",
        at="2026-11-30T00:00:00Z",
        data=data,
        sequence=number,
    )
    tally.sent += 1
    began = perf_counter()
    try:
        await deliver(event)
    except (Undeliverable, Later) as refusal:
        tally.refused += 1
        _judge(refusal, tally)
    except Exception as error:  # noqa: BLE001  (that is what it looks for)
        tally.crashed += 1
        tally.example(f"{type(error).__name__}: {str(error)[:200]!r}")
    else:
        tally.accepted += 1
    took_s = perf_counter() - began
    tally.slowest_s = max(tally.slowest_s, round(took_s, 3))
    if took_s > TIMEOUT_S + GRACE_S:
        tally.stalled += 1
        tally.example(f"took {took_s:.1f} s, begun at {now:.1f}")


def _judge(refusal: Undeliverable | Later, tally: Tally) -> None:
    try:
        check_line(str(refusal))
        if isinstance(refusal, Later):
            assert 0 <= refusal.after_s <= LONGEST_RETRY_AFTER_S, f"a retry after {refusal.after_s} s"
    except AssertionError as unclear:
        tally.unclear += 1
        tally.example(str(unclear))
