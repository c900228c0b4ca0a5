"""A platform at rest: what all processes of `nautilus up` but the Temporal server take of one core.

15,000 outcomes an hour come evenly, one after another, through the door: by the product's own resolver and recorder,
as they run in a platform's process, which is not counted. The platform has eight days of history. What the window does
not hold, a snapshot and a scan, is measured after it, and added by how often it is due.
"""

import asyncio
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from pydantic import BaseModel
from temporalio.client import Client

from activities.database import Database, migrate
from activities.door_keys import create_platform_key
from activities.recording import record_outcomes
from benchmarks.load.process import Child, cpu_s, family
from benchmarks.output import note
from schema import connection
from schema.failure_kinds import FailureKind
from schema.messages.door import PLATFORM_SCOPES
from schema.messages.observatory import Fate, TaskOutcome
from schema.messages.platform import JobId
from starter.platform.door_store import DoorStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver
from starter.server import free_port

PER_HOUR, INTERVAL_S, HISTORY = 15_000, 3_600, timedelta(days=8)
# Of the outcomes of an hour of the history, so many are recorded: a snapshot reads the hours and not the outcomes.
RECORDED_PER_HOUR = 100
BOUND_PERCENT = 5.0
# The processes have started, and what is done once has been done.
SETTLE_S, START_TIMEOUT_S = 20.0, 120.0
SEED = 20261130
TYPES = ("research_synthesis", "physics_simulation", "ml_training", "monte_carlo")
SERVER = "temporal"
# Every how many seconds a job is due in production.
JOBS = {JobId.METRICS_SNAPSHOT: 3_600, JobId.AUTONOMY_SCAN: 300}
# Long enough for either to end.
JOB_S = 15.0


class IdleReport(BaseModel):
    """`percent` of one core in all; `by_process` and `by_job` are its parts."""

    percent: float
    by_process: dict[str, float]
    by_job: dict[str, float]
    temporal_percent: float
    outcomes: int
    seconds: float


async def measure(seconds: float) -> IdleReport:
    """Run a platform and measure it for so long. Raises RuntimeError where it does not do its work meanwhile."""
    with tempfile.TemporaryDirectory(prefix="nautilus-idle-") as folder:
        home = Path(folder)
        key = await asyncio.to_thread(_prepare, home)
        door, server = free_port(), free_port()
        async with _up(home, door, server) as pid:
            client = await connection.connect(f"127.0.0.1:{server}")
            with DoorStore(f"http://127.0.0.1:{door}", key) as store:
                # The first snapshot judges a whole day; every later one, an hour.
                await client.get_schedule_handle(JobId.METRICS_SNAPSHOT.value).trigger()
                await asyncio.sleep(SETTLE_S)
                note(f"idle: {PER_HOUR} outcomes an hour for {seconds:g} s")
                before, began = _used(pid), time.monotonic()
                outcomes = await asyncio.to_thread(_send, store, seconds)
                took = time.monotonic() - began
                after = _used(pid)
                if before.keys() != after.keys():
                    raise RuntimeError("expected processes that go on, but one of the platform ended meanwhile")
                shares = {name: 100 * (used - before[name]) / took for name, used in after.items()}
                temporal_percent = shares.pop(SERVER)
                by_job = {job.value: await _percent_of_job(client, pid, job, every_s) for job, every_s in JOBS.items()}
    return IdleReport(
        percent=round(sum(shares.values()) + sum(by_job.values()), 2),
        by_process={name: round(percent, 2) for name, percent in shares.items()},
        by_job={job: round(percent, 3) for job, percent in by_job.items()},
        temporal_percent=round(temporal_percent, 2),
        outcomes=outcomes,
        seconds=round(took, 1),
    )


async def _percent_of_job(client: Client, pid: int, job: JobId, every_s: int) -> float:
    """What one run of a job takes on top of the platform without outcomes, as a share of the time between two."""
    quiet = await _own_use(pid)
    await client.get_schedule_handle(job.value).trigger()
    busy = await _own_use(pid)
    return 100 * max(0.0, busy - quiet) / every_s


async def _own_use(pid: int) -> float:
    """The seconds of CPU that all but the server take within JOB_S."""
    before = _used(pid)
    await asyncio.sleep(JOB_S)
    after = _used(pid)
    return sum(after[name] - before[name] for name in after if name != SERVER)


def _used(pid: int) -> dict[str, float]:
    """The seconds of CPU that each process of a platform has taken, by the name of its part."""
    return {_name(command): cpu_s(process) for process, command in family(pid).items()}


def _name(command: str) -> str:
    """`worker` of `python -m starter worker`."""
    return SERVER if "server start-dev" in command else command.partition("-m starter ")[2].split()[0]


def _send(store: DoorStore, seconds: float) -> int:
    """Resolve and record as a platform does, for so long; how many outcomes were acknowledged as new."""
    random = Random(SEED)
    acknowledged: list[Future[Fate | None]] = []
    with ParameterResolver(store) as resolver, Recorder(store) as recorder:
        began = time.monotonic()
        while (due_s := len(acknowledged) * 3_600 / PER_HOUR) < seconds:
            time.sleep(max(0.0, began + due_s - time.monotonic()))
            now = datetime.now(UTC)
            task = _outcome(random, f"task-{len(acknowledged)}", now)
            resolved = resolver.resolve_task(task.task_type, task.task_id, now)
            recorder.assigned(resolved.assignments)
            acknowledged.append(recorder.record(task))
        time.sleep(max(0.0, began + seconds - time.monotonic()))
    fates = [future.result(timeout=60) for future in acknowledged]
    if fates.count(Fate.NEW) != len(fates):
        raise RuntimeError(f"expected {len(fates)} new outcomes, but {fates.count(Fate.NEW)} are")
    return len(fates)


def _outcome(random: Random, task_id: str, finished_at: datetime) -> TaskOutcome:
    duration_s = min(60.0, random.lognormvariate(2, 0.6))
    return TaskOutcome(
        task_id=task_id,
        task_type=random.choice(TYPES),
        started_at=finished_at - timedelta(seconds=duration_s),
        finished_at=finished_at,
        duration_s=duration_s,
        failure=FailureKind.ERROR if random.random() < 0.1 else None,
        agent_id=f"agent-{random.randrange(20)}",
        quality=random.betavariate(8, 2),
        cost=random.lognormvariate(-3, 0.5),
    )


def _prepare(home: Path) -> str:
    """Declare a platform in `home`, give it a history, and return the text of a key of its door."""
    declared = [f"[observatory]\ninterval_s = {INTERVAL_S}\n"]
    for name in TYPES:
        declared.append(f'[[task_types]]\nname = "{name}"\n')
        declared.append(f'[[parameters]]\nkey = "{name}.timeout_s"\nkind = "float"\nunit = "s"\ndefault = 90.0\n')
        declared.append(f'minimum = 10.0\nmaximum = 600.0\ntask_types = ["{name}"]\n')
    (home / "platform.toml").write_text("\n".join(declared), encoding="utf-8")
    database = Database(f"sqlite:///{home / 'nautilus.db'}")
    migrate(database)
    now, random = datetime.now(UTC), Random(SEED)
    count = int(HISTORY / timedelta(hours=1)) * RECORDED_PER_HOUR
    every = HISTORY / count
    with database.transaction() as session:
        past = [_outcome(random, f"past-{number}", now - HISTORY + number * every) for number in range(count)]
        record_outcomes(session, past, INTERVAL_S)
    _, key = create_platform_key(database, "benchmark", PLATFORM_SCOPES, "benchmark", now)
    database.close()
    return key


@asynccontextmanager
async def _up(home: Path, door: int, server: int) -> AsyncIterator[int]:
    """`nautilus up` in `home`, as a person starts it; its process id, once its door is open."""
    places = {"NAUTILUS_HOME": str(home), "NAUTILUS_PLATFORM": str(home / "platform.toml")}
    ports = [f"--port={server}", f"--ui-port={free_port()}", f"--door-port={door}"]
    up = Child(["-m", "starter", "up", *ports], places, home / "up.log")
    try:
        await _opened(door, up)
        yield up.pid
    finally:
        await asyncio.to_thread(up.end, signal.SIGTERM)


async def _opened(door: int, up: Child) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while up.process.poll() is None and time.monotonic() < deadline:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", door)
        except OSError:
            await asyncio.sleep(0.2)
        else:
            writer.close()
            return
    last = up.log.read_text(errors="replace").strip().splitlines()[-1:]
    raise RuntimeError(f"expected `nautilus up` to open its door within {START_TIMEOUT_S:g} s, but: {' '.join(last)}")
