"""Cron: the registry of jobs. Temporal is the store; the table says what ought to be there, `apply` makes it so.

Functions, no activities.
"""

from collections.abc import Collection, Iterable
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
from schema.codec import key_id_of
from schema.connection import is_missing
from schema.messages.platform import ElevationRules, JobClass, JobId, Platform, ScheduleDeclaration
from schema.messages.schedules import Elevation, JobRequest, JobState
from schema.pace import TRIAL_EVERY_S, Pace

# Marks our schedules among others in the namespace: only these are ever removed.
MARK = "nautilus"
# After its budget a job records what was left and ends; a worker that is busy meanwhile gets this long at least.
LEAST_GRACE_S = 15.0
# Temporal gives it to what has none.
USUAL_PRIORITY = 3
# Missed runs are made up for only this far back: a snapshot of yesterday, taken today, measures nothing. What is done
# once a day is worth doing late.
SOON, TODAY = timedelta(minutes=10), timedelta(hours=12)
DIAGNOSTIC, MARKET, MEMORY = JobClass.DIAGNOSTIC, JobClass.MARKET, JobClass.MEMORY


@dataclass(frozen=True)
class Job:
    """What a schedule starts, and when; `platform.toml` may override its declaration by the id."""

    declaration: ScheduleDeclaration
    starts: str
    catch_up: timedelta
    purpose: str
    overlap: ScheduleOverlapPolicy = ScheduleOverlapPolicy.SKIP
    elevation: ElevationRules = field(default_factory=ElevationRules)


def _job(
    id: JobId, when: int | str, budget_s: float | Literal["auto"], job_class: JobClass, priority: int, *fields: Any
) -> Job:
    timing = {"every_s": when} if isinstance(when, int) else {"cron": when}
    declared = {"id": id, "budget_s": budget_s, "job_class": job_class, "priority": priority}
    return Job(ScheduleDeclaration.model_validate(declared | timing), *fields)


JOBS = (
    # id, every (s) or cron (UTC), budget (s), class, priority, what it starts, catch-up, what for
    _job(JobId.METRICS_SNAPSHOT, 3_600, 30, DIAGNOSTIC, 3, wire.OBSERVATORY, SOON, "measure the platform"),
    _job(JobId.AUTONOMY_SCAN, 300, 10, MARKET, 3, wire.AUTONOMY_SCAN, SOON, "agents scan the market"),
    _job(JobId.AWARD_DUE_BIDS, 600, 20, MARKET, 3, wire.AWARD_DUE_BIDS, SOON, "nudge windows that are overdue"),
    _job(JobId.STANDING_DECAY, "30 2 * * *", 60, MARKET, 4, wire.STANDING_DECAY, TODAY, "decay idle agents' standing"),
    _job(JobId.CONSOLIDATION, "0 3 * * *", 120, MEMORY, 5, wire.CONSOLIDATION, TODAY, "learn from the day"),
)


class ScheduleChange(NamedTuple):
    """What `apply` does to one schedule: create, change or remove, and what differs (before -> after)."""

    job_id: str
    act: str
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        differences = f": {'; '.join(self.differences)}" if self.differences else ""
        return f"{self.act} {self.job_id}{differences}"


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


class StoredSchedule(NamedTuple):
    """A schedule as the server has it; without a state where somebody else made it."""

    description: ScheduleDescription
    facts: dict[str, str]
    state: JobState | None


def jobs(platform: Platform) -> tuple[Job, ...]:
    """The table at the platform's pace, with the platform's overrides."""
    overrides = {override.id: override for override in platform.schedules}
    paced = [replace(_paced(job, platform.pace), elevation=platform.elevation) for job in JOBS]
    return tuple(_overridden(job, overrides.get(job.declaration.id)) for job in paced)


def _paced(job: Job, pace: Pace) -> Job:
    if pace is not Pace.TRIAL:
        return job
    every_s = TRIAL_EVERY_S[job.declaration.id.value]
    return replace(job, declaration=job.declaration.model_copy(update={"every_s": every_s, "cron": None}))


def _overridden(job: Job, override: ScheduleDeclaration | None) -> Job:
    if override is None:
        return job
    omitted = [name for name in ("job_class", "priority") if getattr(override, name) is None]
    defaults = {name: getattr(job.declaration, name) for name in omitted}
    return replace(job, declaration=override.model_copy(update=defaults))


async def apply(client: Client, wanted: Iterable[Job], dry_run: bool = False) -> list[ScheduleChange]:
    """Create, change and remove until Temporal holds what is declared; idempotent.

    What somebody paused stays paused, what is elevated stays elevated, and what a budget has learned is kept.
    """
    changes: list[ScheduleChange] = []
    declared = {job.declaration.id.value: job for job in wanted}
    for job_id, job in declared.items():
        stored = await find(client, job_id)
        state = _wanted_state(job, stored.state if stored else None)
        changes += await settle(client, job, state, stored, dry_run=dry_run)
    for job_id in await _no_longer_declared(client, declared):
        removed = dry_run or await _remove(client, job_id)
        if removed:
            changes.append(ScheduleChange(job_id, "remove"))
    return changes


async def _no_longer_declared(client: Client, declared: Collection[str]) -> list[str]:
    """The ids of our schedules that nothing declares; each is looked up, as the list lags behind the server's state."""
    job_ids = []
    async for entry in await client.list_schedules():
        if entry.id in declared or MARK not in await entry.memo():
            continue
        if await find(client, entry.id) is not None:
            job_ids.append(entry.id)
    return job_ids


def _wanted_state(job: Job, current: JobState | None) -> JobState:
    """The declared state, with the elevation and, under the same declaration, the budget that it has now."""
    first_budget = rules.budget(durations_s=(), anomalies=(), health=None, declared=job.declaration)
    if current is None:
        return JobState(declaration=job.declaration, budget=first_budget)
    budget = current.budget if current.declaration == job.declaration else first_budget
    return JobState(declaration=job.declaration, budget=budget, elevation=current.elevation)


async def _remove(client: Client, job_id: str) -> bool:
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
        if MARK not in await entry.memo():
            continue
        stored = await find(client, entry.id)
        if stored is not None and stored.state is not None:
            rows.append(_scheduled_job(entry.id, stored, stored.state))
    return sorted(rows)


def _scheduled_job(job_id: str, stored: StoredSchedule, state: JobState) -> ScheduledJob:
    declaration = state.declaration
    info = stored.description.info
    next_run = info.next_action_times[0].isoformat() if info.next_action_times else None
    last_run = info.recent_actions[-1].started_at.isoformat() if info.recent_actions else None
    return ScheduledJob(
        id=job_id,
        when=stored.facts["when"],
        starts=stored.facts["starts"],
        budget_s=state.budget.seconds,
        job_class=declaration.job_class.value if declaration.job_class else "",
        priority=int(stored.facts["priority"]),
        elevated=rules.is_elevated(declaration, state.elevation),
        paused=stored.description.schedule.state.paused,
        next_run=next_run,
        last_run=last_run,
        note=stored.facts["note"],
    )


async def find(client: Client, job_id: str) -> StoredSchedule | None:
    """The job's schedule as Temporal holds it; None where there is none."""
    try:
        description = await client.get_schedule_handle(job_id).describe()
    except RPCError as error:
        if not is_missing(error):
            raise
        return None
    action = description.schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    request = next((arg for arg in action.args if isinstance(arg, Payload)), None)
    memo = (action.memo or {}).get("job")
    state = None
    if isinstance(memo, Payload):
        # Another version may have written values that this one rejects: the schedule counts as somebody else's.
        with suppress(ValidationError):
            (state,) = await client.data_converter.decode([memo], [JobState])
    return StoredSchedule(description, await _facts(client, description.schedule, request, memo), state)


async def settle(
    client: Client, job: Job, state: JobState, stored: StoredSchedule | None, *, dry_run: bool
) -> list[ScheduleChange]:
    """Make one schedule what it ought to be; the change, or nothing where it is so already."""
    job_id = job.declaration.id.value
    if job.declaration.job_class is not DIAGNOSTIC:
        state = state.model_copy(update={"elevation": Elevation()})
    request = JobRequest(job_id=job_id, budget_s=state.budget.seconds)
    schedule = schedule_of(job, request, state)
    encoded = await client.data_converter.encode([request, state])
    if stored is not None:
        schedule.state = _with_pause_kept(schedule, stored.description.schedule.state)
    change = _change(job_id, await _facts(client, schedule, *encoded), stored)
    if change is None:
        return []
    if not dry_run:
        await write_schedule(client, job_id, schedule, new=stored is None)
    return [change]


def _change(job_id: str, wanted: dict[str, str], stored: StoredSchedule | None) -> ScheduleChange | None:
    """The change that gives a schedule the wanted facts; None where it has them."""
    if stored is None:
        shown = ("when", "starts", "cut off", "priority", "note")
        return ScheduleChange(job_id, "create", tuple(f"{name} {wanted[name]}" for name in shown))
    differing = [name for name, fact in wanted.items() if stored.facts[name] != fact]
    if not differing:
        return None
    lines = {name: f"{name} {stored.facts[name]} -> {wanted[name]}" for name in differing}
    if "note" in lines:
        lines["note"] = f"note now {wanted['note']}"
    # The input and the declaration repeat the other facts in JSON: shown only where nothing else differs.
    readable = [line for name, line in lines.items() if name not in ("input", "declared")]
    return ScheduleChange(job_id, "change", tuple(readable or lines.values()))


async def write_schedule(client: Client, job_id: str, schedule: Schedule, new: bool) -> None:
    """Create or change a schedule; what somebody paused stays paused."""

    def updated(current: ScheduleUpdateInput) -> ScheduleUpdate:
        state = _with_pause_kept(schedule, current.description.schedule.state)
        return ScheduleUpdate(schedule=replace(schedule, state=state))

    try:
        if new:
            with suppress(ScheduleAlreadyRunningError):  # another `apply` runs at the same time
                await client.create_schedule(job_id, schedule, memo={MARK: "job"})
                return
        await client.get_schedule_handle(job_id).update(updated)
    except RPCError as error:
        if error.status is not RPCStatusCode.INVALID_ARGUMENT:
            raise
        raise ValueError(f"schedule {job_id}: expected one that Temporal takes, but: {error.message}") from None


def _with_pause_kept(schedule: Schedule, current: ScheduleState) -> ScheduleState:
    """The state to write: what is paused stays so, with the note that says who paused it and why."""
    return current if current.paused else replace(current, note=schedule.state.note)


async def _facts(client: Client, schedule: Schedule, request: Payload | None, memo: Any) -> dict[str, str]:
    """The texts by which a wanted schedule is compared with the stored one, and shown to people."""
    action = schedule.action
    spec = schedule.spec
    assert isinstance(action, ScheduleActionStartWorkflow)
    # The server returns a cron expression as a calendar, without the expression but with its comment. So `_timing`
    # repeats the expression as the comment, and the comment alone is compared.
    crons = [cron.split(" # ")[-1] for cron in spec.cron_expressions]
    calendars = [calendar.comment or "a calendar" for calendar in spec.calendars]
    intervals = [f"every {interval.every.total_seconds():g} s" for interval in spec.intervals]
    timeout_s = action.execution_timeout.total_seconds() if action.execution_timeout else 0
    return {
        "when": ", ".join([*intervals, *crons, *calendars]),
        "cut off": f"after {timeout_s:g} s",
        "priority": str(action.priority.priority_key),
        "starts": f"{action.workflow} on {action.task_queue}",
        "overlap": schedule.policy.overlap.name.lower(),
        "catch-up": str(schedule.policy.catchup_window),
        "note": schedule.state.note or "",
        # So that switching encryption on, or another key, reaches what is stored already.
        "encrypted with": (key_id_of(request) if request else None) or "nothing",
        "input": await _text_of(client, request),
        "declared": await _text_of(client, memo),
    }


async def _text_of(client: Client, payload: Any) -> str:
    """Somebody else's schedule may have a memo of another kind: it declares nothing that we can read."""
    if not isinstance(payload, Payload):
        return ""
    codec = client.data_converter.payload_codec
    (plain,) = await codec.decode([payload]) if codec else [payload]
    return plain.data.decode(errors="replace")


def schedule_of(job: Job, request: JobRequest, state: JobState) -> Schedule:
    """The schedule of a job in this state."""
    declared = job.declaration
    elevated = rules.is_elevated(declared, state.elevation)
    grace_s = max(request.budget_s, LEAST_GRACE_S)
    priority = rules.FIRST if elevated else (declared.priority or USUAL_PRIORITY)
    return Schedule(
        action=ScheduleActionStartWorkflow(
            job.starts,
            request,
            id=declared.id.value,
            task_queue=wire.TASK_QUEUE,
            execution_timeout=timedelta(seconds=request.budget_s + grace_s),
            static_summary=f"{declared.id.value}: {job.purpose}",
            priority=Priority(priority_key=priority),
            memo={"job": state},
        ),
        spec=_timing(job, elevated),
        policy=SchedulePolicy(overlap=job.overlap, catchup_window=job.catch_up),
        state=ScheduleState(note=_note(job, state, elevated)),
    )


def _note(job: Job, state: JobState, elevated: bool) -> str:
    """Why a job runs as often and for as long as it does."""
    notes = []
    if state.elevation.reason:
        notes.append(state.elevation.reason)
    notes.append(job.purpose)
    budget = f"budget {state.budget.seconds:g} s"
    if state.budget.reason:
        budget += f" ({state.budget.reason})"
    notes.append(budget)
    every_s = _interval_s(job, elevated)
    if every_s != job.declaration.every_s:
        notes.append(f"every {every_s} s instead of {job.declaration.every_s} s")
    return "; ".join(notes)


def _interval_s(job: Job, elevated: bool) -> int | None:
    """How often a job runs now; None for one with a cron expression."""
    declared_s = job.declaration.every_s
    return None if declared_s is None else rules.interval_s(declared_s, elevated, job.elevation)


def _timing(job: Job, elevated: bool) -> ScheduleSpec:
    """When a job runs."""
    every_s = _interval_s(job, elevated)
    if every_s is None:
        # The server keeps the comment of an expression, and not the expression itself: see `_facts`.
        cron = job.declaration.cron
        return ScheduleSpec(cron_expressions=[f"{cron} # {cron}"])
    # A little after the interval ends, so that its outcomes have been recorded.
    offset = timedelta(seconds=min(60.0, every_s / 5))
    return ScheduleSpec(intervals=[ScheduleIntervalSpec(timedelta(seconds=every_s), offset)])
