"""Checks of Temporal: server, namespace, search attributes, workers, schedules, the event bus, cycles, clock."""

import asyncio
import shlex
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

from schema import wire
from starter.checks.finding import Judgement, ok, problem, warning
from starter.checks.record import DAY, LATE, clock_judgement
from starter.checks.site import Away, Site

if TYPE_CHECKING:
    from temporalio.api.enums.v1 import TaskQueueType
    from temporalio.api.taskqueue.v1 import PollerInfo
    from temporalio.client import Client, ScheduleDescription, WorkflowExecutionDescription

# A poll lasts a minute at most, so a worker that has not polled for longer is gone.
POLLS_WITHIN = timedelta(seconds=90)
# One failure may be a worker that was just being replaced.
FAILURES = 3
# Cycles looked at, the newest first; and how long one may take to say where it stands.
MOST_CYCLES = 200
PATIENCE = timedelta(seconds=3)
# Far more than a window's timer is ever late.
OVERDUE = timedelta(seconds=60)
CLOCK_QUEUE = "nautilus-doctor"
# The server refuses a poll that is given less than two seconds.
POLL = timedelta(seconds=5)
SHOWN = 3


async def temporal(site: Site) -> Judgement:
    """The server answers, and can do what is asked of it."""
    from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
    from temporalio.service import __version__ as sdk

    try:
        client = await site.client()
    except Away as away:
        return problem(str(away), "`nautilus up`, or correct TEMPORAL_ADDRESS or temporal.toml")
    info = await client.workflow_service.get_system_info(GetSystemInfoRequest())
    versions = f"server {info.server_version}, SDK {sdk}"
    missing = [name for name in ("supports_schedules", "sdk_metadata") if not getattr(info.capabilities, name)]
    if missing:
        return problem(f"{versions}: the server has no {' and no '.join(missing)}", "use a newer Temporal server")
    return ok(versions)


async def namespace(site: Site) -> Judgement:
    """The namespace exists, and keeps the pages of finished cycles long enough."""
    from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
    from temporalio.service import RPCError, RPCStatusCode

    from starter.server import RETENTION

    client = await site.client()
    name = client.namespace
    days = RETENTION.days
    try:
        request = DescribeNamespaceRequest(namespace=name)
        described = await client.workflow_service.describe_namespace(request)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        create = f"`temporal operator namespace create --namespace {name} --retention {days}d`"
        return problem(f"there is no namespace {name}", f"`nautilus apply`, or {create}, or correct TEMPORAL_NAMESPACE")
    kept = described.config.workflow_execution_retention_ttl.ToTimedelta()
    if kept < RETENTION:
        mend = f"`temporal operator namespace update --namespace {name} --retention {days}d`"
        return warning(f"{name} keeps finished workflows for {kept / DAY:g} days, expected {days}", mend)
    return ok(f"{name}, {kept / DAY:g} days of retention")


async def search_attributes(site: Site) -> Judgement:
    """The search attributes are registered: without them no cycle starts."""
    from starter.server import creation_of, missing_search_attributes

    client = await site.client()
    missing = await missing_search_attributes(client)
    if missing:
        mend = f"{creation_of(missing, client.namespace)}, or `nautilus apply`"
        return problem(f"not registered: {', '.join(missing)}", mend)
    return ok(f"all {len(wire.SEARCH_ATTRIBUTES)} are registered")


async def workers(site: Site) -> Judgement:
    """A worker polls each task queue."""
    from temporalio.api.enums.v1 import TaskQueueType

    workflow, activity = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY
    client = await site.client()
    idle = [
        queue
        for queue, kind in ((wire.TASK_QUEUE, workflow), (wire.TASK_QUEUE, activity), (wire.TASKS_QUEUE, activity))
        if not _recent(await _pollers(client, queue, kind), site.now())
    ]
    if idle:
        mend = "`nautilus worker` (or `nautilus up`); under `up` its log is worker.log"
        return problem(f"no worker polls {' and '.join(dict.fromkeys(idle))}", mend)
    if not _recent(await _pollers(client, wire.AGENTS_QUEUE, activity), site.now()):
        mend = "`nautilus agent run`, unless all your agents are your own"
        return warning("workers poll, but the built-in agents do not run", mend)
    return ok("workers and the built-in agents poll")


async def _pollers(client: "Client", task_queue: str, kind: "TaskQueueType.ValueType") -> "list[PollerInfo]":
    from temporalio.api.taskqueue.v1 import TaskQueue
    from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest

    request = DescribeTaskQueueRequest(
        namespace=client.namespace, task_queue=TaskQueue(name=task_queue), task_queue_type=kind
    )
    return list((await client.workflow_service.describe_task_queue(request)).pollers)


def _recent(pollers: "Iterable[PollerInfo]", now: datetime) -> bool:
    return any(now - poller.last_access_time.ToDatetime(UTC) < POLLS_WITHIN for poller in pollers)


async def schedules(site: Site) -> Judgement:
    """The schedules are as declared."""
    from activities import cron

    wanted = cron.jobs(site.platform())
    changes = await cron.apply(await site.client(), wanted, dry_run=True)
    if changes:
        return problem(f"not as declared: {'; '.join(map(str, changes))}", "`nautilus schedules apply`")
    return ok(f"{len(wanted)} as declared")


async def paused(site: Site) -> Judgement:
    """No schedule is paused."""
    described = await _schedules(site)
    states = {job_id: description.schedule.state for job_id, description in described.items()}
    if which := [job_id for job_id, state in states.items() if state.paused]:
        first, *_ = which
        client = await site.client()
        mend = f"`temporal schedule toggle --unpause --reason ... --schedule-id {first} --namespace {client.namespace}`"
        return warning(f"paused: {', '.join(which)} ({states[first].note})", mend)
    return ok("none is paused")


async def runs(site: Site) -> Judgement:
    """Each schedule has run lately, by its own interval, and its last run has not failed."""
    client = await site.client()
    described = await _schedules(site)
    if late := [job_id for job_id, description in described.items() if _is_late(description, site.now())]:
        trigger = f"`temporal schedule trigger --schedule-id {late[0]} --namespace {client.namespace}`"
        mend = (
            f"fix what `temporal` and `workers` report; {trigger} runs it now; the server's log says what holds it up"
        )
        return problem(f"no run for two intervals: {', '.join(late)}", mend)
    failed = [job_id for job_id, description in described.items() if await _last_failed(client, description)]
    if failed:
        mend = f"see why: {_see(client, failed[0])}, or its page in the web UI"
        return warning(f"the last run failed or was cut off: {', '.join(failed)}", mend)
    return ok(f"the last runs of {len(described)} schedules are in time")


async def _schedules(site: Site) -> "dict[str, ScheduleDescription]":
    """What the server says of each declared schedule that it has."""
    from activities import cron

    client = await site.client()
    described = {}
    for job in cron.jobs(site.platform()):
        job_id = job.declaration.id.value
        if (stored := await cron.find(client, job_id)) is not None:
            described[job_id] = stored.description
    return described


def _is_late(description: "ScheduleDescription", now: datetime) -> bool:
    """Whether nothing has run for two intervals; who paused it knows that it does not run."""
    info = description.info
    if description.schedule.state.paused or len(info.next_action_times) < 2:
        return False
    interval = info.next_action_times[1] - info.next_action_times[0]
    runs = [result.started_at for result in info.recent_actions[-1:]]
    last = max(*runs, info.created_at, info.last_updated_at or info.created_at)
    return now - last > 2 * interval + LATE


async def _last_failed(client: "Client", description: "ScheduleDescription") -> bool:
    from temporalio.client import ScheduleActionExecutionStartWorkflow, WorkflowExecutionStatus
    from temporalio.service import RPCError

    from schema.connection import is_missing

    results = description.info.recent_actions
    if not results or not isinstance(results[-1].action, ScheduleActionExecutionStartWorkflow):
        return False
    action = results[-1].action
    run_id = action.first_execution_run_id
    try:
        run = await client.get_workflow_handle(action.workflow_id, run_id=run_id).describe()
    except RPCError as error:
        if not is_missing(error):
            raise
        return False  # older than the retention
    return run.status in (WorkflowExecutionStatus.FAILED, WorkflowExecutionStatus.TIMED_OUT)


async def event_bus(site: Site) -> Judgement:
    """Each subscriber's dispatcher runs."""
    from temporalio.client import WorkflowExecutionStatus
    from temporalio.service import RPCError

    from rules.subscriptions import subscriptions
    from schema.connection import is_missing

    client = await site.client()
    stopped, failing = [], []
    for subscriber in subscriptions(site.platform()):
        try:
            description = await client.get_workflow_handle(f"event-bus:{subscriber}").describe()
        except RPCError as error:
            if not is_missing(error):
                raise
            stopped.append(subscriber)
            continue
        if description.status is not WorkflowExecutionStatus.RUNNING:
            stopped.append(subscriber)
        elif _fails(description):
            failing.append(description.id)
    if stopped:
        return problem(f"no dispatcher runs for {', '.join(stopped)}", "`nautilus events apply`")
    if failing:
        return problem(f"workflow tasks fail: {_first(failing)}", _roll_back(client, failing[0]))
    return ok("every dispatcher runs")


def _fails(description: "WorkflowExecutionDescription") -> bool:
    return description.raw_description.pending_workflow_task.attempt >= FAILURES


def _roll_back(client: "Client", workflow_id: str) -> str:
    return f"roll the last deploy of workers back; why: {_see(client, workflow_id)}"


def _see(client: "Client", workflow_id: str) -> str:
    return f"`temporal workflow describe --workflow-id {shlex.quote(workflow_id)} --namespace {client.namespace}`"


def _first(ids: list[str]) -> str:
    more = len(ids) - SHOWN
    return ", ".join(ids[:SHOWN]) + (f" and {more} more" if more > 0 else "")


async def cycles(site: Site) -> Judgement:
    """No cycle fails its workflow tasks, and none is past its deadline."""
    client = await site.client()
    query = f"WorkflowType='{wire.IMPROVEMENT_CYCLE}' AND ExecutionStatus='Running'"
    ids = [execution.id async for execution in client.list_workflows(query, limit=MOST_CYCLES)]
    described = await asyncio.gather(*(client.get_workflow_handle(cycle).describe() for cycle in ids))
    if failing := [description.id for description in described if _fails(description)]:
        return problem(f"workflow tasks fail: {_first(failing)}", _roll_back(client, failing[0]))
    late = await asyncio.gather(*(_lateness(client, cycle, site.now()) for cycle in ids))
    if overdue := [cycle for cycle, is_late in zip(ids, late, strict=True) if is_late]:
        see = f"see what holds it up: {_see(client, overdue[0])}"
        mend = f"{see}; then `nautilus cycle act {shlex.quote(overdue[0])} abort --why ...`, or `extend --seconds ...`"
        return problem(f"past their deadline: {_first(overdue)}", mend)
    if silent := [cycle for cycle, is_late in zip(ids, late, strict=True) if is_late is None]:
        return warning(f"no answer from {_first(silent)}", "fix what `workers` reports, then `nautilus doctor` again")
    return ok(f"{len(ids)} run, none is overdue")


async def _lateness(client: "Client", cycle: str, now: datetime) -> bool | None:
    """Whether a cycle's window should have closed; None where it does not say."""
    from temporalio.client import WorkflowQueryFailedError
    from temporalio.service import RPCError

    from schema.connection import is_missing
    from schema.messages.schedules import OpenWindow

    try:
        handle = client.get_workflow_handle(cycle)
        window = await handle.query(wire.STATUS, result_type=OpenWindow, rpc_timeout=PATIENCE)
    except (RPCError, WorkflowQueryFailedError) as error:
        return False if is_missing(error) else None  # it has ended meanwhile
    return window.paused_at is None and window.deadline is not None and now > window.deadline + OVERDUE


async def server_clock(site: Site) -> Judgement:
    """This machine's clock is the server's.

    The server tells its time only of what it was asked to do: it notes when a task queue was polled. So one of our own,
    on which there is never a task, is polled for a moment.
    """
    from temporalio.api.enums.v1 import TaskQueueType

    client = await site.client()
    kind = TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY
    before = site.now()
    async with _polling(client) as (identity, poll):
        while not poll.done():
            for poller in await _pollers(client, CLOCK_QUEUE, kind):
                if poller.identity == identity:
                    at = poller.last_access_time.ToDatetime(UTC)
                    return clock_judgement("Temporal server", max(before - at, at - site.now()))
            await asyncio.sleep(0.05)
    return warning("not checked: the server did not say when it was asked", "`nautilus doctor` again")


@asynccontextmanager
async def _polling(client: "Client") -> "AsyncIterator[tuple[str, asyncio.Task[object]]]":
    """Poll the task queue of the clock for the length of the context, under an identity that is new."""
    from temporalio.api.taskqueue.v1 import TaskQueue
    from temporalio.api.workflowservice.v1 import PollActivityTaskQueueRequest

    identity = f"doctor-{uuid4()}"
    request = PollActivityTaskQueueRequest(
        namespace=client.namespace, task_queue=TaskQueue(name=CLOCK_QUEUE), identity=identity
    )
    poll = asyncio.create_task(client.workflow_service.poll_activity_task_queue(request, timeout=POLL))
    try:
        yield identity, poll
    finally:
        poll.cancel()
        await asyncio.gather(poll, return_exceptions=True)
