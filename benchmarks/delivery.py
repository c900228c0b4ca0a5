"""Kills the dispatcher 20 times while it delivers events to a webhook that fails a third of the time.

    python -m benchmarks.delivery [--quick] [--json]

10,000 events about 200 subjects go through the outbox of a real platform to a receiver on this machine that verifies
every signature and fails a third of the time: by a status, a dropped connection or silence, before or after it has
recorded the event. The worker, which runs the dispatcher, is killed 20 times (SIGKILL), at even steps of the way, and
started again. Every event must arrive, in order within its subject; what arrives twice has the same id.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from standardwebhooks import Webhook, WebhookVerificationError

from activities.database import Database, migrate
from activities.event_bus import start_bus
from activities.events import emit, undelivered
from benchmarks.output import note, own_stdout
from benchmarks.phases import platform_in
from benchmarks.processes import WORKER, Processes, Temporal
from schema.declaration import read_platform
from schema.messages.events import MetaTaskOpened
from schema.wire import EventType
from starter.stack import connect

SECRET_ENV, SECRET = "NAUTILUS_BENCHMARK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # pragma: allowlist secret
# Long enough for a busy machine: a late response would be a failure that was not planned.
TIMEOUT_S = 2.0
# Events of one transaction; several, because a change often announces more than one.
PER_TRANSACTION = 20
PATIENCE_S = 1_800.0


class Receiver:
    """A webhook receiver on a local port. `taken` are the ids it accepted, by subject, each once and in order."""

    def __init__(self, failing: float = 1 / 3, slow_s: float = 2 * TIMEOUT_S, secret: str = SECRET) -> None:
        self.taken: dict[str, list[str]] = defaultdict(list)
        self.posts = self.duplicates = self.forged = 0
        self.url = ""
        self._ids: set[str] = set()
        self._failing = failing
        self._random = random.Random(7)
        self._slow_s = slow_s
        self._signer = Webhook(secret)

    @property
    def arrived(self) -> int:
        return len(self._ids)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Self]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A killed sender leaves half a request, or closes before the response.
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head)}
                body = await reader.readexactly(int(headers["content-length"]))
                status = await self._respond(headers, body)
                if status is None:
                    break
                writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
                await writer.drain()
        writer.close()

    async def _respond(self, headers: dict[str, str], body: bytes) -> str | None:
        """The status line of the response; None to close the connection."""
        self.posts += 1
        try:
            self._signer.verify(body, headers)
        except WebhookVerificationError:
            self.forged += 1
            return "401 Unauthorized"
        if self._random.random() >= self._failing:
            self._take(body)
            return "204 No Content"
        match self._random.randrange(5):
            case 0:
                return "500 Internal Server Error"
            case 1:
                return "503 Service Unavailable\r\nretry-after: 1"
            case 2:
                return None
            case 3:
                self._take(body)
                return None
            case _:
                self._take(body)
                await asyncio.sleep(self._slow_s)
                return "204 No Content"

    def _take(self, body: bytes) -> None:
        event = json.loads(body)
        id, subject = event["id"], event["subject"]
        if id in self._ids:
            self.duplicates += 1
        else:
            self._ids.add(id)
            self.taken[subject].append(id)


def names(events: int, subjects: int) -> list[tuple[str, str]]:
    """The subject and the key of each event, in order."""
    return [(f"subject-{n % subjects}", f"{n // subjects:05}:{n % subjects}") for n in range(events)]


async def announce(database: Database, happening: list[tuple[str, str]], pause_s: float) -> None:
    for start in range(0, len(happening), PER_TRANSACTION):
        await asyncio.to_thread(_announce, database, happening[start : start + PER_TRANSACTION])
        await asyncio.sleep(pause_s)


def _announce(database: Database, happening: list[tuple[str, str]]) -> None:
    with database.transaction() as session:
        for subject, key in happening:
            emit(session, MetaTaskOpened(cycle_id=key), subject, key, datetime.now(UTC))


def judged(receiver: Receiver, happening: list[tuple[str, str]]) -> dict[str, int]:
    """Compare what arrived with what was announced."""
    expected: dict[str, list[str]] = defaultdict(list)
    for subject, key in happening:
        expected[subject].append(f"{EventType.META_TASK_OPENED.value}:{key}")
    out_of_order = 0
    for subject, ids in receiver.taken.items():
        place = {id: number for number, id in enumerate(expected[subject])}
        out_of_order += sum(place[later] < place[id] for id, later in itertools.pairwise(ids))
    return {
        "events": len(happening),
        "arrived": receiver.arrived,
        "missing": len(happening) - receiver.arrived,
        "out_of_order": out_of_order,
        "duplicates": receiver.duplicates,
        "posts": receiver.posts,
        "bad_signatures": receiver.forged,
    }


async def run(home: Path, events: int, subjects: int, kills: int) -> dict[str, Any]:
    os.environ[SECRET_ENV] = SECRET
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(Receiver().listening())
        platform_home = home / "platform"
        platform_in(platform_home)
        with (platform_home / "platform.toml").open("a") as declaration:
            declaration.write(
                f'[[webhooks]]\nname = "receiver"\nurl = "{receiver.url}"\n'
                f'secret_env = "{SECRET_ENV}"\ntimeout_s = {TIMEOUT_S}\n'
            )
        temporal = Temporal(home)
        server = await temporal.start()
        stack.push_async_callback(temporal.stop)
        client = await connect(server)
        database = Database(f"sqlite:///{platform_home / 'nautilus.db'}")
        stack.callback(database.close)
        await asyncio.to_thread(migrate, database)
        await start_bus(client, database, read_platform(platform_home / "platform.toml"))
        processes = Processes(server, home)
        stack.callback(processes.kill_all)
        processes.use(platform_home)
        processes.start(WORKER)
        happening = names(events, subjects)
        announcing = asyncio.create_task(announce(database, happening, 0.02))
        started, killed = time.perf_counter(), 0
        while receiver.arrived < events and time.perf_counter() - started < PATIENCE_S:
            if killed < kills and receiver.arrived >= events * (killed + 1) // (kills + 1):
                processes.kill(WORKER)
                killed += 1
                note(f"kill {killed}, after {receiver.arrived} events and {receiver.duplicates} duplicates")
                processes.start(WORKER)
            await asyncio.sleep(0.01)
        await announcing
        seconds = round(time.perf_counter() - started, 1)
        # Wait until every arrival is recorded: a late retry would be a duplicate.
        while undelivered(database) and time.perf_counter() - started < PATIENCE_S:
            await asyncio.sleep(0.1)
        return judged(receiver, happening) | {"kills": killed, "seconds": seconds}


def as_promised(report: dict[str, Any]) -> bool:
    return not (report["missing"] or report["out_of_order"] or report["bad_signatures"])


def main() -> None:
    own_stdout()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="600 events about 40 subjects, three kills")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    size = (600, 40, 3) if chosen.quick else (10_000, 200, 20)
    with tempfile.TemporaryDirectory(prefix="nautilus-delivery-") as home:
        report = asyncio.run(run(Path(home), *size))
    if chosen.json:
        print(json.dumps(report))
    else:
        print("\n".join(f"{name:>15}  {value}" for name, value in report.items()))
    sys.exit(0 if as_promised(report) else 1)


if __name__ == "__main__":
    main()
