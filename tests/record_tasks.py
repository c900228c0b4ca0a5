"""Records histories of market tasks and of jobs, for the replay tests; `tests.record_histories` has those of cycles.

python -m tests.record_tasks [name ...]
"""

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowExecutionStatus

from activities.database import Database, migrate
from schema import wire
from schema.messages.diagnosis import DiagnosisRequest
from schema.messages.platform import Platform
from schema.messages.schedules import JobRequest
from schema.messages.tasks import TaskEnding, TypeRegistration, WorkResult
from starter.server import dev_server
from starter.stack import connect
from tests.ports import free_port
from tests.record_histories import AT_ONCE_AGAIN, TIMEOUT_S, runs, write
from tests.test_market_task import QUICK, Market, declared, market

# Bids and results are there long before; only what is meant to run out does.
PATIENT = QUICK
HASTY = QUICK.model_copy(update={"heartbeat_s": 0.5, "bid_window_s": 3})


async def done_in_house(stage: Market) -> str:
    task = await stage.submit()
    await stage.bid(task, "bea", 80)
    await stage.bid(task, "ann", 40)
    return task


async def direct(stage: Market) -> str:
    return await stage.submit()


async def forfeited(stage: Market) -> str:
    """The first executor is silent, the second hands in."""
    task = await stage.submit()
    await stage.bid(task, "ann", 40)
    await stage.bid(task, "bea", 90)
    await stage.executing(task, "bea")
    good = WorkResult(message_id="r", agent_id="bea", quality=0.9, summary="priced", details={"price": 7.9})
    await stage.client.submit_result(task, good)
    return task


async def silent(stage: Market) -> str:
    task = await stage.submit()
    await stage.bid(task, "ann")
    return task


async def unwanted(stage: Market) -> str:
    return await stage.submit()


async def refused(stage: Market) -> str:
    return await stage.submit("levitation")


async def aborted(stage: Market) -> str:
    task = await stage.submit()
    await stage.bid(task, "ann", 40)
    await stage.bid(task, "bea", 90)
    await stage.executing(task, "ann")
    await stage.client.act(task, wire.ABORT, "olga", "not needed any more")
    return task


async def failed(stage: Market) -> str:
    """The executor hands in a failure."""
    task = await stage.submit()
    await stage.bid(task, "ann", 40)
    await stage.bid(task, "bea", 90)
    await stage.executing(task, "ann")
    await stage.client.submit_result(task, WorkResult(message_id="r", agent_id="ann", failure="invalid_result"))
    return task


def all_direct() -> Platform:
    platform = declared(PATIENT)
    direct = tuple(each.model_copy(update={"direct": True}) for each in platform.task_types)
    return platform.model_copy(update={"task_types": direct})


@dataclass(frozen=True)
class TaskRecording:
    """A story of one task, its ending, and who does it: the platform (`built_in`) or an executor outside."""

    tell: Callable[[Market], Awaitable[str]]
    ending: TaskEnding
    platform: Platform
    built_in: bool = False


TASKS = {
    "task_done": TaskRecording(done_in_house, TaskEnding.DONE, declared(PATIENT), built_in=True),
    "task_forfeited": TaskRecording(forfeited, TaskEnding.DONE, declared(HASTY)),
    "task_lost": TaskRecording(silent, TaskEnding.NO_RESULT, declared(HASTY)),
    "task_without_bids": TaskRecording(unwanted, TaskEnding.NO_BIDS, declared(HASTY)),
    "task_refused": TaskRecording(refused, TaskEnding.REFUSED, declared(PATIENT)),
    "task_aborted": TaskRecording(aborted, TaskEnding.ABORTED, declared(PATIENT)),
    "task_direct": TaskRecording(direct, TaskEnding.DONE, all_direct(), built_in=True),
    "task_failed": TaskRecording(failed, TaskEnding.FAILED, declared(PATIENT)),
}
# The jobs, by the workflow that does each; a budget that none of them needs.
JOBS: dict[str, tuple[str, Any]] = {
    "job_snapshot": (wire.OBSERVATORY, JobRequest(job_id="snapshot", budget_s=60)),
    "job_consolidation": (wire.CONSOLIDATION, JobRequest(job_id="consolidation", budget_s=60)),
    "job_standing_decay": (wire.STANDING_DECAY, JobRequest(job_id="standing_decay", budget_s=60)),
    "job_award_due_bids": (wire.AWARD_DUE_BIDS, JobRequest(job_id="award_due_bids", budget_s=60)),
    "diagnostics": (wire.DIAGNOSTICS, DiagnosisRequest(subject="success_rate:monte_carlo")),
    "type_registration": (
        wire.TYPE_REGISTRATION,
        TypeRegistration(message_id="m", agent_id="ann", name="levitation", description="up"),
    ),
}
BUS = "event_bus"
NAMES = (*TASKS, *JOBS, BUS)


async def play(client: Client, home: Path, name: str) -> None:
    """Tell one story on a database and a task queue of its own, and write down what the server has of it."""
    database = Database(f"sqlite:///{home / f'{name}.db'}")
    recording = TASKS.get(name)
    platform = recording.platform if recording else declared(PATIENT)
    try:
        migrate(database)
        async with market(
            client, database, name, home, platform, built_in=bool(recording and recording.built_in)
        ) as stage:
            if recording is not None:
                workflow_id = await recording.tell(stage)
                settlement = (await stage.ended(workflow_id)).settlement
                if settlement is None or settlement.ending is not recording.ending:
                    raise RuntimeError(f"{name}: expected the ending {recording.ending}, but {settlement} came")
            elif name == BUS:
                workflow_id = await bus(client, database, platform, name)
            else:
                workflow, request = JOBS[name]
                workflow_id = getattr(request, "workflow_id", f"recorded-{name}")
                await client.execute_workflow(workflow, request, id=workflow_id, task_queue=name)
            histories = await runs(client, workflow_id)
            described = await client.get_workflow_handle(workflow_id).describe()
            if described.status is WorkflowExecutionStatus.RUNNING:
                await client.get_workflow_handle(workflow_id).terminate("recorded")
    finally:
        database.close()
    write(name, histories)


async def bus(client: Client, database: Database, platform: Platform, queue: str) -> str:
    """A dispatcher that waits for events, recorded while it runs."""
    workflow_id = f"recorded-{queue}"
    await client.start_workflow(wire.EVENT_BUS, "cycles", id=workflow_id, task_queue=queue)
    started = datetime.now(UTC)
    while datetime.now(UTC) - started < timedelta(seconds=60):
        described = await client.get_workflow_handle(workflow_id).describe()
        if described.raw_description.pending_activities:
            return workflow_id
        await asyncio.sleep(0.1)
    raise RuntimeError(f"{queue}: expected a pending delivery within a minute, but none came")


async def record(names: list[str]) -> None:
    """Record the named stories, or all of them, one after the other."""
    with tempfile.TemporaryDirectory(prefix="nautilus-histories-") as folder:
        home = Path(folder)
        async with dev_server(home, free_port(), free_port(), database_file=False, options=AT_ONCE_AGAIN) as server:
            client = await connect(server)
            for name in names or NAMES:
                await asyncio.wait_for(play(client, home, name), 3 * TIMEOUT_S)


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1:]))
