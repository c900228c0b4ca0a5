"""Budget: a job of the cron registry takes its steps one by one, and stops gracefully when its time is used up.

What was left is recorded (BUDGET_EXCEEDED) and shown on the job's page. The schedule cuts a job off hard a little
later; a step that is cut short must be safe to take again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.schedules import ScheduleActivities

from schema.messages.schedules import JobReport, JobRequest
from workflows.calls import call

# A note in a report; a page of the web UI holds some of them.
LONGEST_NOTE = 2_000


class Step(NamedTuple):
    """One step of a job: its name in the report, and what takes it, which returns a note or None."""

    name: str
    take: Callable[[], Awaitable[str | None]]


async def within_budget(job: JobRequest, steps: Sequence[Step]) -> JobReport:
    """Take the steps in order until the budget is used up; what is left is named in the report."""
    report = JobReport(job_id=job.job_id, left=tuple(step.name for step in steps))
    budget = f"budget of {job.budget_s:g} s"

    async def work() -> None:
        nonlocal report
        for step in steps:
            _show(report, f"now: {step.name}; budget {job.budget_s:g} s")
            note = await step.take()
            report = report.model_copy(
                update={
                    "done": (*report.done, step.name),
                    "left": report.left[1:],
                    "notes": (*report.notes, note[:LONGEST_NOTE]) if note else report.notes,
                }
            )

    working = asyncio.create_task(work())
    # Nothing awaits a step that is left: its error is retrieved here, or asyncio would complain.
    working.add_done_callback(lambda task: None if task.cancelled() else task.exception())
    try:
        with suppress(TimeoutError):
            await workflow.wait_condition(
                working.done,
                timeout=timedelta(seconds=job.budget_s),
                timeout_summary=budget,
            )
    finally:
        finished = working.done()
        working.cancel()

    if finished:
        working.result()
        _show(report, "done")
        return report

    used_up = f"{budget} used up: left {', '.join(report.left)}"
    _show(report, used_up)
    await call(
        ScheduleActivities.record_exceeded,
        report,
        job.budget_s,
        workflow.info().run_id,
        workflow.now(),
        summary=used_up,
    )
    return report


def _show(report: JobReport, state: str) -> None:
    lines = [f"**{report.job_id}**: {state}", "", *(f"* done: {name}" for name in report.done)]
    workflow.set_current_details("\n".join([*lines, *(f"* {note}" for note in report.notes)]))
