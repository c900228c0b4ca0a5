"""Autonomy: the two jobs that keep the market moving. Neither decides anything: agents bid, and windows award."""

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, TimeoutError, TimeoutType

with workflow.unsafe.imports_passed_through():
    from activities.schedules import ScheduleActivities

from schema import wire
from schema.messages.schedules import JobReport, JobRequest, Scan
from workflows.budget import Step, within_budget
from workflows.calls import BUGS, PATIENT, SHORT, call


@workflow.defn(name=wire.AUTONOMY_SCAN, failure_exception_types=BUGS)
class AutonomyScan:
    """Ask the built-in agents to scan the market now. They run in a process of their own, with its own queue."""

    @workflow.init
    def __init__(self, job: JobRequest) -> None:
        self._job = job
        self._agents: tuple[str, ...] = ()

    @workflow.run
    async def run(self, job: JobRequest) -> JobReport:
        return await within_budget(job, (Step("who may scan", self._ask), Step("scan the market", self._scan)))

    async def _ask(self) -> None:
        self._agents = await call(ScheduleActivities.who_may_scan, summary="agents that are not suspended")

    async def _scan(self) -> str:
        """Let the agents' own process scan the market; says what they did, or that the process is not running."""
        try:
            scan: Scan = await workflow.execute_activity(
                wire.SCAN_MARKET,
                self._agents,
                result_type=Scan,
                task_queue=wire.AGENTS_QUEUE,
                # A process that does not start it soon is not running.
                schedule_to_start_timeout=timedelta(seconds=self._job.budget_s / 3),
                start_to_close_timeout=SHORT,
                retry_policy=PATIENT,
                summary=f"{len(self._agents)} agents scan",
            )
        except ActivityError as error:
            if isinstance(error.cause, TimeoutError) and error.cause.type is TimeoutType.SCHEDULE_TO_START:
                return f"no agent scanned: expected the agents' process on {wire.AGENTS_QUEUE}, but none answers"
            raise
        scanned = f"{scan.agents} agents visited {scan.cycles} open cycles and {scan.tasks} tasks"
        return f"{scanned}, and sent {scan.messages} messages"


@workflow.defn(name=wire.AWARD_DUE_BIDS, failure_exception_types=BUGS)
class AwardDueBids:
    """Nudge the windows that should have closed, and end what was terminated; see `ScheduleActivities`."""

    @workflow.run
    async def run(self, job: JobRequest) -> JobReport:
        steps = Step("nudge what is overdue", self._nudge), Step("end what was terminated", self._end)
        return await within_budget(job, steps)

    async def _nudge(self) -> str | None:
        nudged: tuple[str, ...] = await call(
            ScheduleActivities.nudge_overdue, workflow.now(), summary="windows that should have closed"
        )
        return "; ".join(nudged) or None

    async def _end(self) -> str | None:
        ended: tuple[str, ...] = await call(
            ScheduleActivities.end_abandoned, workflow.now(), summary="workflows that could not write their ending"
        )
        return "; ".join(ended) or None
