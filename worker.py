"""The worker: the composition root. Connects the activities to their dependencies and runs until it is told to stop.

    python worker.py        the same as `nautilus worker`

Temporal is found the SDK's own way (temporal.toml, TEMPORAL_ADDRESS, ...), the database by NAUTILUS_DATABASE_URL.
"""

import asyncio
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import structlog
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.worker import Worker

from activities.database import Database
from activities.events import EventActivities
from activities.experiment import ExperimentActivities
from activities.market import MarketActivities
from activities.observatory import ObservatoryActivities
from activities.proposals import ProposalActivities
from schema import wire
from schema.declaration import read_platform
from schema.messages.platform import Platform
from schema.settings import Settings
from workflows.event_bus import EventBus
from workflows.improvement_cycle import ImprovementCycle
from workflows.observatory import Diagnostics, Observatory
from workflows.plugin import plugin

log = structlog.get_logger()

WORKFLOWS: Sequence[type] = (ImprovementCycle, Observatory, Diagnostics, EventBus)
# Activities are short transactions; SQLite has one writer, so more threads would only wait for it.
ACTIVITY_THREADS = 16
# Long enough for a transaction that waits for a busy database to finish before the process leaves.
GRACE = timedelta(seconds=10)


def activities(database: Database, client: Client, platform: Platform, settings: Settings) -> list[Callable[..., Any]]:
    """Every activity, bound to its dependencies."""
    experiment = ExperimentActivities(database, platform)
    market = MarketActivities(database, platform)
    observatory = ObservatoryActivities(database, platform)
    proposals = ProposalActivities(database)
    events = EventActivities(database, client, settings.event_poll_s)
    return [
        experiment.open_experiment,
        experiment.await_verdict,
        experiment.read_experiment,
        experiment.expose,
        experiment.conclude_experiment,
        experiment.await_thaw,
        experiment.promote,
        experiment.roll_back,
        market.open_meta_task,
        market.record_award,
        market.record_missed_award,
        market.record_act,
        market.end_cycle,
        observatory.take_snapshot,
        observatory.diagnose,
        proposals.open_vote,
        proposals.record_vote,
        events.deliver,
    ]


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
    )


async def connect() -> Client:
    """A client by the SDK's own configuration; the namespace is ours unless it names another."""
    config = ClientConfig.load_client_connect_config()
    config.setdefault("namespace", wire.NAMESPACE)
    config.setdefault("target_host", "localhost:7233")
    return await Client.connect(**config, plugins=[plugin()])


async def run(settings: Settings) -> None:
    """Run a worker until SIGINT or SIGTERM, then let what runs finish."""
    platform = read_platform(settings.platform)
    database = Database(settings.database)
    stopping = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    try:
        async with worker(await connect(), database, platform, settings):
            log.info("worker.started", task_queue=wire.TASK_QUEUE)
            await stopping.wait()
        log.info("worker.stopped")
    finally:
        database.close()


if __name__ == "__main__":
    asyncio.run(run(Settings()))
