"""Simulated traffic: runs real tasks of the installed types, as an operator's own platform would.

    python -m simulation.traffic

For each task it resolves the parameters, records the assignment, runs the work in a process that is killed at the
resolved limit, and records the outcome. It knows nothing of anomalies, cycles or agents.
"""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from itertools import islice
from time import monotonic
from typing import NamedTuple
from uuid import uuid4

import structlog

from activities.database import existing
from activities.task_runner import TaskRunner
from activities.task_types import TaskType, installed
from schema.declaration import declared_platform
from schema.messages.observatory import TaskOutcome, detail_of
from schema.messages.platform import Platform
from schema.messages.simulation import Traffic
from schema.settings import Settings
from starter import logs
from starter.platform.database_store import DatabaseStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver

log = structlog.get_logger()

# The limit of a task type without a declared one: no task runs for ever.
DEFAULT_LIMIT_S = 3_600.0


class SimulatedPlatform:
    """Runs tasks through the resolver and the recorder; safe to call from several threads."""

    def __init__(
        self,
        platform: Platform,
        runner: TaskRunner,
        types: Mapping[str, TaskType],
        resolver: ParameterResolver,
        recorder: Recorder,
    ) -> None:
        self._platform = platform
        self._runner = runner
        self._types = types
        self._resolver = resolver
        self._recorder = recorder

    def run_task(self, task_type: str, task_id: str) -> None:
        """One task from its parameters to its recorded outcome."""
        started_at = datetime.now(UTC)
        resolution = self._resolver.resolve_task(task_type, task_id, started_at)
        self._recorder.assigned(resolution.assignments)
        limit_s = self._platform.limit_s(task_type, resolution.values, DEFAULT_LIMIT_S)
        payload = self._types[task_type].sample(task_id)
        execution = self._runner.run(task_type, payload, resolution.values, limit_s)
        outcome = TaskOutcome(
            task_id=task_id,
            task_type=task_type,
            started_at=started_at,
            finished_at=datetime.now(UTC),
            duration_s=execution.duration_s,
            failure=execution.failure,
            quality=execution.result.quality if execution.result else None,
            reason=execution.reason,
            detail=detail_of(execution.detail),
        )
        self._recorder.record(outcome).result()


def paced(
    traffic: Traffic,
    stopping: threading.Event,
    series: str,
    work: Callable[[str, str], None],
    max_tasks: int | None = None,
) -> None:
    """Call `work` with (task type, task id) as often as declared, at most `traffic.concurrency` at a time.

    Where the machine is too slow, tasks start later and none is left out. Ends when `stopping` is set or after
    `max_tasks`; an exception of `work` ends it too.
    """
    tasks = islice(due(traffic, monotonic()), max_tasks)
    running: set[Future[None]] = set()
    with ThreadPoolExecutor(traffic.concurrency, thread_name_prefix="task") as pool:
        for number, task in enumerate(tasks):
            if stopping.wait(max(0.0, task.due_at - monotonic())):
                break
            # The pool would queue tasks without a bound: one is submitted only when a thread is free to begin it.
            running = _with_a_free_slot(running, traffic.concurrency)
            task_id = f"{task.task_type}-{series}-{number}"
            running.add(pool.submit(work, task.task_type, task_id))
    _with_a_free_slot(running, 1)


def _with_a_free_slot(running: set[Future[None]], slots: int) -> set[Future[None]]:
    """Those that still run, once fewer than `slots` do; raises the exception of one that failed."""
    while True:
        ended = {future for future in running if future.done()}
        for future in ended:
            future.result()
        running = running - ended
        if len(running) < slots:
            return running
        wait(running, return_when=FIRST_COMPLETED)


class DueTask(NamedTuple):
    """A task to start at an instant (seconds, monotonic clock)."""

    task_type: str
    due_at: float


def due(traffic: Traffic, started: float) -> Iterator[DueTask]:
    """Endless tasks in the order in which they are due.

    Evenly spaced where the rate does not swing.
    """
    next_at = {name: started + 1 / rate for name, rate in traffic.per_second.items() if rate > 0}
    while next_at:
        name = min(next_at, key=lambda task_type: (next_at[task_type], task_type))
        yield DueTask(name, next_at[name])
        turns = (next_at[name] - started) / traffic.swing_every_s
        next_at[name] += 1 / (traffic.per_second[name] * (1 + traffic.swing * math.sin(2 * math.pi * turns)))


def run(settings: Settings, stopping: threading.Event) -> None:
    """Run the declared traffic until `stopping` is set."""
    platform = declared_platform(settings)
    if platform.traffic is None:
        raise ValueError(f"{settings.platform}: traffic: expected a declaration of what to run, but there is none")
    types = wanted_types(platform.traffic)
    database = existing(settings.database)
    store = DatabaseStore(database, platform)
    with (
        TaskRunner(types, settings.home / "cache") as runner,
        ParameterResolver(store, settings.resolver_refresh_s) as resolver,
        Recorder(store) as recorder,
    ):
        log.info("traffic.started", per_second=dict(platform.traffic.per_second))
        simulated = SimulatedPlatform(platform, runner, types, resolver, recorder)
        paced(platform.traffic, stopping, uuid4().hex[:8], simulated.run_task)
    database.close()


def wanted_types(traffic: Traffic) -> dict[str, TaskType]:
    """The installed task types that `traffic` runs; raises ValueError for one that is not installed."""
    types = installed()
    missing = sorted(traffic.per_second.keys() - types.keys())
    if missing:
        raise ValueError(f"traffic.per_second: expected installed task types, but {missing[0]} is not one")
    return {name: types[name] for name in traffic.per_second}


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    logs.configure("traffic")
    stopping = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopping.set())
    run(Settings(), stopping)


if __name__ == "__main__":
    main()
