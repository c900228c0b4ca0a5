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

from schema.display import markdown
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
    run = _Run(job, steps)
    working = asyncio.create_task(run.take_steps())
    working.add_done_callback(_retrieve_error)
    budget = f"budget of {job.budget_s:g} s"
    try:
        with suppress(TimeoutError):
            timeout = timedelta(seconds=job.budget_s)
            await workflow.wait_condition(working.done, timeout=timeout, timeout_summary=budget)
    finally:
        finished = working.done()
        working.cancel()

    if finished:
        working.result()
        run.show("done")
    else:
        used_up = f"{budget} used up: left {', '.join(run.report.left)}"
        run.show(used_up)
        run_id = workflow.info().run_id
        now = workflow.now()
        await call(ScheduleActivities.record_exceeded, run.report, job.budget_s, run_id, now, summary=used_up)
    return run.report


def _retrieve_error(task: asyncio.Task[None]) -> None:
    """Nothing awaits a step that is left: asyncio would complain of an error that nobody has looked at."""
    if not task.cancelled():
        task.exception()


class _Run:
    """The steps of a job, and the report on those that were taken."""

    def __init__(self, job: JobRequest, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._budget_s = job.budget_s
        self.report = JobReport(job_id=job.job_id, left=tuple(step.name for step in steps))

    async def take_steps(self) -> None:
        for step in self._steps:
            self.show(f"now: {step.name}; budget {self._budget_s:g} s")
            note = await step.take()
            notes = self.report.notes
            if note:
                notes = (*notes, note[:LONGEST_NOTE])
            progress = {"done": (*self.report.done, step.name), "left": self.report.left[1:], "notes": notes}
            self.report = self.report.model_copy(update=progress)

    def show(self, state: str) -> None:
        """Show how far the job is in the web UI."""
        lines = [f"**{self.report.job_id}**: {state}", ""]
        lines += [f"* done: {name}" for name in self.report.done]
        for note in self.report.notes:
            first, *others = [markdown(line, LONGEST_NOTE) for line in note.splitlines()]
            lines += [f"* {first}", *others]
        workflow.set_current_details("\n".join(lines))
