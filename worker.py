"""The worker: the composition root. Connects the activities to their dependencies and runs until it is stopped.

    python worker.py        the same as `nautilus worker`

Temporal is configured in the SDK's way (temporal.toml, TEMPORAL_ADDRESS, ...), the database by NAUTILUS_DATABASE_URL.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from hashlib import sha256
from inspect import getmembers, ismethod
from itertools import chain
from pathlib import Path
from typing import Any

import structlog
from temporalio.client import Client
from temporalio.worker import Worker

from activities.consolidation import ConsolidationActivities
from activities.database import Database, existing, expect_newest
from activities.deliveries import Deliveries
from activities.event_bus import EventActivities
from activities.experiment import ExperimentActivities
from activities.identity import IdentityActivities
from activities.market import MarketActivities
from activities.observatory import ObservatoryActivities
from activities.proposals import ProposalActivities
from activities.report import ReportActivities
from activities.schedules import ScheduleActivities
from activities.task_runner import TaskRunner
from activities.task_types import installed
from activities.task_work import Resolver, TaskWork
from activities.tasks import TaskActivities
from schema import connection, wire
from schema.declaration import declared_platform
from schema.messages.platform import Platform
from schema.settings import Settings
from starter import health
from starter.platform.database_store import DatabaseStore
from starter.platform.resolver import ParameterResolver
from starter.preflight import expect_replay
from starter.telemetry import runtime
from workflows.autonomy import AutonomyScan, AwardDueBids
from workflows.consolidation import Consolidation
from workflows.event_bus import EventBus
from workflows.improvement_cycle import ImprovementCycle
from workflows.market_task import MarketTask
from workflows.observatory import Diagnostics, Observatory
from workflows.plugin import plugin
from workflows.standing_decay import StandingDecay
from workflows.type_registration import RegisterTaskType

log = structlog.get_logger()

WORKFLOWS: Sequence[type] = (
    ImprovementCycle,
    Observatory,
    Diagnostics,
    EventBus,
    AutonomyScan,
    AwardDueBids,
    Consolidation,
    MarketTask,
    RegisterTaskType,
    StandingDecay,
)
# Activities are short transactions; SQLite has one writer, so more threads would only wait for it.
ACTIVITY_THREADS = 16
# Long enough for a transaction that waits for a busy database to finish before the process leaves.
GRACE = timedelta(seconds=10)
ROOT = Path(__file__).parent
# The code that workflows run: whether a history replays depends on nothing else.
DECIDING = ("workflows", "rules", "schema")


def activities(database: Database, client: Client, platform: Platform, settings: Settings) -> list[Callable[..., Any]]:
    """Every activity, bound to its dependencies: each public method of these classes is one."""
    instances = (
        ExperimentActivities(database, platform),
        MarketActivities(database, platform),
        ObservatoryActivities(database, platform),
        ProposalActivities(database),
        ScheduleActivities(client, database, platform),
        EventActivities(database, platform, Deliveries(client, platform, database).open, settings.event_poll_s),
        ConsolidationActivities(database, platform),
        ReportActivities(database, platform),
        IdentityActivities(database),
        TaskActivities(database, platform),
    )
    methods = chain.from_iterable(getmembers(instance, ismethod) for instance in instances)
    return [method for name, method in methods if not name.startswith("_")]


@cache
def code_id() -> str:
    """The hash of the code that workflows run. The server lists by it what each deploy has had a hand in."""
    digest = sha256()
    for folder in DECIDING:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def worker(
    client: Client, database: Database, platform: Platform, settings: Settings, task_queue: str = wire.TASK_QUEUE
) -> Worker:
    """A worker on `task_queue`; the caller runs it."""
    return Worker(
        client,
        task_queue=task_queue,
        workflows=WORKFLOWS,
        activities=activities(database, client, platform, settings),
        activity_executor=ThreadPoolExecutor(ACTIVITY_THREADS, thread_name_prefix="activity"),
        max_concurrent_activities=ACTIVITY_THREADS,
        graceful_shutdown_timeout=GRACE,
        build_id=settings.build_id or code_id(),
    )


def task_worker(
    client: Client,
    database: Database,
    platform: Platform,
    runner: TaskRunner,
    resolver: Resolver,
    task_queue: str = wire.TASKS_QUEUE,
) -> Worker:
    """A worker that runs the built-in executor of user tasks, one per processor at a time; the caller runs it."""
    work = TaskWork(database, platform, runner, resolver)
    return Worker(
        client,
        task_queue=task_queue,
        activities=[work.execute, work.check],
        max_concurrent_activities=os.cpu_count() or 1,
        graceful_shutdown_timeout=GRACE,
    )


def keep_bytecode(folder: Path) -> None:
    """Let this process keep bytecode in `folder` where Python is set to keep none, as in many containers.

    The sandbox executes the modules of a workflow anew for every run: without bytecode it would compile them each time.
    """
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(folder)


async def run(settings: Settings, check_replay: bool = False) -> None:
    """Run a worker until SIGINT or SIGTERM, then let what runs finish.

    With `check_replay` it takes no work, and raises DoesNotReplay, where this code cannot go on with what runs.
    """
    platform = declared_platform(settings)
    database = expect_newest(existing(settings.database))
    keep_bytecode(settings.home / "cache" / "bytecode")
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    declared_names = {declared.name for declared in platform.task_types}
    task_types = {name: task_type for name, task_type in installed().items() if name in declared_names}
    # Its processes start with the first task: a worker without tasks does not pay for them.
    runner = TaskRunner(task_types, settings.home / "cache")
    resolver = ParameterResolver(DatabaseStore(database, platform), settings.resolver_refresh_s)
    try:
        client = await connection.connect(plugins=[plugin()], runtime=runtime(settings.metrics_address))
        if check_replay:
            await expect_replay(client, WORKFLOWS)
        async with (
            worker(client, database, platform, settings),
            task_worker(client, database, platform, runner, resolver),
            health.answering(settings.health_address),  # last: who answers takes work
        ):
            log.info("worker.started", task_queue=wire.TASK_QUEUE, build_id=settings.build_id or code_id())
            await stopping.wait()
        log.info("worker.stopped")
    finally:
        runner.close()
        resolver.close()
        database.close()


if __name__ == "__main__":
    from starter.cli import console  # a mistake that a person can fix is one line here, too

    console("worker", *sys.argv[1:])
