"""Cron: the registry of jobs. Temporal is the store; the table says what ought to be there, `apply` makes it so.

Functions, no activities.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
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
)
from temporalio.common import Priority
from temporalio.service import RPCError, RPCStatusCode

from rules import elevation as rules
from schema import wire
from schema.connection import is_missing
from schema.messages.platform import ElevationRules, JobClass, JobId, Platform, ScheduleDeclaration
from schema.messages.schedules import Elevation, JobRequest, JobState
from schema.pace import TRIAL_EVERY_S, Pace

# What tells our schedules from others in the namespace: only these are ever removed.
MARK = "nautilus"
# After its budget a job records what was left and ends; a worker that is busy meanwhile gets this long at least.
LEAST_GRACE_S = 15.0
# Missed runs are made up for only this far back: a snapshot of yesterday, taken today, tells nothing. What is done
# once a day is worth doing late.
SOON, TODAY = timedelta(minutes=10), timedelta(hours=12)
DIAGNOSTIC, MARKET, MEMORY = JobClass.DIAGNOSTIC, JobClass.MARKET, JobClass.MEMORY


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
JOBS = (
    # id, every (s) or cron (UTC), budget (s), class, priority, what it starts, overlap, catch-up, what for
    _job(JobId.METRICS_SNAPSHOT, 3_600, 30, DIAGNOSTIC, 3, wire.OBSERVATORY, SKIP, SOON, "measure the platform"),
    _job(JobId.AUTONOMY_SCAN, 300, 10, MARKET, 3, wire.AUTONOMY_SCAN, SKIP, SOON, "agents scan the market"),
    _job(JobId.AWARD_DUE_BIDS, 600, 20, MARKET, 3, wire.AWARD_DUE_BIDS, SKIP, SOON, "nudge windows that are overdue"),
    _job(
        JobId.STANDING_DECAY,
        "30 2 * * *",
        60,
        MARKET,
        4,
        wire.STANDING_DECAY,
        SKIP,
        TODAY,
        "decay idle agents' standing",
    ),
    _job(JobId.CONSOLIDATION, "0 3 * * *", 120, MEMORY, 5, wire.CONSOLIDATION, SKIP, TODAY, "learn from the day"),
)


class ScheduleChange(NamedTuple):
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


class Found(NamedTuple):
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


def _overridden(job: Job, declared: ScheduleDeclaration | None) -> Job:
    if declared is None:
        return job
    kept = {
        name: getattr(job.declaration, name) for name in ("job_class", "priority") if getattr(declared, name) is None
    }
    return replace(job, declaration=declared.model_copy(update=kept))


async def apply(client: Client, wanted: Iterable[Job], dry_run: bool = False) -> list[ScheduleChange]:
    """Create, change and remove until Temporal holds what is declared; idempotent.

    What somebody paused stays paused, what is elevated stays elevated, and what a budget has learned is kept.
    """
    changes: list[ScheduleChange] = []
    declared = {job.declaration.id.value: job for job in wanted}
    for job_id, job in declared.items():
        found = await find(client, job_id)
        before = found.state if found else None
        state = JobState(declaration=job.declaration, budget=rules.budget((), (), None, job.declaration))
        if before is not None:
            budget = before.budget if before.declaration == job.declaration else state.budget
            state = JobState(declaration=job.declaration, budget=budget, elevation=before.elevation)
        changes += await _settle(client, job, state, found, dry_run)
    async for listed in await client.list_schedules():
        ours = listed.id not in declared and MARK in await listed.memo()
        # The list lags behind; the server does not.
        if ours and await find(client, listed.id) is not None and (dry_run or await _removed(client, listed.id)):
            changes.append(ScheduleChange(listed.id, "remove"))
    return changes


async def _removed(client: Client, job_id: str) -> bool:
    """Remove a schedule; False where somebody else just has."""
    try:
        await client.get_schedule_handle(job_id).delete()
    except RPCError as error:
        if not is_missing(error):
            raise
        return False
    return True


async def listed(client: Client) -> list[ScheduledJob]:
    """Our schedules as the server has them."""
    rows = []
    async for entry in await client.list_schedules():
        found = await find(client, entry.id) if MARK in await entry.memo() else None
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


async def find(client: Client, job_id: str) -> Found | None:
    try:
        description = await client.get_schedule_handle(job_id).describe()
    except RPCError as error:
        if not is_missing(error):
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
    return Found(description, _facts(description.schedule, args[0] if args else None, memo), state)


async def _settle(
    client: Client, job: Job, state: JobState, found: Found | None, dry_run: bool
) -> list[ScheduleChange]:
    """Make one schedule what it ought to be; the change, or nothing where it is so already."""
    job_id = job.declaration.id.value
    if job.declaration.job_class is not DIAGNOSTIC:
        state = state.model_copy(update={"elevation": Elevation()})
    request = JobRequest(job_id=job_id, budget_s=state.budget.seconds)
    schedule = schedule_of(job, request, state)
    encoded = await client.data_converter.encode([request, state])
    if found is not None:
        schedule.state = _state(schedule, found.description.schedule.state)
    wanted = _facts(schedule, *encoded)
    if found is None:
        shown = ("when", "starts", "cut off", "priority", "note")
        change = ScheduleChange(job_id, "create", tuple(f"{name} {wanted[name]}" for name in shown))
    elif differing := [name for name, value in wanted.items() if found.facts[name] != value]:
        # The input and the declaration repeat what the other facts say in words.
        told = [name for name in differing if name not in ("input", "declared")] or differing
        lines = (
            f"note now {wanted[name]}" if name == "note" else f"{name} {found.facts[name]} -> {wanted[name]}"
            for name in told
        )
        change = ScheduleChange(job_id, "change", tuple(lines))
    else:
        return []
    if not dry_run:
        await write_schedule(client, job_id, schedule, new=found is None)
    return [change]


async def write_schedule(client: Client, job_id: str, schedule: Schedule, new: bool) -> None:
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


def schedule_of(job: Job, request: JobRequest, state: JobState) -> Schedule:
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
