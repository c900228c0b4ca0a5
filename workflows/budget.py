"""Budget: a job of the cron registry takes its steps one by one, and stops gracefully when its time is used up.

The schedule cuts a job off hard a little later; a step that is cut short must be safe to take again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

from temporalio import workflow

from schema.messages.schedules import JobReport, JobRequest


class Step(NamedTuple):
    """One step of a job: what it is called in the report, and what takes it. It returns a note, or None."""

    name: str
    take: Callable[[], Awaitable[str | None]]


async def within_budget(job: JobRequest, steps: Sequence[Step]) -> JobReport:
    """Take the steps in order until the budget is used up; what is left is named in the report."""
    deadline = workflow.now() + timedelta(seconds=job.budget_s)
    done: list[str] = []
    notes: list[str] = []
    for step in steps:
        if (left_s := (deadline - workflow.now()).total_seconds()) <= 0:
            break
        try:
            note = await asyncio.wait_for(step.take(), left_s)
        except TimeoutError:
            break
        done.append(step.name)
        notes += [note] if note else []
    return JobReport(
        job_id=job.job_id, done=tuple(done), left=tuple(s.name for s in steps[len(done) :]), notes=tuple(notes)
    )
