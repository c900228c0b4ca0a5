"""Kills each process in each phase of a cycle: is it still promoted once and paid once?

    python -m benchmarks.phases [--json] [--phase voting] [--killed worker]

Server, worker and agents are real processes, started as an operator starts them and killed with SIGKILL; then the same
command is run again, on the same files. The duration of a task is drawn from a log-normal distribution, and cut at the
limit that the resolver gives it. One more run locks the database for a minute, which is longer than any writer waits.
Progress goes to standard error.
"""

import argparse
import asyncio
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import NormalDist
from typing import Any

from sqlmodel import select
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHandle
from temporalio.converter import default as default_converter

from activities import ledger
from activities.assignments import counters
from activities.database import Database, migrate
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from benchmarks.output import note, own_stdout
from benchmarks.processes import AGENTS, WORKER, Processes, Temporal
from benchmarks.scenario import PARAMETER, RESEARCH, declaration
from schema import wire
from schema.failure_kinds import FailureKind
from schema.messages.cycle import CycleRequest, CycleResult, Phase, workflow_id
from schema.messages.ledger import EntryKind
from schema.messages.observatory import Anomaly, Counts, TaskOutcome
from schema.messages.platform import Platform
from schema.tables.experiment import TaskTypeLockRow
from schema.tables.market import TransferRow
from starter import keys
from starter.agents.roster import ROSTER
from starter.platform.database_store import DatabaseStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver
from starter.stack import connect, register_own

# The article's fault: a third of the tasks would last longer than the limit; 99% end within 2.5 times of it.
LIMIT_S, MEDIAN_S, SPREAD = 1.0, 0.8, 0.5
# Few before the experiment: every agent can fit their distribution, and no test rejects the fit.
TASKS_BEFORE, TASKS_PER_S, TESTED_TASKS_PER_S = 100, 5, 60
# Steps through the quantiles, because after an unlucky draw an agent waits half a minute for more records.
GOLDEN = (math.sqrt(5) - 1) / 2
# Windows close early when all messages are in; none may be too late because a process was killed: a worker's sticky
# queue times out after 10 s, an activity that it was running after 30.
WINDOWS: Mapping[str, float] = {
    "bid_window_s": 25.0,
    "proposal_window_s": 45.0,
    "voting_window_s": 25.0,
    "late_quorum_extension_s": 0.5,
    "experiment_window_s": 150.0,
    "pending_cutoff_s": 120.0,
    "counter_poll_s": 0.5,
    "bake_window_s": 4.0,
    "max_tasks": 400,
    "minimum_run_s": 2.0,
}
END_TIMEOUT_S = 180.0
# Longer than a writer waits for a busy database (30 s), so that errors happen.
DATABASE_AWAY_S = 60.0
TASKS_IN_AN_EXPERIMENT = 10

PHASES = (
    Phase.BIDDING,
    Phase.PROPOSING,
    Phase.VOTING,
    Phase.QUEUED,
    Phase.EXPERIMENT,
    Phase.PROMOTING,
    Phase.WATCHING,
)
SERVER, DATABASE = "server", "database"
RUNS = [(phase, killed) for phase in PHASES for killed in (WORKER, AGENTS, SERVER)] + [(Phase.EXPERIMENT, DATABASE)]


@dataclass
class Scene:
    """A cycle, with its own database and the processes that serve it."""

    home: Path
    subject: str
    platform: Platform
    database: Database
    processes: Processes
    handle: WorkflowHandle[Any, CycleResult]
    done: threading.Event = field(default_factory=threading.Event)


def platform_in(home: Path, windows: Mapping[str, float] = WINDOWS) -> Platform:
    """Make `home`; worker and agents read its declaration, the demo's with short windows."""
    home.mkdir()
    content = declaration(LIMIT_S).partition("\n[traffic]")[0].partition("\n[cycle]")[0]
    content += "\n[cycle]\n" + "".join(f"{name} = {value}\n" for name, value in windows.items())
    # Other benchmarks use this platform with agents that have no keys.
    content = f"unsigned_agents = true\n{content}"
    (home / "platform.toml").write_text(content)
    return Platform.model_validate(tomllib.loads(content))


def outcome(number: int, limit_s: float, at: datetime) -> TaskOutcome:
    """A task with the duration of its number in a log-normal distribution, cut at its limit."""
    z = NormalDist().inv_cdf((0.5 + number * GOLDEN) % 1)
    duration_s = MEDIAN_S * math.exp(SPREAD * z)
    return TaskOutcome(
        task_id=task_id(number),
        task_type=RESEARCH,
        started_at=at,
        finished_at=at,
        duration_s=min(duration_s, limit_s + 0.005),
        failure=FailureKind.TIMEOUT if duration_s > limit_s else None,
    )


def task_id(number: int) -> str:
    return f"task-{number}"


def traffic(database: Database, platform: Platform, done: threading.Event) -> None:
    """The platform's own loop: resolve the limit of a task, do it, record it. Acknowledged means committed."""
    with (
        ParameterResolver(DatabaseStore(database, platform), refresh_s=0.2) as resolver,
        Recorder(DatabaseStore(database, platform), linger_s=0.02) as recorder,
    ):
        number, pause_s = TASKS_BEFORE, 0.0
        while not done.wait(pause_s):
            number, at = number + 1, datetime.now(UTC)
            resolution = resolver.resolve_task(RESEARCH, task_id(number), at)
            recorder.assigned(resolution.assignments)
            limit_s = resolution.values[PARAMETER]
            assert isinstance(limit_s, int | float)
            recorder.record(outcome(number, limit_s, at)).result()
            pause_s = 1 / (TESTED_TASKS_PER_S if resolution.assignments else TASKS_PER_S)


def the_anomaly(onset: datetime, observed: Counts) -> Anomaly:
    """The anomaly that the Observatory would raise for failing research tasks."""
    return Anomaly(
        anomaly_id=f"success_rate:{RESEARCH}@{onset.isoformat()}",
        metric="success_rate",
        task_type=RESEARCH,
        onset=onset,
        detected_at=onset,
        observed=observed,
        baseline=None,
        reason=f"success_rate {observed.successes} of {observed.tasks} tasks, under the floor of 70%",
    )


def failing_platform(database: Database, platform: Platform, home: Path) -> Anomaly:
    """Declare, register and record the past, in which a third of the research tasks ran into their limit."""
    now = datetime.now(UTC)
    before = now - timedelta(seconds=3)
    declare_parameters(database, platform, now)
    register_own(database, home, now)
    outcomes = [outcome(n, LIMIT_S, before) for n in range(TASKS_BEFORE)]
    with database.transaction() as session:
        record_outcomes(session, outcomes, platform.observatory.interval_s)
    observed = Counts(tasks=len(outcomes), successes=sum(o.failure is None for o in outcomes))
    return the_anomaly(before - timedelta(seconds=2 * platform.observatory.interval_s), observed)


@asynccontextmanager
async def scene(
    home: Path, client: Client, processes: Processes, name: str, windows: Mapping[str, float] = WINDOWS
) -> AsyncIterator[Scene]:
    """A cycle that has just been started, with worker and traffic; both are gone at the end."""
    platform = platform_in(home, windows)
    database = Database(f"sqlite:///{home / 'nautilus.db'}")
    # One set of agents, with one set of keys, serves the platforms of all runs.
    (home.parent / "keys").mkdir(mode=0o700, exist_ok=True)
    (home / "keys").symlink_to(home.parent / "keys")
    processes.use(home)
    await asyncio.to_thread(migrate, database)
    anomaly = failing_platform(database, platform, home)
    processes.start(WORKER)
    handle = await client.start_workflow(
        wire.IMPROVEMENT_CYCLE,
        CycleRequest(request_id=f"phases:{name}", anomaly=anomaly),
        id=f"{workflow_id(anomaly.subject)}:{name}",
        task_queue=wire.TASK_QUEUE,
        result_type=CycleResult,
    )
    on_stage = Scene(home, anomaly.subject, platform, database, processes, handle)
    tasks = asyncio.create_task(asyncio.to_thread(traffic, database, platform, on_stage.done))
    try:
        yield on_stage
    finally:
        on_stage.done.set()
        processes.kill(WORKER)
        await tasks
        database.close()


# ---- the moment


async def reached(scene: Scene, phase: Phase) -> None:
    """Return in the middle of a phase: after its first message, or as soon as it has something to lose."""
    inside = False
    async for event in scene.handle.fetch_history_events(wait_new_event=True):
        inside = inside or phase.value in entered(event)
        match phase:
            case Phase.BIDDING | Phase.VOTING:
                here = event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED
            case Phase.PROMOTING:
                here = event.activity_task_scheduled_event_attributes.activity_type.name == "promote"
            case _:
                here = True
        if inside and here:
            break
    else:
        raise RuntimeError(f"expected a cycle that reaches {phase.value}, but it ended")
    if phase is Phase.EXPERIMENT:
        await asyncio.to_thread(_await_tasks, scene)


def entered(event: HistoryEvent) -> Sequence[str]:
    """The phase that the cycle enters with this event, if any."""
    changed = event.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields
    if wire.PHASE not in changed:
        return ()
    phases: list[str] = default_converter().payload_converter.from_payloads([changed[wire.PHASE]])
    return phases


def _await_tasks(scene: Scene) -> None:
    """Return when the experiment has some tasks to lose."""
    cycle_id = f"{scene.subject}#1"
    while True:
        with scene.database.reading() as session:
            strata = counters(session, cycle_id)
        if sum(stratum.control.tasks + stratum.treatment.tasks for stratum in strata) >= TASKS_IN_AN_EXPERIMENT:
            return
        time.sleep(0.05)


@asynccontextmanager
async def task_type_locked(scene: Scene, wanted: bool) -> AsyncIterator[None]:
    """Another cycle experiments on the task type, so that ours has to queue."""
    if not wanted:
        yield
        return
    with scene.database.transaction() as session:
        session.add(TaskTypeLockRow(task_type=RESEARCH, cycle_id="another-cycle#1"))
    try:
        yield
    finally:
        with scene.database.transaction() as session:
            session.delete(session.get_one(TaskTypeLockRow, RESEARCH))


def lock_database(path: Path, seconds: float) -> None:
    """Let another process hold the write lock, so that every writer waits in vain and fails."""
    hold = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None); "
        "c.execute('BEGIN EXCLUSIVE'); time.sleep(float(sys.argv[2])); c.execute('ROLLBACK')"
    )
    subprocess.run([sys.executable, "-c", hold, str(path), str(seconds)], check=True)


# ---- a run


async def play(
    temporal: Temporal, client: Client, processes: Processes, home: Path, phase: Phase, killed: str
) -> dict[str, Any]:
    """Kill one process in one phase, start it again, and report how the cycle ends."""
    started = time.perf_counter()
    async with scene(home, client, processes, f"{phase.value}-{killed}") as on_stage:
        async with task_type_locked(on_stage, phase is Phase.QUEUED):
            await asyncio.wait_for(reached(on_stage, phase), END_TIMEOUT_S)
            note(f"{phase.value}: killing {killed}")
            await _kill(killed, temporal, on_stage)
            if phase is Phase.QUEUED:
                await asyncio.sleep(2)
        result = None
        try:
            result = await asyncio.wait_for(on_stage.handle.result(), END_TIMEOUT_S)
        except TimeoutError:
            await on_stage.handle.terminate("the benchmark timed out")
        report = {"phase": phase.value, "killed": killed} | judged(on_stage.database, result)
        if killed == DATABASE:
            report["errors_of_the_store"] = on_stage.processes.log(WORKER).read_text().count("database is locked")
    report["seconds"] = round(time.perf_counter() - started, 1)
    return report


async def _kill(killed: str, temporal: Temporal, scene: Scene) -> None:
    match killed:
        case "server":
            await temporal.kill()
            await temporal.start()
        case "database":
            await asyncio.to_thread(lock_database, scene.home / "nautilus.db", DATABASE_AWAY_S)
        case name:
            scene.processes.kill(name)
            scene.processes.start(name)


def judged(database: Database, result: CycleResult | None) -> dict[str, Any]:
    """How often a cycle promoted and paid, by the records and not by its own result."""
    kinds = [entry.kind for entry in ledger.entries(database)]
    with database.reading() as session:
        # The bonus and the forecast are paid beside the reward; each has a reference of its own.
        payments = len([t for t in session.exec(select(TransferRow)).all() if t.reference.startswith("reward:")])
    return {
        "ended": result is not None,
        "ending": result.end.ending.value if result and result.end else None,
        "promotions": kinds.count(EntryKind.PARAMETER_PROMOTED),
        "payments": payments,
        "endings": kinds.count(EntryKind.CYCLE_ENDED),
        "ledger_ok": ledger.verify(database)[2] is None,
    }


def as_promised(run: dict[str, Any]) -> bool:
    """Whether the cycle was promoted once and paid once, on one chain."""
    once = run["promotions"] == run["payments"] == run["endings"] == 1
    return bool(run["ended"] and run["ledger_ok"] and once)


async def play_all(runs: Sequence[tuple[Phase, str]], folder: Path) -> list[dict[str, Any]]:
    """Play the runs on one server with one set of agents; each has a home, a database and a worker of its own."""
    temporal, reports = Temporal(folder), list[dict[str, Any]]()
    server = await temporal.start()
    processes = Processes(server, folder)
    try:
        client = await connect(server)
        for agent in ROSTER:
            keys.own(folder, agent.agent_id)
        processes.use(folder)
        processes.start(AGENTS)
        for number, (phase, killed) in enumerate(runs, 1):
            home = folder / f"{phase.value}-{killed}"
            report = await play(temporal, client, processes, home, phase, killed)
            reports.append(report)
            verdict = "as promised" if as_promised(report) else f"NOT as promised, see {home}"
            note(f"{number} of {len(runs)}: {phase.value}, {killed} killed: {verdict} {report}")
    finally:
        processes.kill_all()
        await temporal.stop()
    return reports


def main() -> None:
    own_stdout()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--phase", choices=[phase.value for phase in PHASES])
    parser.add_argument("--killed", choices=[WORKER, AGENTS, SERVER, DATABASE])
    parser.add_argument("--keep", action="store_true", help="leave homes and logs in place")
    arguments = parser.parse_args()
    runs = [
        (phase, killed)
        for phase, killed in RUNS
        if arguments.phase in (None, phase.value) and arguments.killed in (None, killed)
    ]
    folder = Path(tempfile.mkdtemp(prefix="nautilus-phases-"))
    reports = asyncio.run(play_all(runs, folder))
    kept = arguments.keep or not all(map(as_promised, reports))
    if kept:
        note(f"homes and logs are in {folder}")
    else:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
    if arguments.json:
        print(json.dumps({"runs": reports}))
    else:
        for run in reports:
            print(" ".join(f"{name}={value}" for name, value in run.items()))
    sys.exit(0 if all(map(as_promised, reports)) else 1)


if __name__ == "__main__":
    main()
