"""Task work: the built-in executor. It does user tasks in the name of the agent that has the award and settles them.

It has a task queue of its own, because work takes the processor and the other activities must not wait for it. The
parameters come from the platform's own resolver, so that user tasks take part in experiments; the assignment is
recorded before the work begins. Work may be done twice where a worker died; it is settled once.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from temporalio import activity

from activities.assignments import record_assignments
from activities.database import Database
from activities.task_runner import Execution, TaskRunner
from activities.tasks import LONGEST_TEXT, settle
from rules.redaction import redacted
from schema.messages.base import Value
from schema.messages.experiment import Assignment
from schema.messages.observatory import detail_of
from schema.messages.platform import Platform
from schema.messages.tasks import Settlement, TaskEnding, TaskRequest, WorkOrder, WorkResult
from schema.tables.market import TaskRow

T = TypeVar("T")
# The limit of a task type without a declared one: no task runs for ever.
DEFAULT_LIMIT_S = 3_600.0
# Well under the heartbeat timeout that the workflow sets.
HEARTBEAT_S = 5.0
# How much the quality of a second run may differ: other machines round and time differently.
QUALITY_TOLERANCE = 0.05


class Resolved(Protocol):
    """The parameters of one task and the experiments that chose some of them."""

    @property
    def values(self) -> dict[str, Value]: ...
    @property
    def assignments(self) -> Sequence[Assignment]: ...


class Resolver(Protocol):
    """What `starter.platform.resolver` offers."""

    def resolve_task(self, task_type: str, task_id: str, at: datetime) -> Resolved:
        """Every parameter that touches `task_type`, for one task that starts at `at`."""


class TaskWork:
    """Runs tasks in processes that are killed at their limit."""

    def __init__(self, database: Database, platform: Platform, runner: TaskRunner, resolver: Resolver) -> None:
        self._database = database
        self._platform = platform
        self._runner = runner
        self._resolver = resolver

    @activity.defn
    async def execute(self, order: WorkOrder) -> Settlement:
        """Do the task and settle it; returns its one settlement, which an earlier attempt may have written."""
        return await _with_heartbeats(asyncio.to_thread(self._execute, order, activity.info().started_time))

    @activity.defn
    async def check(self, request: TaskRequest, claimed: WorkResult) -> str | None:
        """Repeat the work of an agent's own executor; why its result does not hold, or None."""
        at = activity.info().started_time
        values = self._resolver.resolve_task(request.task_type, request.task_id, at).values
        execution = await _with_heartbeats(asyncio.to_thread(self._run, request, values))
        if execution.result is None:
            return f"repeated by the platform, it failed: {redacted(execution.detail)}"
        quality = execution.result.quality
        if claimed.quality is None or abs(claimed.quality - quality) > QUALITY_TOLERANCE:
            return f"expected a quality of {quality:g}, as the platform measured it, but {claimed.quality} was claimed"
        return None

    def _execute(self, order: WorkOrder, at: datetime) -> Settlement:
        """Do the task with the parameters of its arm, and settle it, unless an earlier attempt has."""
        request = order.request
        with self._database.reading() as session:
            task = session.get_one(TaskRow, request.task_id)
            if task.settlement is not None:
                return Settlement.model_validate(task.settlement)

        resolution = self._resolver.resolve_task(request.task_type, request.task_id, at)
        if resolution.assignments:
            with self._database.transaction() as session:
                record_assignments(session, resolution.assignments, self._platform.observatory.interval_s)
        execution = self._run(request, resolution.values)
        settlement = _settlement(order, at, execution)
        with self._database.transaction() as session:
            return settle(session, settlement, self._platform.observatory.interval_s)

    def _run(self, request: TaskRequest, values: dict[str, Value]) -> Execution:
        limit_s = self._platform.limit_s(request.task_type, values, DEFAULT_LIMIT_S)
        return self._runner.run(request.task_type, request.payload, values, limit_s)


def _settlement(order: WorkOrder, started_at: datetime, execution: Execution) -> Settlement:
    """How the task ended; a price is paid for a result only."""
    agent_id = order.award.agent_id
    result = execution.result
    if result is None:
        # Redacted before it is cut: half a key is not recognised.
        reason = redacted(f"{execution.failure}: {execution.detail}")
        outcome: dict[str, Any] = {"ending": TaskEnding.FAILED, "reason": reason[:LONGEST_TEXT]}
    else:
        outcome = {
            "ending": TaskEnding.DONE,
            "reason": f"done by {agent_id}",
            "price": order.award.price,
            "quality": result.quality,
            "summary": result.summary[:LONGEST_TEXT],
            "details": result.details,
        }
    return Settlement(
        request=order.request,
        started_at=started_at,
        at=started_at + timedelta(seconds=execution.duration_s),
        duration_s=execution.duration_s,
        agent_id=agent_id,
        failure=execution.failure,
        failure_reason=execution.reason,
        failure_detail=detail_of(execution.detail),
        **outcome,
    )


async def _with_heartbeats(work: Coroutine[Any, Any, T]) -> T:
    """Await work in a thread, with heartbeats meanwhile, so that the server notices soon when this worker dies."""
    future = asyncio.ensure_future(work)
    while True:
        done, _ = await asyncio.wait([future], timeout=HEARTBEAT_S)
        if done:
            return future.result()
        activity.heartbeat()
