"""Schedules: adapts the cron registry to the health, nudges overdue windows, and cleans up: the activities.

A schedule carries its own declaration in its action's memo. So the Observatory can adapt it to the health score
without `platform.toml`: a worker that has read an older file does not undo what a newer one declares.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sqlmodel import col, select
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowQueryFailedError
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError

from activities.agents import roster
from activities.cron import ScheduleChange, find, jobs, settle
from activities.database import Database
from activities.events import emit
from activities.market import MarketActivities
from activities.reading import latest_snapshot
from activities.tasks import TaskActivities
from rules import elevation as rules
from rules.standing import Tier, tier
from schema import wire
from schema.connection import is_missing
from schema.messages.cycle import CycleEnd, Ending, Phase
from schema.messages.events import BudgetExceeded
from schema.messages.observatory import Anomaly, Snapshot
from schema.messages.platform import Platform
from schema.messages.schedules import Budget, JobReport, JobState, OpenWindow
from schema.messages.tasks import Settlement, TaskEnding, TaskRequest, task_workflow_id
from schema.tables.market import MetaTaskRow, TaskRow
from schema.tables.observatory import AnomalyRow

# Temporal's own: which schedule started a workflow.
SCHEDULED_BY = SearchAttributeKey.for_keyword("TemporalScheduledById")
# A quantile of so many runs is steady, and old ones are forgotten within a day or two.
RUNS = 20
# Far more than a window's timer is ever late.
OVERDUE = timedelta(seconds=60)
# Windows checked in one run; the others are checked when these have moved.
WINDOWS = 200
PATIENCE = timedelta(seconds=3)
# A workflow is checked until this long after it closed; if this job did not run for longer, a person must clean up.
REMEMBERED = timedelta(days=7)
# Open tasks whose workflows are looked for in one run, the oldest first: after a loss of Temporal's state nothing else
# would end them, and an agent would carry their load for ever.
OLDEST_TASKS = 100
CLOSED = (WorkflowExecutionStatus.TERMINATED, WorkflowExecutionStatus.FAILED, WorkflowExecutionStatus.TIMED_OUT)


class ScheduleActivities:
    """Adapts the schedules to the platform's health, and does the work of their jobs."""

    def __init__(self, client: Client, database: Database, platform: Platform) -> None:
        self._client = client
        self._database = database
        self._platform = platform

    @activity.defn
    async def follow_health(self) -> tuple[str, ...]:
        """Elevate schedules or restore them, and renew budgets, by the latest snapshot; returns the changes.

        It creates and removes nothing: what a person deleted stays away until the next `nautilus schedules apply`.
        """
        snapshot = await asyncio.to_thread(latest_snapshot, self._database)
        if snapshot is None:
            return ()
        anomalies = await asyncio.to_thread(self._open_anomalies)
        changes: list[ScheduleChange] = []
        budgets_s: dict[str, float] = {}
        for job in jobs(self._platform):
            job_id = job.declaration.id.value
            stored = await find(self._client, job_id)
            if stored is None or stored.state is None:
                continue  # a person deleted it, or it is somebody else's
            # The budget that a run which was cut off had, and not the one that it gets now.
            budgets_s[job_id] = stored.state.budget.seconds
            declaration = stored.state.declaration
            budget = await self._budget(job_id, stored.state, snapshot, anomalies)
            wanted = JobState(declaration=declaration, budget=budget, elevation=snapshot.elevation)
            job_as_declared_there = replace(job, declaration=declaration)
            changes += await settle(self._client, job_as_declared_there, wanted, stored, dry_run=False)
        if budgets_s:
            await self._report_the_cut_off(budgets_s)
        return tuple(map(str, changes))

    async def _budget(self, job_id: str, state: JobState, snapshot: Snapshot, anomalies: Sequence[Anomaly]) -> Budget:
        """The budget that the job should have now; the one it has, with its reason, where the seconds are the same."""
        declared = state.declaration
        durations_s = await self._recent_runs(job_id) if declared.budget_s == "auto" else ()
        budget = rules.budget(durations_s, anomalies, snapshot.health, declared)
        return state.budget if budget.seconds == state.budget.seconds else budget

    def _open_anomalies(self) -> list[Anomaly]:
        with self._database.reading() as session:
            rows = session.exec(select(AnomalyRow.body).where(col(AnomalyRow.closed_at).is_(None))).all()
        return [Anomaly.model_validate(body) for body in rows]

    async def _recent_runs(self, job_id: str) -> tuple[float, ...]:
        """Durations of the latest runs; one that was cut off counts with the time it had."""
        query = f"{SCHEDULED_BY.name}='{job_id}' AND ExecutionStatus IN ('Completed', 'TimedOut')"
        runs = [run async for run in self._client.list_workflows(query, limit=RUNS)]
        return tuple((run.close_time - run.start_time).total_seconds() for run in runs if run.close_time)

    async def _report_the_cut_off(self, budgets_s: Mapping[str, float]) -> None:
        """BUDGET_EXCEEDED for the latest runs that were cut off: they could not report it themselves."""
        ids = ", ".join(f"'{job_id}'" for job_id in budgets_s)
        query = f"{SCHEDULED_BY.name} IN ({ids}) AND ExecutionStatus='TimedOut'"
        async for run in self._client.list_workflows(query, limit=RUNS):
            job_id = run.typed_search_attributes[SCHEDULED_BY]
            report = JobReport(job_id=job_id, left=("cut off before it could say",))
            at = run.close_time or run.start_time
            await asyncio.to_thread(self.record_exceeded, report, budgets_s[job_id], run.run_id, at)

    @activity.defn
    def record_exceeded(self, report: JobReport, budget_s: float, run_id: str, at: datetime) -> None:
        """BUDGET_EXCEEDED: what a job did within its budget, and what was left; once for each run."""
        exceeded = BudgetExceeded(job=report.job_id, budget=budget_s, done=report.done, left=report.left)
        with self._database.transaction() as session:
            emit(session, exceeded, report.job_id, run_id, at)

    @activity.defn
    def who_may_scan(self) -> tuple[str, ...]:
        """The agents whose tier lets them take part in the market."""
        with self._database.reading() as session:
            return tuple(agent.agent_id for agent in roster(session) if tier(agent) is not Tier.SUSPENDED)

    @activity.defn
    async def nudge_overdue(self, at: datetime) -> tuple[str, ...]:
        """Nudge the workflows in a window that should have closed; one line about each, for a person.

        A window's own timer decides, and the server keeps it while no worker runs: nothing is awarded from here. What
        can be overdue is a workflow whose next step is being retried (the database is away) or whose task fails (a
        deploy that does not replay). A nudge makes it check its deadline again.
        """
        phases = ", ".join(f"'{phase.value}'" for phase in (Phase.BIDDING, Phase.PROPOSING, Phase.VOTING))
        # What was opened just now cannot be overdue, and must not crowd out what is.
        old = f"StartTime <= '{(at - OVERDUE).isoformat()}'"
        query = f"ExecutionStatus='Running' AND {wire.PHASE} IN ({phases}) AND {old}"
        waiting = [e.id async for e in self._client.list_workflows(query, limit=WINDOWS)]
        lines = await asyncio.gather(*(self._nudge(workflow_id, at) for workflow_id in waiting))
        return tuple(line for line in lines if line is not None)

    async def _nudge(self, workflow_id: str, at: datetime) -> str | None:
        handle = self._client.get_workflow_handle(workflow_id)
        try:
            window = await handle.query(wire.STATUS, result_type=OpenWindow, rpc_timeout=PATIENCE)
            if window.paused_at is not None or window.deadline is None or at < window.deadline + OVERDUE:
                return None
            await handle.signal(wire.NUDGE)
        except (RPCError, WorkflowQueryFailedError) as error:
            if is_missing(error):
                return None  # it has ended meanwhile
            return f"{workflow_id} does not say where it stands"
        return f"{workflow_id} was nudged: {window.phase} was due to end at {window.deadline:%Y-%m-%d %H:%M:%S} UTC"

    @activity.defn
    async def end_abandoned(self, at: datetime) -> tuple[str, ...]:
        """Record the endings of workflows that were terminated or failed, and recorded none; returns a line about each.

        Otherwise a cycle's experiment would expose tasks for ever, and a task would stay its agent's load.
        """
        return (*await self._end_abandoned_cycles(at), *await self._end_abandoned_tasks(at))

    async def _end_abandoned_cycles(self, at: datetime) -> list[str]:
        lines = []
        for cycle in await asyncio.to_thread(self._open_cycles):
            reason = await self._why_abandoned(cycle.workflow_id, cycle.run_id)
            if reason is not None:
                await asyncio.to_thread(self._end_cycle, cycle, reason, at)
                lines.append(f"{cycle.workflow_id} was ended: {reason}")
        return lines

    async def _end_abandoned_tasks(self, at: datetime) -> list[str]:
        """End tasks whose workflow closed without settling them, as where a person terminated it, or is gone."""
        lines = []
        closed = "ExecutionStatus IN ('Terminated', 'Failed', 'TimedOut')"
        recent = f"CloseTime >= '{(at - REMEMBERED).isoformat()}'"
        query = f"{closed} AND WorkflowType='{wire.MARKET_TASK}' AND {recent}"
        task_ids = [e.id.removeprefix(task_workflow_id("")) async for e in self._client.list_workflows(query)]
        oldest = await asyncio.to_thread(self._oldest_open_tasks)
        for task in await asyncio.to_thread(self._open_tasks, list(dict.fromkeys(task_ids + oldest))):
            workflow_id = task_workflow_id(task.task_id)
            reason = await self._why_abandoned(workflow_id, task.run_id)
            if reason is not None:
                await asyncio.to_thread(self._end_task, task, reason, at)
                lines.append(f"{workflow_id} was ended: {reason}")
        return lines

    async def _why_abandoned(self, workflow_id: str, first_run_id: str) -> str | None:
        """Why no workflow is left that could end what this run began; None where one is."""
        try:
            description = await self._client.get_workflow_handle(workflow_id).describe()
        except RPCError as error:
            if not is_missing(error):
                raise
            return "its workflow is gone"
        if description.status in CLOSED:
            return f"its workflow ended without a word ({description.status.name.lower()})"
        # The id may have been started again: another attempt is under way.
        current_first_run_id = description.raw_description.workflow_execution_info.first_run_id
        if current_first_run_id and current_first_run_id != first_run_id:
            return "its workflow ended without a word, and another has begun"
        return None

    def _open_cycles(self) -> list[MetaTaskRow]:
        with self._database.reading() as session:
            return list(session.exec(select(MetaTaskRow).where(col(MetaTaskRow.ended_at).is_(None))))

    def _oldest_open_tasks(self) -> list[str]:
        still_open = select(TaskRow.task_id).where(col(TaskRow.ended_at).is_(None))
        with self._database.reading() as session:
            return list(session.exec(still_open.order_by(col(TaskRow.opened_at)).limit(OLDEST_TASKS)))

    def _open_tasks(self, task_ids: list[str]) -> list[TaskRow]:
        """Those of these tasks that are recorded as open: at most WINDOWS of them, the others at the next run."""
        rows: list[TaskRow] = []
        with self._database.reading() as session:
            for start in range(0, len(task_ids), 1_000):
                chunk = col(TaskRow.task_id).in_(task_ids[start : start + 1_000])
                rows += session.exec(select(TaskRow).where(chunk, col(TaskRow.ended_at).is_(None)))
        return rows[:WINDOWS]

    def _end_cycle(self, row: MetaTaskRow, reason: str, at: datetime) -> None:
        end = CycleEnd(cycle_id=row.cycle_id, subject=row.subject, ending=Ending.ABORTED, reason=reason, at=at)
        MarketActivities(self._database, self._platform).end_cycle(end)

    def _end_task(self, row: TaskRow, reason: str, at: datetime) -> None:
        request = TaskRequest(task_id=row.task_id, task_type=row.task_type, requester=row.requester, notify=row.notify)
        settlement = Settlement(
            request=request, ending=TaskEnding.ABORTED, reason=reason, started_at=row.opened_at, at=at
        )
        TaskActivities(self._database, self._platform).settle_task(settlement)
