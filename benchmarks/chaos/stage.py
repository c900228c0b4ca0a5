"""The stage: a whole platform of real processes, and a receiver of its events that no fault strikes.

Two workers, the built-in agents, a door, and the process that does tasks (`benchmarks.chaos.traffic`) are started as an
operator starts them; Temporal is the embedded server with its file. What the witness writes (journal, plays, clock)
lies outside the disks that become full.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from temporalio.client import Client

from activities.database import Database, migrate
from activities.door_keys import create_platform_key
from activities.event_bus import start_bus
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from benchmarks.chaos.clock import Clock
from benchmarks.chaos.declared import SECRET_ENV, TYPES, declaration, now, outcome, platform
from benchmarks.chaos.storage import KINDS, Disk, Storage
from benchmarks.chaos.trace import Event
from benchmarks.delivery import SECRET, TIMEOUT_S, Receiver
from benchmarks.phases import LIMIT_S, TASKS_BEFORE
from benchmarks.processes import AGENTS, COMMANDS, WORKER, Processes, Temporal
from schema.messages.door import PLATFORM_SCOPES
from schema.messages.observatory import TaskOutcome
from schema.messages.platform import Platform
from starter.server import free_port
from starter.stack import connect, register_own

WORKERS = ("worker-1", "worker-2")
DOOR, RECORDER = "door", "recorder"
# A tenth of the deliveries fail by themselves; that the subscriber is away a third of the time is benchmarks.delivery.
FAILING = 0.1


class Subscriber(Receiver):
    """Receives events and remembers every arrival. `ambush`, once set, is awaited during the next delivery."""

    def __init__(self) -> None:
        super().__init__(failing=FAILING)
        self.arrivals: list[Event] = []
        self.ambush: Callable[[], Awaitable[None]] | None = None

    async def _respond(self, headers: dict[str, str], body: bytes) -> str | None:
        ambush, self.ambush = self.ambush, None
        if ambush is not None:
            await ambush()
        return await super()._respond(headers, body)

    def _take(self, body: bytes) -> None:
        event = json.loads(body)
        self.arrivals.append(Event(key=event["id"], subject=event["subject"]))
        super()._take(body)


@dataclass
class Stage:
    """What faults strike, and what the witness needs to see it."""

    witness: Path
    home: Path
    disks: dict[str, Disk]
    storage: Storage
    platform: Platform
    database: Database
    temporal: Temporal
    client: Client
    processes: Processes
    subscriber: Subscriber
    past: Sequence[TaskOutcome]
    clock: Clock
    restarted: Counter[str] = field(default_factory=Counter)

    @property
    def journal(self) -> Path:
        return self.witness / "journal.jsonl"

    def play(self, slower: dict[str, float]) -> None:
        """Have tasks done of these types, each so many times slower than at first."""
        write(self.witness / "plays.json", json.dumps(slower))

    async def keep_running(self) -> None:
        """Start again what ends by itself, after a second, as `up` does."""
        while True:
            await asyncio.sleep(1)
            self.restarted.update(self.processes.start_ended())


def write(path: Path, text: str) -> None:
    """Write a file that others read at any time: they see the old text or the new one."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


@asynccontextmanager
async def staged(folder: Path, kind: str) -> AsyncIterator[Stage]:
    """A platform on a database of this kind, running; its processes are gone at the end."""
    async with AsyncExitStack() as stack:
        witness = folder / "witness"
        witness.mkdir(parents=True)
        disk = stack.enter_context(Disk(folder / "home").mounted())
        database_disk = stack.enter_context(Disk(folder / "db").mounted())
        storage = stack.enter_context(KINDS[kind](database_disk.folder))
        subscriber = await stack.enter_async_context(Subscriber().listening())
        declared = declaration(subscriber.url, TIMEOUT_S)
        (disk.folder / "platform.toml").write_text(declared)

        temporal = Temporal(disk.folder)
        server = await temporal.start()
        stack.push_async_callback(temporal.stop)
        client = await connect(server)
        database = Database(storage.url)
        stack.callback(database.close)
        past, door_key = await _set_up(client, database, platform(declared), disk.folder)

        port, clock = free_port(), Clock(witness)
        commands = dict.fromkeys(WORKERS, COMMANDS[WORKER]) | {
            AGENTS: COMMANDS[AGENTS],
            DOOR: ["-m", "starter", "door", "--port", str(port)],
            RECORDER: ["-m", "benchmarks.chaos.traffic", str(witness / "plays.json"), str(witness / "journal.jsonl")],
        }
        environment = {
            SECRET_ENV: SECRET,
            "NAUTILUS_HOME": str(disk.folder),
            "NAUTILUS_PLATFORM": str(disk.folder / "platform.toml"),
            "NAUTILUS_DATABASE_URL": storage.url,
            "NAUTILUS_EVENT_POLL_S": "0.5",
            "NAUTILUS_DOOR_URL": f"http://127.0.0.1:{port}",
            "NAUTILUS_DOOR_KEY": door_key,
        }
        processes = Processes(server, disk.folder, commands, environment | dict(clock.environment))
        stack.callback(processes.kill_all)
        stage = Stage(
            witness=witness,
            home=disk.folder,
            disks={"disk": disk, "database": database_disk},
            storage=storage,
            platform=platform(declared),
            database=database,
            temporal=temporal,
            client=client,
            processes=processes,
            subscriber=subscriber,
            past=past,
            clock=clock,
        )
        stage.play({})
        for name in commands:
            processes.start(name)
        yield stage


async def _set_up(client: Client, database: Database, declared: Platform, home: Path) -> tuple[list[TaskOutcome], str]:
    """Declare and register everything, and record the past; the past, and a key for the door."""
    await asyncio.to_thread(migrate, database)
    # First, so that the subscriber gets every event there is.
    await start_bus(client, database, declared)
    at = now()
    declare_parameters(database, declared, at)
    register_own(database, home, at)
    _, door_key = create_platform_key(database, "chaos", PLATFORM_SCOPES, "chaos", at)
    before = at - timedelta(seconds=3)
    past = [
        outcome(task_type, f"{task_type}-past-{number}", number, 1.0, LIMIT_S, before)
        for task_type in TYPES
        for number in range(TASKS_BEFORE)
    ]
    with database.transaction() as session:
        record_outcomes(session, past, declared.observatory.interval_s)
    return past, door_key
