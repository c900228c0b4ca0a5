"""Observatory: takes the snapshot that its schedule asks for, and answers agents who investigate."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.observatory import ObservatoryActivities
    from activities.schedules import ScheduleActivities

from schema import wire
from schema.messages.diagnosis import Diagnosis, DiagnosisRequest
from schema.messages.observatory import Snapshot
from schema.messages.schedules import JobReport, JobRequest
from workflows.budget import Step, within_budget
from workflows.calls import BUGS, call


@workflow.defn(name=wire.OBSERVATORY, failure_exception_types=BUGS)
class Observatory:
    """One snapshot of the platform: measure, detect, announce what is wrong, adapt the schedules to the health."""

    @workflow.run
    async def run(self, job: JobRequest) -> JobReport:
        return await within_budget(job, (Step("snapshot", self._take_snapshot), Step("schedules", self._follow)))

    async def _take_snapshot(self) -> str:
        snapshot: Snapshot = await call(
            ObservatoryActivities.take_snapshot, workflow.now(), summary="measure, detect, announce"
        )
        health = "unknown" if snapshot.health is None else f"{snapshot.health:.0f}"
        return f"health {health}: {snapshot.reason}"

    async def _follow(self) -> str | None:
        changes: tuple[str, ...] = await call(ScheduleActivities.follow_health, summary="schedules follow the health")
        return "; ".join(changes) or None


@workflow.defn(name=wire.DIAGNOSTICS, failure_exception_types=BUGS)
class Diagnostics:
    """The facts an agent may investigate with. A workflow of its own, so that reading costs a cycle no history."""

    @workflow.run
    async def run(self, request: DiagnosisRequest) -> Diagnosis:
        diagnosis: Diagnosis = await call(
            ObservatoryActivities.diagnose, request, workflow.now(), summary=f"facts about {request.subject}"
        )
        return diagnosis
