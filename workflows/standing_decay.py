"""Standing decay: nightly, restores agents after a suspension, and moves idle ones towards a newcomer's standing."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.market import MarketActivities

from schema import wire
from schema.messages.schedules import JobReport, JobRequest
from workflows.budget import Step, within_budget
from workflows.calls import BUGS, call


@workflow.defn(name=wire.STANDING_DECAY, failure_exception_types=BUGS)
class StandingDecay:
    """Restore, then decay; each step is idempotent."""

    @workflow.run
    async def run(self, job: JobRequest) -> JobReport:
        now = workflow.now()
        return await within_budget(
            job,
            (
                Step("restore", lambda: call(MarketActivities.restore_agents, now, summary="restore the suspended")),
                Step(
                    "decay", lambda: call(MarketActivities.decay_idle, now, summary="decay the standing of idle agents")
                ),
            ),
        )
