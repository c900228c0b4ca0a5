"""Schedules: the cron registry. Temporal is the store; this table says what ought to be there, `apply` makes it so."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
)

from schema import wire
from schema.messages.platform import JobId, Platform, ScheduleDeclaration

# Missed runs are made up for only this far back: a snapshot of yesterday, taken today, tells nothing.
CATCH_UP = timedelta(minutes=10)
# A job stops itself at its budget; a little later it is cut off hard.
HARD_STOP = 2.0


@dataclass(frozen=True)
class Job:
    """What a schedule starts. `declaration` is the default that `platform.toml` may override by its id."""

    declaration: ScheduleDeclaration
    workflow: str
    purpose: str


JOBS = (
    Job(
        ScheduleDeclaration(id=JobId.METRICS_SNAPSHOT, every_s=3_600, budget_s=30),
        wire.OBSERVATORY,
        "measure the platform, detect anomalies, announce them",
    ),
)


def jobs(platform: Platform) -> tuple[Job, ...]:
    """The table with the platform's overrides."""
    overrides = {declared.id: declared for declared in platform.schedules}
    return tuple(Job(overrides.get(job.declaration.id, job.declaration), job.workflow, job.purpose) for job in JOBS)


async def apply(client: Client, wanted: Iterable[Job]) -> None:
    """Create or update every schedule; doing it twice is doing it once."""
    for job in wanted:
        schedule = _schedule(job)
        try:
            await client.create_schedule(job.declaration.id, schedule)
        except ScheduleAlreadyRunningError:
            handle = client.get_schedule_handle(job.declaration.id)
            await handle.update(lambda _, new=schedule: ScheduleUpdate(schedule=new))  # type: ignore[misc]


def _schedule(job: Job) -> Schedule:
    declared = job.declaration
    if declared.every_s is not None:
        # A little after the interval ends, so that what belongs to it has been recorded.
        offset = timedelta(seconds=min(60.0, declared.every_s / 5))
        spec = ScheduleSpec(intervals=[ScheduleIntervalSpec(timedelta(seconds=declared.every_s), offset)])
    else:
        assert declared.cron is not None
        spec = ScheduleSpec(cron_expressions=[declared.cron])
    return Schedule(
        action=ScheduleActionStartWorkflow(
            job.workflow,
            id=declared.id,
            task_queue=wire.TASK_QUEUE,
            execution_timeout=timedelta(seconds=HARD_STOP * declared.budget_s),
            static_summary=job.purpose,
        ),
        spec=spec,
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=CATCH_UP),
        state=ScheduleState(note=f"{job.purpose}; budget {declared.budget_s:g} s"),
    )
