"""Run: weeks of a simulated platform, hour by hour, with the product's own workflows, activities and agents.

Only the tasks' outcomes come from a model (`simulation.world`), and time skips (`simulation.clockwork`). At each full
hour the tasks that have ended are recorded and the next hour's begin. Then the jobs of the cron registry run, events
are delivered, and agents visit the cycles that wait for them. What production does every few minutes happens hourly.
"""

import heapq
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from activities import cron
from activities.agents import register_agent
from activities.database import Database, migrate
from activities.event_bus import start_bus
from activities.parameters import declare_parameters
from activities.track_record import open_cycles
from rules.elevation import budget
from schema import wire
from schema.messages.observatory import TaskOutcome
from schema.messages.platform import JobId, Platform
from schema.messages.schedules import JobRequest
from schema.settings import Settings
from simulation.clockwork import Clockwork, clockwork
from simulation.field import Visit, visit
from simulation.world import World, instant
from starter.agents.agent import Participant
from starter.client import NautilusClient
from starter.keys import AgentKey
from starter.platform.database_store import DatabaseStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver
from worker import keep_bytecode, worker

# Until then tasks run and are recorded, and nothing judges them: what is normal has to be known first.
LEARNING_H = 96
# What production polls every few seconds is polled once an hour.
POLL_S = 3_600.0
# In each hour: when the jobs run, when events are delivered, and when agents visit the cycles that wait for them.
JOBS = timedelta(minutes=1)
DELIVERY = timedelta(minutes=2)
VISITS = tuple(timedelta(minutes=minutes) for minutes in (3, 15, 30, 45))
# The jobs that run here every hour, and those that run every night, in the first full hour after they are due.
HOURLY = (JobId.METRICS_SNAPSHOT,)
NIGHTLY, NIGHTLY_H = (JobId.STANDING_DECAY, JobId.CONSOLIDATION), 3

# The tasks that progress is shown of: about two hours.
RECENT = 200


class TimeLapse:
    """A platform whose hours pass one after the other; `outcomes` are all that it recorded, `starts` the jobs' runs."""

    def __init__(
        self,
        platform: Platform,
        world: World,
        agents: Sequence[Participant],
        clock: Clockwork,
        client: NautilusClient,
        database: Database,
        resolver: ParameterResolver,
        recorder: Recorder,
    ) -> None:
        self.outcomes: list[TaskOutcome] = []
        self.starts = 0
        self.skipped = 0
        self.active: set[str] = set()
        self.database = database
        self._platform = platform
        self._world = world
        self._agents = agents
        self._clock = clock
        self._client = client
        self._resolver = resolver
        self._recorder = recorder
        self._jobs = {job.declaration.id: job for job in cron.jobs(platform)}
        # Of the tasks that run: when each ends, its number, and its outcome.
        self._running: list[tuple[datetime, int, TaskOutcome]] = []

    async def live(self, hours: int, progress: Callable[[int], None]) -> None:
        """Let so many hours pass, from the beginning of the world."""
        for hour in range(hours):
            self._record_ended(instant(hour))
            self._begin_tasks(hour)
            if hour >= LEARNING_H:
                await self._govern(hour)
            await self._clock.pass_until(instant(hour + 1))
            progress(hour + 1)
        self._record_ended(instant(hours))

    def recent_success(self) -> str:
        """The share of the latest tasks that succeeded, for people."""
        latest = self.outcomes[-RECENT:]
        return f"{sum(outcome.failure is None for outcome in latest) / len(latest):.0%}" if latest else "none"

    def _begin_tasks(self, hour: int) -> None:
        """Begin the tasks of one hour, under the parameters as they are now."""
        self._resolver.refresh()
        assigned = []
        for task in self._world.arrivals(hour):
            resolution = self._resolver.resolve_task(task.task_type, task.task_id, instant(task.hour))
            if resolution.assignments:
                assigned.append(self._recorder.assigned(resolution.assignments))
            outcome = self._world.outcome(task, resolution.values)
            heapq.heappush(self._running, (outcome.finished_at, task.number, outcome))
        for recorded in assigned:
            recorded.result()

    def _record_ended(self, now: datetime) -> None:
        """Record the tasks that have ended by now."""
        recorded = []
        while self._running and self._running[0][0] <= now:
            _, _, outcome = heapq.heappop(self._running)
            recorded.append(self._recorder.record(outcome))
            self.outcomes.append(outcome)
        for fate in recorded:
            fate.result()

    async def _govern(self, hour: int) -> None:
        """One hour of the platform's own work."""
        begin = instant(hour)
        await self._clock.pass_until(begin + JOBS)
        for job_id in HOURLY if hour % 24 != NIGHTLY_H else (*HOURLY, *NIGHTLY):
            await self._run_job(job_id, begin)
        await self._clock.pass_until(begin + DELIVERY)
        if hour == LEARNING_H:
            await start_bus(self._client.temporal, self.database, self._platform)
        for at in VISITS:
            await self._clock.pass_until(begin + at)
            if not await self._let_agents_answer():
                break

    async def _run_job(self, job_id: JobId, at: datetime) -> None:
        """Run a job of the cron registry to its end, as its schedule would start it."""
        job = self._jobs[job_id]
        budget_s = budget(durations_s=(), anomalies=(), health=None, declared=job.declaration).seconds
        await self._client.temporal.execute_workflow(
            job.starts,
            JobRequest(job_id=job_id.value, budget_s=budget_s),
            id=f"{job_id.value}-{at:%Y-%m-%dT%H:%M:%SZ}",
            task_queue=wire.TASK_QUEUE,
        )
        self.starts += 1

    async def _let_agents_answer(self) -> bool:
        """Visit the open cycles, in order, until no agent has more to send; whether one still waits for agents."""
        while True:
            visits = [await self._visit(cycle) for cycle in open_cycles(self.database)]
            if not any(seen.answered for seen in visits):
                return any(seen.waits for seen in visits)

    async def _visit(self, cycle: str) -> Visit:
        """Visit one cycle, and wait for what it makes of the answers."""
        seen = await visit(self._client, cycle, self._agents)
        self.active |= seen.answered
        if seen.answered:
            await self._clock.settle()
        return seen


def _registered(database: Database, agents: Sequence[Participant]) -> list[AgentKey]:
    """The keys under which the agents were registered."""
    keys = [AgentKey(agent.agent_id, Ed25519PrivateKey.generate()) for agent in agents]
    for agent, key in zip(agents, keys, strict=True):
        if not register_agent(database, agent.agent_id, agent.operator, instant(0), key.public, built_in=True):
            raise ValueError(f"expected agents of different names, but two are called {agent.agent_id}")
    return keys


@asynccontextmanager
async def simulated(
    platform: Platform, world: World, agents: Sequence[Participant], home: Path
) -> AsyncIterator[TimeLapse]:
    """A platform in `home` that has not lived yet, with its own server, worker and agents."""
    polled = platform.cycle.model_copy(update={"counter_poll_s": POLL_S})
    platform = platform.model_copy(update={"cycle": polled})
    settings = Settings(home=home, event_poll_s=POLL_S, database_url="")
    keep_bytecode(home / "bytecode")
    async with AsyncExitStack() as stack:
        database = Database(settings.database)
        stack.callback(database.close)
        migrate(database)
        declare_parameters(database, platform, instant(0))
        keys = _registered(database, agents)
        clock = await stack.enter_async_context(clockwork())
        await clock.pass_until(instant(0))
        await stack.enter_async_context(worker(clock.client, database, platform, settings))
        # Refreshed by hand, once an hour of its own time.
        store = DatabaseStore(database, platform)
        resolver = stack.enter_context(ParameterResolver(store, refresh_s=1e6))
        recorder = stack.enter_context(Recorder(store, linger_s=0.0))
        client = NautilusClient(clock.client, wire.TASK_QUEUE, *keys)
        yield TimeLapse(platform, world, agents, clock, client, database, resolver, recorder)
