"""Schedules: the cron registry. Temporal is the store; this table says what ought to be there, `apply` makes it so.

A schedule carries its own declaration in its action's memo. So the Observatory can let it follow the health score
without knowing `platform.toml`: a worker that has read an older file does not undo what a newer one declares.
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pydantic import ValidationError
from sqlmodel import col, func, select
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
    WorkflowHandle,
    WorkflowQueryFailedError,
)
from temporalio.common import Priority, SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from activities.database import Database
from activities.events import emit
from activities.market import roster
from activities.observatory import latest_snapshot
from rules import elevation as rules
from rules.standing import Tier, tier
from schema import wire
from schema.messages.cycle import Phase
from schema.messages.events import EventType
from schema.messages.observatory import Snapshot
from schema.messages.platform import ElevationRules, JobClass, JobId, Platform, ScheduleDeclaration
from schema.messages.schedules import Elevation, JobReport, JobRequest, JobState, OpenWindow
from schema.tables.observatory import AnomalyRow

# What tells our schedules from others in the namespace: only these are ever removed.
MARK = "nautilus"
# Temporal's own: which schedule started a workflow.
SCHEDULED_BY = SearchAttributeKey.for_keyword("TemporalScheduledById")
# Missed runs are made up for only this far back: a snapshot of yesterday, taken today, tells nothing.
CATCH_UP = timedelta(minutes=10)
# What is done once a day is worth doing late.
LATE_IS_BETTER = timedelta(hours=12)
# After its budget a job records what was left and ends; a worker that is busy meanwhile gets this long at least.
LEAST_GRACE_S = 15.0
# A quantile of so many runs is steady, and old ones are forgotten within a day or two.
RUNS = 20
# Far more than a window's timer is ever late.
OVERDUE = timedelta(seconds=60)
# Windows looked at in one run; the others are looked at when these have moved.
WINDOWS = 200
PATIENCE = timedelta(seconds=3)


@dataclass(frozen=True)
class Job:
    """What a schedule starts. `declaration` is the default that `platform.toml` may override by its id."""

    declaration: ScheduleDeclaration
    workflow: str
    purpose: str
    catch_up: timedelta = CATCH_UP
    overlap: ScheduleOverlapPolicy = ScheduleOverlapPolicy.SKIP
    elevation: ElevationRules = field(default_factory=ElevationRules)


JOBS = (
    Job(
        ScheduleDeclaration(
            id=JobId.METRICS_SNAPSHOT, every_s=3_600, budget_s=30, job_class=JobClass.DIAGNOSTIC, priority=3
        ),
        wire.OBSERVATORY,
        "measure the platform, detect anomalies, announce them",
    ),
    Job(
        ScheduleDeclaration(id=JobId.AUTONOMY_SCAN, every_s=300, budget_s=10, job_class=JobClass.MARKET, priority=3),
        wire.AUTONOMY_SCAN,
        "let the in-house agents look at the market",
    ),
    Job(
        ScheduleDeclaration(id=JobId.AWARD_DUE_BIDS, every_s=600, budget_s=20, job_class=JobClass.MARKET, priority=3),
        wire.AWARD_DUE_BIDS,
        "nudge windows that should have closed",
    ),
    Job(
        ScheduleDeclaration(
            id=JobId.STANDING_DECAY, cron="30 2 * * *", budget_s=60, job_class=JobClass.MARKET, priority=4
        ),
        wire.STANDING_DECAY,
        "let the standing of idle agents decay",
        LATE_IS_BETTER,
    ),
    Job(
        ScheduleDeclaration(
            id=JobId.CONSOLIDATION, cron="0 3 * * *", budget_s=120, job_class=JobClass.MEMORY, priority=5
        ),
        wire.CONSOLIDATION,
        "compress what was recorded, extract what lasts, remember it",
        LATE_IS_BETTER,
    ),
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

    schedule: Schedule
    facts: dict[str, str]
    state: JobState | None


def jobs(platform: Platform) -> tuple[Job, ...]:
    """The table with the platform's overrides."""
    overrides = {declared.id: declared for declared in platform.schedules}
    return tuple(
        replace(
            job,
            declaration=_merged(job.declaration, overrides.get(job.declaration.id)),
            elevation=platform.elevation,
        )
        for job in JOBS
    )


def _merged(default: ScheduleDeclaration, override: ScheduleDeclaration | None) -> ScheduleDeclaration:
    if override is None:
        return default
    kept = {name: getattr(default, name) for name in ("job_class", "priority") if getattr(override, name) is None}
    return override.model_copy(update=kept)


async def apply(client: Client, wanted: Iterable[Job], dry_run: bool = False) -> list[Change]:
    """Create, change and remove until Temporal holds what is declared; doing it twice is doing it once.

    What somebody paused stays paused, and what is elevated stays elevated.
    """
    changes: list[Change] = []
    declared = {job.declaration.id.value: job for job in wanted}
    for job_id, job in declared.items():
        found = await _find(client, job_id)
        before = found.state if found else None
        budget = rules.budget((), 0, None, job.declaration)
        if before is not None and before.declaration.budget_s == job.declaration.budget_s == "auto":
            least_s, most_s = job.declaration.least_budget_s, job.declaration.most_budget_s
            budget = before.budget.model_copy(update={"seconds": min(max(before.budget.seconds, least_s), most_s)})
        state = JobState(declaration=job.declaration, budget=budget)
        if before is not None:
            state = state.model_copy(update={"elevation": before.elevation})
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
        description = await _describe(client, entry.id) if MARK in await entry.memo() else None
        if description is None:
            continue
        found = await _read(client, description)
        if found.state is None:
            continue
        declared, info = found.state.declaration, description.info
        rows.append(
            ScheduledJob(
                id=entry.id,
                when=found.facts["when"],
                starts=found.facts["starts"],
                budget_s=found.state.budget.seconds,
                job_class=declared.job_class.value if declared.job_class else "",
                priority=int(found.facts["priority"]),
                elevated=rules.is_elevated(declared, found.state.elevation),
                paused=found.schedule.state.paused,
                next_run=info.next_action_times[0].isoformat() if info.next_action_times else None,
                last_run=info.recent_actions[-1].started_at.isoformat() if info.recent_actions else None,
                note=found.facts["note"],
            )
        )
    return sorted(rows)


async def _describe(client: Client, job_id: str) -> ScheduleDescription | None:
    try:
        return await client.get_schedule_handle(job_id).describe()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND or "amespace" in str(error):
            raise
        return None


async def _find(client: Client, job_id: str) -> _Found | None:
    description = await _describe(client, job_id)
    return await _read(client, description) if description else None


async def _read(client: Client, description: ScheduleDescription) -> _Found:
    action = description.schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    payload = (action.memo or {}).get("job")
    state = None
    if isinstance(payload, Payload):
        try:
            (state,) = await client.data_converter.decode([payload], [JobState])
        except ValidationError:
            # Written by another version, with words that this one does not know: as good as somebody else's.
            state = None
    args: list[Any] = list(action.args)
    request, memo = (_text(p) if isinstance(p, Payload) else "" for p in ((args or [None])[0], payload))
    return _Found(description.schedule, _facts(description.schedule, request, memo), state)


async def _settle(client: Client, job: Job, state: JobState, found: _Found | None, dry_run: bool) -> list[Change]:
    """Make one schedule what it ought to be; the change, or nothing where it is so already."""
    job_id = job.declaration.id.value
    if job.declaration.job_class is not JobClass.DIAGNOSTIC:
        state = state.model_copy(update={"elevation": Elevation()})
    request = JobRequest(job_id=job_id, budget_s=state.budget.seconds)
    schedule = _schedule(job, request, state)
    encoded = await client.data_converter.encode([request, state])
    if found is None:
        wanted = _facts(schedule, *map(_text, encoded))
        if not dry_run:
            await _write(client, job_id, schedule, new=True)
        shown = ("when", "starts", "cut off", "priority", "note")
        return [Change(job_id, "create", tuple(f"{name} {wanted[name]}" for name in shown))]
    wanted = _facts(_on(schedule, found.schedule.state), *map(_text, encoded))
    differing = [name for name, value in wanted.items() if found.facts[name] != value]
    if not differing:
        return []
    if not dry_run:
        await _write(client, job_id, schedule, new=False)
    # The input and the declaration repeat what the other facts say in words.
    told = [name for name in differing if name not in ("input", "declared")] or differing
    lines = (
        f"note now {wanted[name]}" if name == "note" else f"{name} {found.facts[name]} -> {wanted[name]}"
        for name in told
    )
    return [Change(job_id, "change", tuple(lines))]


async def _write(client: Client, job_id: str, schedule: Schedule, new: bool) -> None:
    def updated(now: ScheduleUpdateInput) -> ScheduleUpdate:
        return ScheduleUpdate(schedule=_on(schedule, now.description.schedule.state))

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


def _on(schedule: Schedule, now: ScheduleState) -> Schedule:
    """`schedule`, paused or not as it is now: the note of a pause is who paused it and why."""
    return replace(schedule, state=now if now.paused else replace(now, note=schedule.state.note))


def _text(payload: Payload) -> str:
    return payload.data.decode(errors="replace")


def _facts(schedule: Schedule, request: str, memo: str) -> dict[str, str]:
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
        "input": request,
        "declared": memo,
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
            job.workflow,
            request,
            id=declared.id.value,
            task_queue=wire.TASK_QUEUE,
            execution_timeout=timedelta(seconds=seconds + max(seconds, LEAST_GRACE_S)),
            static_summary=f"{declared.id.value}: {job.purpose}",
            priority=Priority(priority_key=rules.priority(declared.priority or 3, elevated)),
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
            state = JobState(
                declaration=declared,
                budget=rules.budget(durations_s, anomalies, snapshot.health, declared),
                elevation=snapshot.elevation,
            )
            changes += await _settle(self._client, replace(job, declaration=declared), state, found, False)
        if budgets_s:
            await self._tell_of_the_cut_off(budgets_s)
        return tuple(map(str, changes))

    def _situation(self) -> tuple[Snapshot | None, int]:
        with self._database.reading() as session:
            anomalies = session.exec(select(func.count()).where(col(AnomalyRow.closed_at).is_(None))).one()
        return latest_snapshot(self._database), anomalies

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
        done, left = list(report.done), list(report.left)
        with self._database.transaction() as session:
            emit(
                session,
                EventType.BUDGET_EXCEEDED,
                report.job_id,
                run_id,
                at,
                job=report.job_id,
                budget=budget_s,
                done=done,
                left=left,
            )

    @activity.defn
    def who_may_look(self) -> tuple[str, ...]:
        """The agents whose tier lets them take part in the market."""
        with self._database.reading() as session:
            return tuple(a.agent_id for a in roster(session) if tier(a) is not Tier.SUSPENDED)

    @activity.defn
    async def nudge_overdue(self, at: datetime) -> tuple[str, ...]:
        """Wake what stands in a window that should have closed, and say what holds it up.

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
            return f"{workflow_id} does not say where it stands{await _held_up(handle)}"
        due = f"{window.deadline:%Y-%m-%d %H:%M:%S} UTC"
        return f"{workflow_id} was nudged: {window.phase} was due to end at {due}{await _held_up(handle)}"


async def _held_up(handle: WorkflowHandle[Any, Any]) -> str:
    """What the server knows of why a workflow does not go on."""
    pending = (await handle.describe()).raw_description
    reasons = [
        f"{a.activity_type.name} is at attempt {a.attempt} ({a.last_failure.message or 'no answer'})"
        for a in pending.pending_activities
        if a.attempt > 1
    ]
    if (attempt := pending.pending_workflow_task.attempt) > 1:
        reasons.append(f"its workflow task is at attempt {attempt}")
    return f"; {', '.join(reasons)}" if reasons else ""
