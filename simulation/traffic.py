"""A platform to practise on: runs real tasks of the installed types, as an operator's own platform would.

    python -m simulation.traffic

For each task it resolves the parameters, notes the assignment, runs the work in a process that is killed at the
resolved limit, and records how it went. It knows nothing of anomalies, cycles or agents.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from time import monotonic
from uuid import uuid4

import structlog

from activities.database import existing
from activities.task_runner import TaskRunner
from activities.task_types import TaskType, installed
from schema.declaration import declared_platform
from schema.messages.observatory import TaskOutcome
from schema.messages.platform import Platform, Traffic
from schema.settings import Settings
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver

log = structlog.get_logger()

# A task type without a declared limit gets this one: nothing runs for ever.
DEFAULT_LIMIT_S = 3_600.0


class Practice:
    """Runs tasks through the platform's door; safe to call from several threads."""

    def __init__(
        self,
        platform: Platform,
        runner: TaskRunner,
        types: Mapping[str, TaskType],
        resolver: ParameterResolver,
        recorder: Recorder,
    ) -> None:
        self._limits = {declared.name: declared.timeout_parameter for declared in platform.task_types}
        self._runner = runner
        self._types = types
        self._resolver = resolver
        self._recorder = recorder

    def run_task(self, task_type: str, task_id: str) -> None:
        """One task from its parameters to its recorded outcome."""
        started_at = datetime.now(UTC)
        resolution = self._resolver.resolve_task(task_type, task_id, started_at)
        self._recorder.assigned(resolution.assignments)
        key = self._limits[task_type]
        limit_s = float(resolution.values[key]) if key else DEFAULT_LIMIT_S
        execution = self._runner.run(task_type, self._types[task_type].sample(task_id), resolution.values, limit_s)
        outcome = TaskOutcome(
            task_id=task_id,
            task_type=task_type,
            started_at=started_at,
            finished_at=datetime.now(UTC),
            duration_s=execution.duration_s,
            failure=execution.failure,
            quality=execution.result.quality if execution.result else None,
        )
        self._recorder.record(outcome).result()


def paced(
    traffic: Traffic, stopping: threading.Event, series: str, work: Callable[[str, str], None], most: int | None = None
) -> None:
    """Call `work` with (task type, task id) as often as declared, at most `traffic.concurrency` at a time.

    Where the machine is too slow for it, tasks start later: none is left out. Ends when told to stop or after `most`
    tasks; what `work` raises ends it too.
    """
    free = threading.Semaphore(traffic.concurrency)
    running: list[Future[None]] = []
    with ThreadPoolExecutor(traffic.concurrency, thread_name_prefix="task") as pool:
        for number, (task_type, at) in enumerate(islice(_due(traffic.per_second, monotonic()), most)):
            if stopping.wait(max(0.0, at - monotonic())):
                break
            free.acquire()
            future = pool.submit(work, task_type, f"{task_type}-{series}-{number}")
            future.add_done_callback(lambda _: free.release())
            running = [f for f in running if not _done(f)] + [future]
    for future in running:
        future.result()


def _done(future: Future[None]) -> bool:
    """Whether a task is through; raises what it raised."""
    return future.done() and future.result() is None


def _due(per_second: Mapping[str, float], started: float) -> Iterator[tuple[str, float]]:
    """Task types with the instant each is due (seconds, monotonic clock), in order, evenly spaced, for ever."""
    next_at = {name: started + 1 / rate for name, rate in per_second.items() if rate > 0}
    while next_at:
        name = min(next_at, key=lambda n: (next_at[n], n))
        yield name, next_at[name]
        next_at[name] += 1 / per_second[name]


def run(settings: Settings, stopping: threading.Event) -> None:
    """Keep the declared traffic up until told to stop."""
    platform = declared_platform(settings)
    if platform.traffic is None:
        raise ValueError(f"{settings.platform}: traffic: expected a declaration of what to run, but there is none")
    types = wanted_types(platform.traffic)
    database = existing(settings.database)
    with (
        TaskRunner(types, settings.home / "cache") as runner,
        ParameterResolver(database, platform, settings.resolver_refresh_s) as resolver,
        Recorder(database, platform.observatory.interval_s) as recorder,
    ):
        log.info("traffic.started", per_second=dict(platform.traffic.per_second))
        practice = Practice(platform, runner, types, resolver, recorder)
        paced(platform.traffic, stopping, uuid4().hex[:8], practice.run_task)
    database.close()


def wanted_types(traffic: Traffic) -> dict[str, TaskType]:
    """The installed task types that `traffic` runs; raises ValueError for one that is not installed."""
    types = installed()
    if missing := sorted(traffic.per_second.keys() - types.keys()):
        raise ValueError(f"traffic.per_second: expected installed task types, but {missing[0]} is not one")
    return {name: types[name] for name in traffic.per_second}


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    stopping = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopping.set())
    run(Settings(), stopping)


if __name__ == "__main__":
    main()
