"""Observatory: takes the snapshot that the schedule asks for, and answers agents who investigate."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.observatory import ObservatoryActivities

from schema import wire
from schema.messages.observatory import Diagnosis, DiagnosisRequest, Snapshot
from workflows.calls import BUGS, call


@workflow.defn(name=wire.OBSERVATORY, failure_exception_types=BUGS)
class Observatory:
    """One look at the platform: measure, detect, and announce what is wrong, in one transaction."""

    @workflow.run
    async def run(self) -> Snapshot:
        snapshot: Snapshot = await call(
            ObservatoryActivities.take_snapshot, workflow.now(), summary="measure, detect, announce"
        )
        workflow.set_current_details(snapshot.reason)
        return snapshot


@workflow.defn(name=wire.DIAGNOSTICS, failure_exception_types=BUGS)
class Diagnostics:
    """The facts an agent may investigate with. A workflow of its own, so that reading costs a cycle no history."""

    @workflow.run
    async def run(self, request: DiagnosisRequest) -> Diagnosis:
        diagnosis: Diagnosis = await call(
            ObservatoryActivities.diagnose, request, workflow.now(), summary=f"facts about {request.subject}"
        )
        return diagnosis
