"""Schedules: the cron registry. Temporal is the store; this table says what ought to be there, `apply` makes it so.

A schedule carries its own declaration in its action's memo. So the Observatory can let it follow the health score
without knowing `platform.toml`: a worker that has read an older file does not undo what a newer one declares.
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from sqlmodel import col, select
from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleDescription,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
    ScheduleUpdateInput,
    WorkflowExecutionStatus,
    WorkflowQueryFailedError,
)
from temporalio.common import Priority, SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from activities.database import Database
from activities.events import emit
from activities.market import MarketActivities, roster
from activities.reading import latest_snapshot
from activities.tasks import TaskActivities
from rules import elevation as rules
from rules.standing import Tier, tier
from schema import wire
from schema.messages.cycle import CycleEnd, Ending, Phase
from schema.messages.events import EventType
from schema.messages.observatory import Anomaly, Snapshot
from schema.messages.platform import ElevationRules, JobClass, JobId, Platform, ScheduleDeclaration
from schema.messages.schedules import Elevation, JobReport, JobRequest, JobState, OpenWindow
from schema.messages.tasks import Settlement, TaskEnding, TaskRequest, task_workflow_id
from schema.pace import TRIAL_EVERY_S, Pace
from schema.tables.events import EventRow
from schema.tables.market import MetaTaskRow, TaskRow
from schema.tables.observatory import AnomalyRow

# What tells our schedules from others in the namespace: only these are ever removed.
MARK = "nautilus"
# Temporal's own: which schedule started a workflow.
SCHEDULED_BY = SearchAttributeKey.for_keyword("TemporalScheduledById")
# Missed runs are made up for only this far back: a snapshot of yesterday, taken today, tells nothing. What is done
# once a day is worth doing late.
SOON, TODAY = timedelta(minutes=10), timedelta(hours=12)
# After its budget a job records what was left and ends; a worker that is busy meanwhile gets this long at least.
LEAST_GRACE_S = 15.0
# A quantile of so many runs is steady, and old ones are forgotten within a day or two.
RUNS = 20
# Far more than a window's timer is ever late.
OVERDUE = timedelta(seconds=60)
# Windows looked at in one run; the others are looked at when these have moved.
WINDOWS = 200
PATIENCE = timedelta(seconds=3)
# For so long after it closed a workflow is looked at; jobs that have not run for longer are a person's matter.
REMEMBERED = timedelta(days=7)
CLOSED = (WorkflowExecutionStatus.TERMINATED, WorkflowExecutionStatus.FAILED, WorkflowExecutionStatus.TIMED_OUT)


@dataclass(frozen=True)
class Job:
    """What a schedule starts, and when; `platform.toml` may override its declaration by the id."""

    declaration: ScheduleDeclaration
    starts: str
    overlap: ScheduleOverlapPolicy
    catch_up: timedelta
    purpose: str
    elevation: ElevationRules = field(default_factory=ElevationRules)


def _job(
    id: JobId, when: int | str, budget_s: float | Literal["auto"], job_class: JobClass, priority: int, *others: Any
) -> Job:
    clock = {"every_s": when} if isinstance(when, int) else {"cron": when}
    declared = {"id": id, "budget_s": budget_s, "job_class": job_class, "priority": priority}
    return Job(ScheduleDeclaration.model_validate(declared | clock), *others)


SKIP = ScheduleOverlapPolicy.SKIP
DIAGNOSTIC, MARKET, MEMORY = JobClass.DIAGNOSTIC, JobClass.MARKET, JobClass.MEMORY
JOBS = (
    # id, every (s) or cron (UTC), budget (s), class, priority, what it starts, overlap, catch-up, what for
    _job(JobId.METRICS_SNAPSHOT, 3_600, 30, DIAGNOSTIC, 3, wire.OBSERVATORY, SKIP, SOON, "measure the platform"),
    _job(JobId.AUTONOMY_SCAN, 300, 10, MARKET, 3, wire.AUTONOMY_SCAN, SKIP, SOON, "agents look at the market"),
    _job(JobId.AWARD_DUE_BIDS, 600, 20, MARKET, 3, wire.AWARD_DUE_BIDS, SKIP, SOON, "nudge windows that are overdue"),
    _job(JobId.STANDING_DECAY, "30 2 * * *", 60, MARKET, 4, wire.STANDING_DECAY, SKIP, TODAY, "fade who is idle"),
    _job(JobId.CONSOLIDATION, "0 3 * * *", 120, MEMORY, 5, wire.CONSOLIDATION, SKIP, TODAY, "learn from the day"),
)


class Change(NamedTuple):
    """What `apply` does to one schedule: create, change or remove, and what differs (before -> after)."""

    job_id: str
    act: str
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.act} {self.job_id}" + (f": {'; '.join(self.differences)}" if self.differences else "")


class ScheduledJob(NamedTuple):
    """One of our schedules as a person reads it; instants in ISO 8601."""

    id: str
    when: str
    starts: str
    budget_s: float
    job_class: str
    priority: int
    elevated: bool
    paused: bool
    next_run: str | None
    last_run: str | None
    note: str


class _Found(NamedTuple):
    """A schedule as the server has it; without a state, where somebody else made it."""

    description: ScheduleDescription
    facts: dict[str, str]
    state: JobState | None


def jobs(platform: Platform) -> tuple[Job, ...]:
    """The table at the platform's pace, with the platform's overrides."""
    declared = {override.id: override for override in platform.schedules}
    found = (replace(_paced(job, platform.pace), elevation=platform.elevation) for job in JOBS)
    return tuple(_overridden(job, declared.get(job.declaration.id)) for job in found)


def _paced(job: Job, pace: Pace) -> Job:
    if pace is not Pace.TRIAL:
        return job
    every_s = TRIAL_EVERY_S[job.declaration.id.value]
    return replace(job, declaration=job.declaration.model_copy(update={"every_s": every_s, "cron": None}))


def _overridden(job: Job, mine: ScheduleDeclaration | None) -> Job:
    if mine is None:
        return job
    kept = {name: getattr(job.declaration, name) for name in ("job_class", "priority") if getattr(mine, name) is None}
    return replace(job, declaration=mine.model_copy(update=kept))


async def apply(client: Client, wanted: Iterable[Job], dry_run: bool = False) -> list[Change]:
    """Create, change and remove until Temporal holds what is declared; doing it twice is doing it once.

    What somebody paused stays paused, what is elevated stays elevated, and what a budget has learned is kept.
    """
    changes: list[Change] = []
    declared = {job.declaration.id.value: job for job in wanted}
    for job_id, job in declared.items():
        found = await _find(client, job_id)
        before = found.state if found else None
        state = JobState(declaration=job.declaration, budget=rules.budget((), (), None, job.declaration))
        if before is not None:
            budget = before.budget if before.declaration == job.declaration else state.budget
            state = JobState(declaration=job.declaration, budget=budget, elevation=before.elevation)
        changes += await _settle(client, job, state, found, dry_run)
    async for listed in await client.list_schedules():
        ours = listed.id not in declared and MARK in await listed.memo()
        # The list lags behind; the server does not.
        if ours and await _find(client, listed.id) is not None:
            changes.append(Change(listed.id, "remove"))
            if not dry_run:
                await client.get_schedule_handle(listed.id).delete()
    return changes


async def listed(client: Client) -> list[ScheduledJob]:
    """Our schedules as the server has them."""
    rows = []
    async for entry in await client.list_schedules():
        found = await _find(client, entry.id) if MARK in await entry.memo() else None
        if found is None or found.state is None:
            continue
        declared, info = found.state.declaration, found.description.info
        rows.append(
            ScheduledJob(
                id=entry.id,
                when=found.facts["when"],
                starts=found.facts["starts"],
                budget_s=found.state.budget.seconds,
                job_class=declared.job_class.value if declared.job_class else "",
                priority=int(found.facts["priority"]),
                elevated=rules.is_elevated(declared, found.state.elevation),
                paused=found.description.schedule.state.paused,
                next_run=info.next_action_times[0].isoformat() if info.next_action_times else None,
                last_run=info.recent_actions[-1].started_at.isoformat() if info.recent_actions else None,
                note=found.facts["note"],
            )
        )
    return sorted(rows)


async def _find(client: Client, job_id: str) -> _Found | None:
    try:
        description = await client.get_schedule_handle(job_id).describe()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND or "amespace" in str(error):
            raise
        return None
    action = description.schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    memo, args = (action.memo or {}).get("job"), [arg for arg in action.args if isinstance(arg, Payload)]
    state = None
    if isinstance(memo, Payload):
        # Written by another version, with words that this one does not know: as good as somebody else's.
        with suppress(ValidationError):
            (state,) = await client.data_converter.decode([memo], [JobState])
    return _Found(description, _facts(description.schedule, args[0] if args else None, memo), state)


async def _settle(client: Client, job: Job, state: JobState, found: _Found | None, dry_run: bool) -> list[Change]:
    """Make one schedule what it ought to be; the change, or nothing where it is so already."""
    job_id = job.declaration.id.value
    if job.declaration.job_class is not DIAGNOSTIC:
        state = state.model_copy(update={"elevation": Elevation()})
    request = JobRequest(job_id=job_id, budget_s=state.budget.seconds)
    schedule = _schedule(job, request, state)
    encoded = await client.data_converter.encode([request, state])
    if found is not None:
        schedule.state = _state(schedule, found.description.schedule.state)
    wanted = _facts(schedule, *encoded)
    if found is None:
        shown = ("when", "starts", "cut off", "priority", "note")
        change = Change(job_id, "create", tuple(f"{name} {wanted[name]}" for name in shown))
    elif differing := [name for name, value in wanted.items() if found.facts[name] != value]:
        # The input and the declaration repeat what the other facts say in words.
        told = [name for name in differing if name not in ("input", "declared")] or differing
        lines = (
            f"note now {wanted[name]}" if name == "note" else f"{name} {found.facts[name]} -> {wanted[name]}"
            for name in told
        )
        change = Change(job_id, "change", tuple(lines))
    else:
        return []
    if not dry_run:
        await _write(client, job_id, schedule, new=found is None)
    return [change]


async def _write(client: Client, job_id: str, schedule: Schedule, new: bool) -> None:
    def updated(now: ScheduleUpdateInput) -> ScheduleUpdate:
        return ScheduleUpdate(schedule=replace(schedule, state=_state(schedule, now.description.schedule.state)))

    try:
        if new:
            with suppress(ScheduleAlreadyRunningError):  # somebody applies at the same time
                await client.create_schedule(job_id, schedule, memo={MARK: "job"})
                return
        await client.get_schedule_handle(job_id).update(updated)
    except RPCError as error:
        if error.status is not RPCStatusCode.INVALID_ARGUMENT:
            raise
        raise ValueError(f"schedule {job_id}: expected one that Temporal takes, but: {error.message}") from None


def _state(schedule: Schedule, now: ScheduleState) -> ScheduleState:
    """The state of `schedule`, paused or not as it is now: the note of a pause is who paused it and why."""
    return now if now.paused else replace(now, note=schedule.state.note)


def _facts(schedule: Schedule, request: Payload | None, memo: Any) -> dict[str, str]:
    """What is compared and shown; the same for what is wanted and for what the server made of it."""
    action, spec = schedule.action, schedule.spec
    assert isinstance(action, ScheduleActionStartWorkflow)
    # The server turns a cron expression into a calendar, and keeps its comment.
    crons = [cron.split(" # ")[-1] for cron in spec.cron_expressions]
    calendars = [calendar.comment or "a calendar" for calendar in spec.calendars]
    intervals = [f"every {i.every.total_seconds():g} s" for i in spec.intervals]
    cut_s = action.execution_timeout.total_seconds() if action.execution_timeout else 0
    return {
        "when": ", ".join([*intervals, *crons, *calendars]),
        "cut off": f"after {cut_s:g} s",
        "priority": str(action.priority.priority_key),
        "starts": f"{action.workflow} on {action.task_queue}",
        "overlap": schedule.policy.overlap.name.lower(),
        "catch-up": str(schedule.policy.catchup_window),
        "note": schedule.state.note or "",
        "input": request.data.decode(errors="replace") if request else "",
        "declared": memo.data.decode(errors="replace") if isinstance(memo, Payload) else "",
    }


def _schedule(job: Job, request: JobRequest, state: JobState) -> Schedule:
    declared, seconds = job.declaration, request.budget_s
    elevated = rules.is_elevated(declared, state.elevation)
    told = [job.purpose, f"budget {seconds:g} s" + (f" ({state.budget.reason})" if state.budget.reason else "")]
    if declared.every_s is not None:
        every_s = rules.interval_s(declared.every_s, elevated, job.elevation)
        # A little after the interval ends, so that what belongs to it has been recorded.
        offset = timedelta(seconds=min(60.0, every_s / 5))
        spec = ScheduleSpec(intervals=[ScheduleIntervalSpec(timedelta(seconds=every_s), offset)])
        told += [f"every {every_s} s instead of {declared.every_s} s"] if every_s != declared.every_s else []
    else:
        spec = ScheduleSpec(cron_expressions=[f"{declared.cron} # {declared.cron}"])
    if state.elevation.reason:
        told = [state.elevation.reason, *told]
    return Schedule(
        action=ScheduleActionStartWorkflow(
            job.starts,
            request,
            id=declared.id.value,
            task_queue=wire.TASK_QUEUE,
            execution_timeout=timedelta(seconds=seconds + max(seconds, LEAST_GRACE_S)),
            static_summary=f"{declared.id.value}: {job.purpose}",
            priority=Priority(priority_key=rules.FIRST if elevated else declared.priority or 3),
            memo={"job": state},
        ),
        spec=spec,
        policy=SchedulePolicy(overlap=job.overlap, catchup_window=job.catch_up),
        state=ScheduleState(note="; ".join(told)),
    )


class ScheduleActivities:
    """Lets the schedules follow the platform's health, and does what their jobs ask for."""

    def __init__(self, client: Client, database: Database, platform: Platform) -> None:
        self._client = client
        self._database = database
        self._platform = platform

    @activity.defn
    async def follow_health(self) -> tuple[str, ...]:
        """Elevate schedules or take them back, and renew budgets, by the latest snapshot; what was changed.

        Creates and removes nothing: what a person deleted stays away until the next `nautilus schedules apply`.
        """
        snapshot, anomalies = await asyncio.to_thread(self._situation)
        if snapshot is None:
            return ()
        changes: list[Change] = []
        budgets_s: dict[str, float] = {}
        for job in jobs(self._platform):
            job_id = job.declaration.id.value
            found = await _find(self._client, job_id)
            if found is None or found.state is None:
                continue
            budgets_s[job_id] = found.state.budget.seconds
            declared = found.state.declaration
            durations_s = await self._recent_runs(job_id) if declared.budget_s == "auto" else ()
            budget = rules.budget(durations_s, anomalies, snapshot.health, declared)
            if budget.seconds == found.state.budget.seconds:
                budget = found.state.budget  # and the reason for which it became that
            state = JobState(declaration=declared, budget=budget, elevation=snapshot.elevation)
            changes += await _settle(self._client, replace(job, declaration=declared), state, found, False)
        if budgets_s:
            await self._tell_of_the_cut_off(budgets_s)
        return tuple(map(str, changes))

    def _situation(self) -> tuple[Snapshot | None, list[Anomaly]]:
        with self._database.reading() as session:
            rows = session.exec(select(AnomalyRow.body).where(col(AnomalyRow.closed_at).is_(None))).all()
        return latest_snapshot(self._database), [Anomaly.model_validate(body) for body in rows]

    async def _recent_runs(self, job_id: str) -> tuple[float, ...]:
        """Durations of the latest runs; one that was cut off took what it had."""
        query = f"{SCHEDULED_BY.name}='{job_id}' AND ExecutionStatus IN ('Completed', 'TimedOut')"
        runs = [run async for run in self._client.list_workflows(query, limit=RUNS)]
        return tuple((run.close_time - run.start_time).total_seconds() for run in runs if run.close_time)

    async def _tell_of_the_cut_off(self, budgets_s: Mapping[str, float]) -> None:
        """BUDGET_EXCEEDED for the latest runs that were cut off hard: they could not say so themselves."""
        ids = ", ".join(f"'{job_id}'" for job_id in budgets_s)
        query = f"{SCHEDULED_BY.name} IN ({ids}) AND ExecutionStatus='TimedOut'"
        async for run in self._client.list_workflows(query, limit=RUNS):
            job_id = run.typed_search_attributes[SCHEDULED_BY]
            report = JobReport(job_id=job_id, left=("cut off before it could say",))
            at = run.close_time or run.start_time
            await asyncio.to_thread(self.record_exceeded, report, budgets_s[job_id], run.run_id, at)

    @activity.defn
    def record_exceeded(self, report: JobReport, budget_s: float, run_id: str, at: datetime) -> None:
        """BUDGET_EXCEEDED: what a job did within its budget, and what was left; once for each run."""
        job, done, left = report.job_id, list(report.done), list(report.left)
        with self._database.transaction() as session:
            emit(session, EventType.BUDGET_EXCEEDED, job, run_id, at, job=job, budget=budget_s, done=done, left=left)

    @activity.defn
    def who_may_look(self) -> tuple[str, ...]:
        """The agents whose tier lets them take part in the market."""
        with self._database.reading() as session:
            return tuple(a.agent_id for a in roster(session) if tier(a) is not Tier.SUSPENDED)

    @activity.defn
    async def nudge_overdue(self, at: datetime) -> tuple[str, ...]:
        """Wake what stands in a window that should have closed, and name it.

        A window's own timer decides, and the server keeps it while no worker runs: nothing is awarded from here. What
        can be overdue is a workflow whose next step is being retried (the database is away) or whose task fails (a
        deploy that does not replay). A nudge makes it look at its deadline again; the report is for a person.
        """
        phases = ", ".join(f"'{phase.value}'" for phase in (Phase.BIDDING, Phase.PROPOSING, Phase.VOTING))
        # What was opened just now cannot be overdue, and must not crowd out what is.
        old = f"StartTime <= '{(at - OVERDUE).isoformat()}'"
        query = f"ExecutionStatus='Running' AND {wire.PHASE} IN ({phases}) AND {old}"
        waiting = [e.id async for e in self._client.list_workflows(query, limit=WINDOWS)]
        told = await asyncio.gather(*(self._nudge(workflow_id, at) for workflow_id in waiting))
        return tuple(line for line in told if line is not None)

    async def _nudge(self, workflow_id: str, at: datetime) -> str | None:
        handle = self._client.get_workflow_handle(workflow_id)
        try:
            window = await handle.query(wire.STATUS, result_type=OpenWindow, rpc_timeout=PATIENCE)
            if window.paused or window.deadline is None or at < window.deadline + OVERDUE:
                return None
            await handle.signal(wire.NUDGE)
        except (RPCError, WorkflowQueryFailedError) as error:
            if isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND:
                return None  # ended meanwhile
            return f"{workflow_id} does not say where it stands"
        return f"{workflow_id} was nudged: {window.phase} was due to end at {window.deadline:%Y-%m-%d %H:%M:%S} UTC"

    @activity.defn
    async def end_abandoned(self, at: datetime) -> tuple[str, ...]:
        """Write the ending of what was terminated, or failed, and so could not write its own; name it.

        Or a cycle's experiment would go on exposing tasks, and a task would be its agent's load for ever.
        """
        told = []
        for cycle in await asyncio.to_thread(self._open_cycles):
            if reason := await self._abandoned(cycle.workflow_id, cycle.run_id):
                await asyncio.to_thread(self._end_cycle, cycle, reason, at)
                told.append(f"{cycle.workflow_id} was ended: {reason}")
        closed = "ExecutionStatus IN ('Terminated', 'Failed', 'TimedOut')"
        lately = f"CloseTime >= '{(at - REMEMBERED).isoformat()}'"
        query = f"{closed} AND WorkflowType='{wire.MARKET_TASK}' AND {lately}"
        names = [e.id.removeprefix(task_workflow_id("")) async for e in self._client.list_workflows(query)]
        for task in await asyncio.to_thread(self._open_tasks, names):
            if reason := await self._abandoned(task_workflow_id(task.task_id), task.run_id):
                await asyncio.to_thread(self._end_task, task, reason, at)
                told.append(f"{task_workflow_id(task.task_id)} was ended: {reason}")
        return tuple(told)

    async def _abandoned(self, workflow_id: str, first_run_id: str) -> str | None:
        """Why nobody is there any more who could end what this run began, or None."""
        try:
            found = await self._client.get_workflow_handle(workflow_id).describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return "its workflow is gone"
        if found.status in CLOSED:
            return f"its workflow ended without a word ({found.status.name.lower()})"
        # The id may have been started again: another attempt is under way.
        first = found.raw_description.workflow_execution_info.first_run_id
        return "its workflow ended without a word, and another has begun" if first and first != first_run_id else None

    def _open_cycles(self) -> list[MetaTaskRow]:
        with self._database.reading() as session:
            return list(session.exec(select(MetaTaskRow).where(col(MetaTaskRow.ended_at).is_(None))))

    def _open_tasks(self, names: list[str]) -> list[TaskRow]:
        """Of these tasks, those that the record takes for open; some at a time, the others at the next run."""
        found: list[TaskRow] = []
        with self._database.reading() as session:
            for start in range(0, len(names), 1_000):
                chunk = col(TaskRow.task_id).in_(names[start : start + 1_000])
                found += session.exec(select(TaskRow).where(chunk, col(TaskRow.ended_at).is_(None)))
        return found[:WINDOWS]

    def _end_cycle(self, row: MetaTaskRow, reason: str, at: datetime) -> None:
        end = CycleEnd(cycle_id=row.cycle_id, subject=row.subject, ending=Ending.ABORTED, reason=reason, at=at)
        MarketActivities(self._database, self._platform).end_cycle(end)

    def _end_task(self, row: TaskRow, reason: str, at: datetime) -> None:
        with self._database.reading() as session:
            opened = select(EventRow.data).where(EventRow.key == f"{EventType.TASK_OPENED.value}:{row.task_id}")
            asked = session.exec(opened).first() or {}
        request = TaskRequest(
            task_id=row.task_id, task_type=row.task_type, requester=row.requester, notify=asked.get("notify", "")
        )
        settlement = Settlement(
            request=request, ending=TaskEnding.ABORTED, reason=reason, started_at=row.opened_at, at=at
        )
        TaskActivities(self._database, self._platform).settle_task(settlement)
