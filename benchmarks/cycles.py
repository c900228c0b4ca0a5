"""Runs whole cycles with the real parts: how often do the six agents and the rule promote the fix?

    python -m benchmarks.cycles [--json] [--cycles 50]
    python -m benchmarks.cycles --record          times real research tasks anew, into benchmarks/durations.json

Server, worker, workflow, agents, rules and databases are the product's, one database and task queue for each cycle, on
the demo's declaration with its windows shortened to about a second. Only the work is simulated: its duration is drawn
from those recorded, and cut at the limit that the resolver gives the task. The limit is the recorded median, as
in the demo. Progress goes to standard error.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import statistics
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio.client import Client

from activities.agents import register_agent
from activities.database import Database, migrate
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from activities.task_runner import TaskRunner
from activities.task_types import installed
from benchmarks.output import note, own_stdout
from benchmarks.scenario import OTHER, PARAMETER, RESEARCH, declaration
from schema import wire
from schema.failure_kinds import FailureKind
from schema.messages.cycle import CycleRequest, CycleResult, Ending, workflow_id
from schema.messages.observatory import Anomaly, Counts, TaskOutcome
from schema.messages.platform import Platform
from schema.settings import Settings
from starter.agents import run_agents
from starter.agents.roster import ROSTER
from starter.client import NautilusClient
from starter.platform.database_store import DatabaseStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver
from starter.server import dev_server, free_port, prepare
from worker import worker
from workflows.plugin import plugin

SEED = 20_261_122
RECORDED = Path(__file__).with_name("durations.json")
TASKS_RECORDED = 300
# As many research tasks as the demo has recorded when it detects the fault.
TASKS_BEFORE = 60
# Few: every cycle has a worker, six agents and traffic of its own, all in this process.
AT_ONCE = 2
CYCLE_TIMEOUT_S = 120.0
# Between two tasks, so that few finish between two evaluations, as in the demo.
PAUSE_S = 0.02
WINDOWS = {
    "bid_window_s": 4.0,
    "proposal_window_s": 4.0,
    "voting_window_s": 4.0,
    "late_quorum_extension_s": 0.5,
    "counter_poll_s": 0.1,
    "bake_window_s": 0.5,
}


@dataclass(frozen=True)
class Work:
    """Durations of tasks: each is drawn from those recorded, by its id alone."""

    recorded: Sequence[float]
    seed: str

    def outcome(self, task_id: str, limit_s: float, at: datetime) -> TaskOutcome:
        duration_s = random.Random(f"{self.seed}:{task_id}").choice(self.recorded)
        return TaskOutcome(
            task_id=task_id,
            task_type=RESEARCH,
            started_at=at,
            finished_at=at,
            duration_s=min(duration_s, limit_s + 0.005),
            failure=FailureKind.TIMEOUT if duration_s > limit_s else None,
        )


def median_limit(recorded: Sequence[float]) -> float:
    """The demo's fault: a limit at the median, in two digits."""
    return float(f"{statistics.median(recorded):.2g}")


def the_platform(limit_s: float) -> Platform:
    """The demo's declaration; the rule is as it is there, the windows are short."""
    platform = Platform.model_validate(tomllib.loads(declaration(limit_s)))
    return platform.model_copy(
        update={
            "cycle": platform.cycle.model_copy(update=WINDOWS),
            "observatory": platform.observatory.model_copy(update={"interval_s": 1}),
            "unsigned_agents": True,
        }
    )


def traffic(database: Database, platform: Platform, work: Work, done: threading.Event) -> None:
    """The platform's own loop: resolve the limit of a task, do it, record it."""
    with (
        ParameterResolver(DatabaseStore(database, platform), refresh_s=0.1) as resolver,
        Recorder(DatabaseStore(database, platform), linger_s=0.02) as recorder,
    ):
        number = 0
        while not done.wait(PAUSE_S):
            number += 1
            task_id, at = f"task-{number}", datetime.now(UTC)
            resolution = resolver.resolve_task(RESEARCH, task_id, at)
            recorder.assigned(resolution.assignments)
            limit_s = resolution.values[PARAMETER]
            assert isinstance(limit_s, float)
            recorder.record(work.outcome(task_id, limit_s, at)).result()


async def play(temporal: Client, empty: Path, recorded: Sequence[float], number: int) -> CycleResult:
    """One cycle from the anomaly to its ending, on a copy of the empty database."""
    path = shutil.copy(empty, empty.with_name(f"cycle-{number}.db"))
    with contextlib.closing(Database(f"sqlite:///{path}")) as database:
        return await _play(temporal, database, recorded, number)


def empty_database(path: Path) -> Path:
    """A migrated database without a row, made once: Alembic migrates one database at a time in a process."""
    with contextlib.closing(Database(f"sqlite:///{path}")) as database:
        migrate(database)
    return path


async def _play(temporal: Client, database: Database, recorded: Sequence[float], number: int) -> CycleResult:
    limit_s = median_limit(recorded)
    platform, work, now = the_platform(limit_s), Work(recorded, f"{SEED}:{number}"), datetime.now(UTC)
    before = now - timedelta(seconds=3)
    declare_parameters(database, platform, now)
    for agent in ROSTER:
        register_agent(database, agent.agent_id, agent.operator, now)
    research = [work.outcome(f"old-{n}", limit_s, before) for n in range(TASKS_BEFORE)]
    fields = {"task_type": OTHER, "failure": None, "duration_s": 0.1}
    others = [
        outcome.model_copy(update=fields | {"task_id": f"other-{number}"})
        for number, outcome in enumerate(research[: TASKS_BEFORE // 2])
    ]
    with database.transaction() as session:
        record_outcomes(session, research + others, platform.observatory.interval_s)
    anomaly = Anomaly(
        anomaly_id=f"success_rate:{RESEARCH}@{number}",
        metric="success_rate",
        task_type=RESEARCH,
        onset=before - timedelta(seconds=2),
        detected_at=now,
        observed=Counts(tasks=TASKS_BEFORE, successes=sum(o.failure is None for o in research)),
        baseline=None,
        reason="under the floor",
    )
    queue, cycle, done = f"cycle-{number}", f"{workflow_id(anomaly.subject)}:{number}", threading.Event()
    client = NautilusClient(temporal, queue)
    async with worker(temporal, database, platform, Settings(), queue):
        agents = asyncio.create_task(
            run_agents(client, ROSTER, every_s=0.4, may_visit=lambda task: task.workflow_id == cycle)
        )
        tasks = asyncio.create_task(asyncio.to_thread(traffic, database, platform, work, done))
        try:
            request = CycleRequest(request_id=f"benchmark:{number}", anomaly=anomaly)
            await temporal.start_workflow(wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue=queue)
            return await asyncio.wait_for(client.result(cycle), CYCLE_TIMEOUT_S)
        finally:
            agents.cancel()
            done.set()
            await asyncio.wait([agents])
            await tasks


async def play_all(cycles: int) -> dict[str, Any]:
    recorded = json.loads(RECORDED.read_text())["seconds"]
    started, endings, ballots = time.perf_counter(), Counter[str](), Counter[str]()
    proposers, tasks = Counter[str](), list[int]()
    turns = asyncio.Semaphore(AT_ONCE)

    async def play_one(number: int) -> None:
        async with turns:
            result = await play(temporal, empty, recorded, number)
        assert result.end is not None
        end = result.end
        endings[end.ending.value] += 1
        ballots.update(ballot.choice.value for ballot in result.status.ballots.values())
        if end.proposal is not None:
            proposers[end.proposal.agent_id] += 1
        if end.reading is not None:
            tasks.append(end.reading.control.tasks + end.reading.treatment.tasks)
        note(f"{endings.total()} of {cycles}: cycle {number} {end.ending.value}: {end.reason}")

    with tempfile.TemporaryDirectory(prefix="nautilus-benchmark-") as folder:
        home = Path(folder)
        empty = empty_database(home / "empty.db")
        async with dev_server(home, free_port(), free_port(), database_file=False) as server:
            temporal = await Client.connect(server.address, namespace=wire.NAMESPACE, plugins=[plugin()])
            await prepare(temporal)
            # A group: when one fails, the others end before their server does.
            async with asyncio.TaskGroup() as group:
                for number in range(cycles):
                    group.create_task(play_one(number))
    return {
        "cycles": cycles,
        "promoted": endings[Ending.PROMOTED.value],
        "endings": dict(endings),
        "ballots": dict(ballots),
        "proposers": dict(proposers),
        "median_tasks_to_a_verdict": statistics.median(tasks) if tasks else None,
        "seconds": round(time.perf_counter() - started, 1),
        "seed": SEED,
    }


def record() -> None:
    """Time real research tasks on this machine, two at a time as in the demo, without a limit that binds."""
    task_types = {RESEARCH: installed()[RESEARCH]}
    with (
        tempfile.TemporaryDirectory(prefix="nautilus-benchmark-") as folder,
        TaskRunner(task_types, Path(folder)) as runner,
    ):

        def timed(number: int) -> float:
            execution = runner.run(RESEARCH, task_types[RESEARCH].sample(f"recorded-{number}"), {}, 60.0)
            if execution.result is None:
                raise RuntimeError(f"expected research to work here, but: {execution.failure} {execution.detail}")
            if number % 25 == 24:
                note(f"{number + 1} of {TASKS_RECORDED} tasks timed")
            return round(execution.duration_s, 4)

        with ThreadPoolExecutor(2) as pool:
            seconds = list(pool.map(timed, range(TASKS_RECORDED)))
    RECORDED.write_text(json.dumps({"task_type": RESEARCH, "seconds": seconds}) + "\n")
    note(f"median {statistics.median(seconds):.3f} s, slowest {max(seconds):.3f} s: {RECORDED}")


def main() -> None:
    own_stdout()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--record", action="store_true", help="time real tasks anew, and stop")
    arguments = parser.parse_args()
    if arguments.record:
        record()
        return
    report = asyncio.run(play_all(arguments.cycles))
    if arguments.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
