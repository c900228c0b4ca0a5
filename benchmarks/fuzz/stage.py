"""The real parts that hostile messages are sent to: a Temporal server, a worker, a cycle, a user task, and a door.

The agents have keys, and the platform lets in no agent without one. What was written is read beside all of it.
"""

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from temporalio.client import Client, WorkflowHandle

from activities import ledger
from activities.agents import register_agent
from activities.database import Database, migrate
from activities.door_keys import create_agent_key, create_platform_key
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from benchmarks.fuzz import samples
from benchmarks.junk import _runs as runs_of
from benchmarks.processes import ROOT
from schema import wire
from schema.failure_kinds import FailureKind
from schema.messages.cycle import CycleRequest, Phase, workflow_id
from schema.messages.door import PLATFORM_SCOPES
from schema.messages.market import Bid
from schema.messages.observatory import Anomaly, Counts
from schema.messages.platform import Platform
from schema.messages.proposals import Ballot, Choice
from schema.messages.tasks import TaskPhase, TaskRequest, WorkResult, task_workflow_id
from schema.settings import Settings
from starter.client import NautilusClient
from starter.server import dev_server, free_port
from starter.stack import connect
from worker import worker

# Nothing closes by itself while messages come; what is sent afterwards ends each window early.
WINDOW_S = 7_200
DECLARED = f"""{samples.DECLARED.partition("[[webhooks]]")[0]}
[cycle]
bid_window_s = {WINDOW_S}
proposal_window_s = {WINDOW_S}
voting_window_s = {WINDOW_S}

[market]
bid_window_s = {WINDOW_S}
result_window_s = {WINDOW_S}
heartbeat_s = {WINDOW_S}
check_share = 0.0

[door]
platform_requests_per_s = 100000
agent_requests_per_s = 100000
"""
REACH_TIMEOUT_S = 120.0


@dataclass
class Stage:
    """What runs, where it is, and how it is reached."""

    home: Path
    settings: Settings
    platform: Platform
    database: Database
    temporal: Client
    client: NautilusClient
    cycle: str
    task: str
    observed: Counts

    def handle(self, workflow: str) -> WorkflowHandle[Any, Any]:
        return self.temporal.get_workflow_handle(workflow)

    def rows(self) -> dict[str, int]:
        """How many rows every table has, and the newest version of any parameter."""
        with sqlite3.connect(f"file:{self.home / 'nautilus.db'}?mode=ro", uri=True) as reader:
            tables = reader.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            counts = {name: reader.execute(f'SELECT COUNT(*) FROM "{name}"').fetchone()[0] for (name,) in tables}
        reader.close()
        return counts

    def environment(self) -> dict[str, str]:
        """Of a process of this platform."""
        own = {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}
        address = self.temporal.service_client.config.target_host
        return dict(os.environ) | self.settings.variables() | own | {"TEMPORAL_ADDRESS": address}

    async def failed_workflow_tasks(self) -> int:
        """How many workflow tasks of the cycle and of the task have failed, in all their runs."""
        failures = [(await runs_of(self.temporal, workflow))[1] for workflow in (self.cycle, self.task)]
        return sum(sum(causes.values()) for causes in failures)

    async def state(self) -> list[str]:
        """What the cycle and the task hold that messages could change."""
        cycle, task = await self.client.status(self.cycle), await self.client.task_status(self.task)
        unchanging = {"receipts", "refused", "unread", "story", "current_keys", "current_people"}
        return [status.model_dump_json(exclude=unchanging) for status in (cycle, task)]


@asynccontextmanager
async def staged(home: Path) -> AsyncIterator[Stage]:
    """The stage, with a cycle and a task that await bids."""
    (home / "platform.toml").write_text(DECLARED)
    settings = Settings(home=home, platform=home / "platform.toml", database_url=f"sqlite:///{home / 'nautilus.db'}")
    platform = Platform.model_validate(tomllib.loads(DECLARED))
    database = Database(settings.database)
    migrate(database)
    observed = _failing(database, platform)
    try:
        async with dev_server(home, free_port(), free_port()) as server:
            temporal = await connect(server)
            client = NautilusClient(temporal, wire.TASK_QUEUE, *samples.KEYS.values())
            async with worker(temporal, database, platform, settings):
                anomaly = _anomaly(platform, observed)
                cycle = workflow_id(anomaly.subject)
                request = CycleRequest(request_id="fuzz", anomaly=anomaly)
                await temporal.start_workflow(wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue=wire.TASK_QUEUE)
                task = TaskRequest(task_id="fuzz", task_type="monte_carlo", requester="fuzz", price=100)
                await client.submit_task(task)
                stage = Stage(
                    home,
                    settings,
                    platform,
                    database,
                    temporal,
                    client,
                    cycle,
                    task_workflow_id(task.task_id),
                    observed,
                )
                await _reach(stage, Phase.BIDDING)
                yield stage
    finally:
        database.close()


def _failing(database: Database, platform: Platform) -> Counts:
    """Declare parameters and agents, and record tasks of which a third failed."""
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    for name, key in samples.KEYS.items():
        register_agent(database, name, f"op-{name}", now, key.public)
    outcomes = [samples.outcome(f"before-{number}", now) for number in range(90)]
    failed = [outcome.model_copy(update={"failure": FailureKind.TIMEOUT, "quality": None}) for outcome in outcomes[:30]]
    with database.transaction() as session:
        record_outcomes(session, [*failed, *outcomes[30:]], platform.observatory.interval_s)
    return Counts(tasks=90, successes=60)


def _anomaly(platform: Platform, observed: Counts) -> Anomaly:
    onset = datetime.now(UTC) - timedelta(seconds=2 * platform.observatory.interval_s)
    return Anomaly(
        anomaly_id=f"success_rate:{samples.TASK_TYPE}@{onset.isoformat()}",
        metric="success_rate",
        task_type=samples.TASK_TYPE,
        onset=onset,
        detected_at=onset,
        observed=observed,
        baseline=None,
        reason="a third of the tasks fail",
    )


async def _reach(stage: Stage, phase: Phase) -> None:
    async with asyncio.timeout(REACH_TIMEOUT_S):
        async for status in stage.client.follow(stage.cycle, every_s=0.1):
            if status.phase is phase:
                return
    raise RuntimeError(f"expected a cycle that reaches {phase.value}, but it ended")


async def play_to_the_end(stage: Stage) -> dict[str, Any]:
    """Genuine messages, after all the others: the cycle is voted on, the task is done; and the record is whole."""
    for name in samples.AGENTS:
        await stage.client.place_bid(stage.cycle, samples.bid(name))
    await _reach(stage, Phase.PROPOSING)
    award = (await stage.client.status(stage.cycle)).award
    assert award is not None
    proposal = samples.proposal(award.agent_id)
    await stage.client.submit_proposal(stage.cycle, proposal)
    await _reach(stage, Phase.VOTING)
    for name in [name for name in samples.AGENTS if name != award.agent_id][:3]:
        ballot = Ballot(message_id=f"b-{name}", agent_id=name, proposal_id=proposal.proposal_id, choice=Choice.REJECT)
        if (await stage.client.status(stage.cycle)).phase is Phase.VOTING:
            await stage.client.cast_ballot(stage.cycle, ballot)
    result = await asyncio.wait_for(stage.client.result(stage.cycle), REACH_TIMEOUT_S)

    for name in samples.AGENTS:
        await stage.client.place_bid(stage.task, Bid(message_id="b", agent_id=name, price=10, eta_s=5))
    async with asyncio.timeout(REACH_TIMEOUT_S):
        while (status := await stage.client.task_status(stage.task)).phase is not TaskPhase.EXECUTING:
            await asyncio.sleep(0.1)
    assert status.award is not None
    done = WorkResult(message_id="r", agent_id=status.award.agent_id, quality=0.9, summary="done")
    await stage.client.submit_result(stage.task, done)
    ended = await asyncio.wait_for(stage.client.task_result(stage.task), REACH_TIMEOUT_S)
    return {
        "cycle": result.end.ending.value if result.end else None,
        "task": ended.settlement.ending.value if ended.settlement else None,
        "failed_workflow_tasks": await stage.failed_workflow_tasks(),
        "ledger_ok": ledger.verify(stage.database)[2] is None,
    }


@dataclass
class Door:
    """A door in a process of its own, with a key of a platform and one of an agent."""

    url: str
    port: int
    platform_key: str
    agent_key: str
    process: "subprocess.Popen[bytes]"

    def is_alive(self) -> bool:
        """Whether it answers; the process may run and do nothing."""
        return self.process.poll() is None and httpx.get(f"{self.url}/ready", timeout=30).status_code == 200

    def peak_mb(self) -> int:
        """The most memory that it has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) // 1_024


@contextmanager
def open_door(stage: Stage) -> Iterator[Door]:
    """`nautilus door`, until the context ends."""
    now = datetime.now(UTC)
    _, platform_key = create_platform_key(stage.database, "fuzz", PLATFORM_SCOPES, "fuzz", now)
    _, agent_key = create_agent_key(stage.database, "ada", "fuzz", now)
    port = free_port()
    command = [sys.executable, "-m", "starter", "door", "--port", str(port)]
    with (stage.home / "door.log").open("wb") as log:
        process = subprocess.Popen(command, env=stage.environment(), cwd=stage.home, stdout=log, stderr=log)
    door = Door(f"http://127.0.0.1:{port}", port, platform_key, agent_key, process)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{door.url}/ready", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > deadline:
                    said = (stage.home / "door.log").read_text()[-500:]
                    raise RuntimeError(f"expected a door, but: {said}") from None
                time.sleep(0.2)
        yield door
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
