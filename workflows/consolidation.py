"""Consolidation (autoDream): the nightly job. It learns, reports, and drops what was learned from and is not kept."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.consolidation import ConsolidationActivities
    from activities.observatory import ObservatoryActivities
    from activities.report import ReportActivities

from schema import wire
from schema.messages.memory import Lesson
from schema.messages.schedules import JobReport, JobRequest
from workflows.budget import Step, within_budget
from workflows.calls import BUGS, call

# Six events each: a run stays far from the size that Temporal warns of. What is left is dropped in the next run.
MOST_DELETIONS = 500


@workflow.defn(name=wire.CONSOLIDATION, failure_exception_types=BUGS)
class Consolidation:
    """Learn first: nothing is dropped before it was read. Dropping comes last, because only it can take hours."""

    @workflow.run
    async def run(self, job: JobRequest) -> JobReport:
        return await within_budget(
            job, [Step("learn", self._learn), Step("report", self._report), Step("expire", self._expire)]
        )

    async def _learn(self) -> str:
        lesson: Lesson = await call(
            ConsolidationActivities.consolidate, workflow.now(), summary="extract patterns, merge them into memory"
        )
        return lesson.text

    async def _report(self) -> str:
        text: str = await call(ReportActivities.publish, workflow.now(), summary="report what the day has changed")
        return text

    async def _expire(self) -> str:
        at = workflow.now()
        dropped = 0
        for _ in range(MOST_DELETIONS):
            count: int = await call(ObservatoryActivities.expire, at, summary="drop raw outcomes that are not kept")
            dropped += count
            if not count:
                break
        return f"{dropped} raw outcomes dropped"
