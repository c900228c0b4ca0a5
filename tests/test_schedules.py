"""The cron registry on a real server: what `apply` makes of it, how it follows the health, what its jobs do."""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import text
from sqlmodel import select
from temporalio import activity, workflow
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleDescription,
    ScheduleIntervalSpec,
    ScheduleSpec,
    ScheduleUpdate,
    WorkflowExecutionStatus,
    WorkflowFailureError,
)
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities import cron, ledger
from activities.agents import register_agent
from activities.cron import ScheduledJob, apply, jobs
from activities.database import Database
from activities.observatory import ObservatoryActivities
from activities.parameters import declare_parameters
from activities.reading import latest_snapshot
from activities.recording import record_outcomes
from activities.schedules import ScheduleActivities
from rules import elevation
from schema import wire
from schema.messages.cycle import CycleRequest, Phase
from schema.messages.ledger import EntryKind
from schema.messages.platform import ElevationRules, JobClass, JobId, MarketRules, Platform, ScheduleDeclaration
from schema.messages.schedules import JobReport, JobRequest, Scan
from schema.messages.tasks import TaskRequest, task_workflow_id
from schema.settings import Settings
from schema.tables.events import EventRow
from schema.tables.market import AgentRow, MetaTaskRow, TaskRow
from schema.wire import EventType
from starter.agents import run_agents
from starter.agents.roster import ROSTER
from starter.cli import main
from starter.client import NautilusClient
from starter.server import Server, dev_server, prepare
from starter.stack import agents_every_s
from tests import builders
from tests.conftest import prune_outbox, stop, unless_gone
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.test_agents import cut, limit_of
from tests.test_improvement_cycle import AGENTS, Stage
from worker import worker
from workflows.budget import Step, within_budget
from workflows.plugin import plugin

SNAPSHOT = JobId.METRICS_SNAPSHOT.value


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server of our own: schedules are the whole namespace's."""
    home = tmp_path_factory.mktemp("schedules")
    async with dev_server(home, free_port(), free_port(), database_file=False) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """A namespace without schedules."""
    client = await Client.connect(server.address, namespace=wire.NAMESPACE, plugins=[plugin()])
    await prepare(client)
    yield client
    async with asyncio.timeout(PATIENCE_S):
        # The list lags behind: of what was made and of what was deleted.
        while listed := [one async for one in await client.list_schedules()]:
            for one in listed:
                with unless_gone():
                    await client.get_schedule_handle(one.id).delete()
    async for execution in client.list_workflows("ExecutionStatus='Running'"):
        await stop(client, execution.id)


async def described(client: Client, job_id: str = SNAPSHOT) -> ScheduleDescription:
    return await client.get_schedule_handle(job_id).describe()


async def note(client: Client, job_id: str = SNAPSHOT) -> str:
    return (await described(client, job_id)).schedule.state.note or ""


async def every_s(client: Client, job_id: str = SNAPSHOT) -> float:
    (interval,) = (await described(client, job_id)).schedule.spec.intervals
    return interval.every.total_seconds()


def events(database: Database, *types: EventType) -> list[EventRow]:
    with database.reading() as session:
        rows = session.exec(select(EventRow).order_by(EventRow.sequence)).all()  # type: ignore[arg-type]
        return [row for row in rows if row.type in types]


# --- The table --------------------------------------------------------------------------------------------------------


def test_the_table_is_the_articles() -> None:
    declared = {job.declaration.id.value: job.declaration for job in jobs(Platform())}

    assert {name: (d.every_s or d.cron, d.budget_s) for name, d in declared.items()} == {
        "metrics_snapshot": (3_600, 30),
        "autonomy_scan": (300, 10),
        "award_due_bids": (600, 20),
        "standing_decay": ("30 2 * * *", 60),
        "consolidation": ("0 3 * * *", 120),
    }
    assert set(declared) == set(JobId)


def test_a_platform_overrides_what_it_declares_and_keeps_the_rest() -> None:
    mine = ScheduleDeclaration(id=JobId.CONSOLIDATION, cron="0 4 * * *", budget_s="auto", priority=2)
    found = {job.declaration.id: job for job in jobs(Platform(schedules=(mine,)))}

    changed, untouched = found[JobId.CONSOLIDATION].declaration, found[JobId.METRICS_SNAPSHOT].declaration
    assert (changed.cron, changed.budget_s, changed.priority) == ("0 4 * * *", "auto", 2)
    assert changed.job_class is JobClass.MEMORY
    assert untouched == cron.JOBS[0].declaration


async def test_a_second_apply_finds_nothing_to_do(client: Client) -> None:
    wanted = jobs(Platform())

    first = await apply(client, wanted)
    second = await apply(client, wanted)

    assert [(change.act, change.job_id) for change in first] == [("create", job.declaration.id) for job in wanted]
    assert second == []


async def test_a_dry_run_tells_the_difference_and_changes_nothing(client: Client) -> None:
    mine = ScheduleDeclaration(id=JobId.METRICS_SNAPSHOT, every_s=60, budget_s=20, priority=2)

    created = await apply(client, jobs(Platform()), dry_run=True)
    assert len(created) == 5
    assert [entry async for entry in await client.list_schedules()] == []

    await apply(client, jobs(Platform()))
    (change,) = await apply(client, jobs(Platform(schedules=(mine,))), dry_run=True)
    assert str(change) == (
        "change metrics_snapshot: when every 3600 s -> every 60 s; cut off after 60 s -> after 40 s; "
        "priority 3 -> 2; note now measure the platform; budget 20 s"
    )
    assert await every_s(client) == 3_600


async def test_what_a_person_changed_by_hand_is_shown_and_put_right(client: Client) -> None:
    await apply(client, jobs(Platform()))

    def slower(now: Any) -> ScheduleUpdate:
        changed: Schedule = now.description.schedule
        changed.spec = ScheduleSpec(intervals=[ScheduleIntervalSpec(timedelta(days=1))])
        return ScheduleUpdate(schedule=changed)

    for job_id in (SNAPSHOT, "consolidation"):
        await client.get_schedule_handle(job_id).update(slower)
    changes = await apply(client, jobs(Platform()))

    assert list(map(str, changes)) == [
        "change metrics_snapshot: when every 86400 s -> every 3600 s",
        "change consolidation: when every 86400 s -> 0 3 * * *",
    ]
    assert await apply(client, jobs(Platform())) == []


async def test_what_is_no_longer_declared_is_removed_and_what_is_not_ours_stays(client: Client) -> None:
    foreign = Schedule(
        action=ScheduleActionStartWorkflow("Theirs", id="theirs", task_queue="theirs"),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(timedelta(hours=1))]),
    )
    await client.create_schedule("theirs", foreign)
    wanted = jobs(Platform())
    await apply(client, wanted)
    async with asyncio.timeout(PATIENCE_S):  # the list lags behind
        while len([entry async for entry in await client.list_schedules()]) < 6:
            await asyncio.sleep(0.05)

    (change,) = await apply(client, [job for job in wanted if job.declaration.id is not JobId.CONSOLIDATION])

    assert str(change) == "remove consolidation"
    assert await apply(client, wanted[:-1]) == []
    await described(client, "theirs")


async def test_what_a_person_paused_stays_paused_for_the_persons_reason(client: Client) -> None:
    await apply(client, jobs(Platform()))
    await client.get_schedule_handle(SNAPSHOT).pause(note="olga: maintenance until Monday")
    mine = ScheduleDeclaration(id=JobId.METRICS_SNAPSHOT, every_s=60, budget_s=30)

    assert await apply(client, jobs(Platform())) == []
    await apply(client, jobs(Platform(schedules=(mine,))))

    state = (await described(client)).schedule.state
    assert (state.paused, state.note) == (True, "olga: maintenance until Monday")
    assert await every_s(client) == 60


async def listed(client: Client) -> dict[str, ScheduledJob]:
    """All five, once the list has caught up with what was applied."""
    async with asyncio.timeout(PATIENCE_S):
        while len(rows := await cron.listed(client)) < 5:
            await asyncio.sleep(0.05)
    return {row.id: row for row in rows}


async def test_the_list_says_what_runs_when_and_why(client: Client) -> None:
    await apply(client, jobs(Platform()))

    row = (await listed(client))["consolidation"]
    assert (row.when, row.budget_s, row.job_class, row.priority, row.elevated) == ("0 3 * * *", 120, "memory", 5, False)
    assert row.next_run is not None
    assert datetime.fromisoformat(row.next_run).hour == 3
    assert "budget 120 s" in row.note


# --- Health -----------------------------------------------------------------------------------------------------------

LOW_AND_HIGH = ElevationRules(below=40, above=60)


def take_snapshot(database: Database, platform: Platform, success: bool, at: datetime) -> None:
    """A snapshot of a platform of which every task of the last minutes succeeded, or failed."""
    with database.transaction() as session:
        outcomes = [
            builders.outcome(f"{at.isoformat()}-{n}", success, at - timedelta(seconds=5), quality=float(success))
            for n in range(2_000 if success else 50)
        ]
        record_outcomes(session, outcomes, 1)
    ObservatoryActivities(database, platform).take_snapshot(at)


async def health(client: Client, home: Path) -> str:
    """What `nautilus health` complains of."""
    config = client.service_client.config
    places = {
        "NAUTILUS_HOME": str(home),
        "TEMPORAL_ADDRESS": config.target_host,
        "TEMPORAL_NAMESPACE": client.namespace,
    }
    command = [sys.executable, "-m", "starter", "health"]
    said = await asyncio.to_thread(subprocess.run, command, env=os.environ | places, capture_output=True, text=True)
    assert said.returncode == 1
    return " ".join(said.stderr.split())


async def test_health_says_when_it_will_first_know(client: Client, database: Database, tmp_path: Path) -> None:
    nowhere = await health(client, tmp_path)
    await apply(client, jobs(Platform()))
    await listed(client)
    later = await health(client, tmp_path)
    await client.get_schedule_handle(SNAPSHOT).pause()
    paused = await health(client, tmp_path)

    assert nowhere.endswith(
        "none was taken yet; there is no schedule metrics_snapshot: `nautilus schedules apply` creates it"
    )
    assert re.search(r"none was taken yet; the next is taken at \d\d:01:00 UTC, in [1-9][0-9.]* (s|min)$", later)
    assert "the schedule metrics_snapshot is paused" in paused


async def test_schedules_follow_the_health_down_and_back_and_say_why(client: Client, database: Database) -> None:
    platform = builders.platform(elevation=LOW_AND_HIGH)
    activities = ScheduleActivities(client, database, platform)
    await apply(client, jobs(platform))
    now = datetime.now(UTC)

    assert await activities.follow_health() == ()  # no snapshot yet
    take_snapshot(database, platform, False, now)
    (change,) = await activities.follow_health()

    assert change.startswith("change metrics_snapshot: when every 3600 s -> every 900 s; priority 3 -> 1; note ")
    assert "elevated since" in await note(client)
    assert "is under 40" in await note(client)
    assert "every 900 s instead of 3600 s" in await note(client)
    assert await every_s(client) == 900
    action = (await described(client)).schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    assert action.priority.priority_key == 1
    assert await every_s(client, "autonomy_scan") == 300  # not a diagnostic job
    assert await activities.follow_health() == ()
    assert await apply(client, jobs(platform)) == []  # and a deploy does not end it
    assert next(row for row in await cron.listed(client) if row.id == SNAPSHOT).elevated

    take_snapshot(database, platform, True, now + timedelta(seconds=60))
    await activities.follow_health()

    assert await every_s(client) == 3_600
    assert (await note(client)).startswith("back to normal since")
    found = events(database, EventType.SCHEDULES_ELEVATED, EventType.SCHEDULES_RESTORED)
    assert [row.type for row in found] == ["schedules.elevated", "schedules.restored"]
    assert found[0].data["reason"].startswith("elevated since")
    assert found[0].data["health"] < 40 < 60 < found[1].data["health"]


def test_an_elevation_is_announced_once_and_lasts_from_snapshot_to_snapshot(either_database: Database) -> None:
    database = either_database
    low = builders.platform(elevation=LOW_AND_HIGH)
    now = datetime.now(UTC)
    take_snapshot(database, low, False, now)
    first = latest_snapshot(database)
    ObservatoryActivities(database, low).take_snapshot(now + timedelta(seconds=30))
    second = latest_snapshot(database)

    assert first is not None
    assert second is not None
    assert first.elevation.elevated
    assert second.elevation == first.elevation
    assert len(events(database, EventType.SCHEDULES_ELEVATED)) == 1


async def test_what_a_person_deleted_is_not_made_again_by_a_snapshot(client: Client, database: Database) -> None:
    platform = builders.platform(elevation=LOW_AND_HIGH)
    await apply(client, jobs(platform))
    await client.get_schedule_handle(SNAPSHOT).delete()
    take_snapshot(database, platform, False, datetime.now(UTC))

    assert await ScheduleActivities(client, database, platform).follow_health() == ()


async def test_a_worker_with_an_older_file_does_not_undo_what_a_newer_one_declares(
    client: Client, database: Database
) -> None:
    mine = ScheduleDeclaration(id=JobId.METRICS_SNAPSHOT, every_s=7_200, budget_s=30)
    older = builders.platform(elevation=LOW_AND_HIGH)
    await apply(client, jobs(older.model_copy(update={"schedules": (mine,)})))
    take_snapshot(database, older, False, datetime.now(UTC))

    await ScheduleActivities(client, database, older).follow_health()

    assert await every_s(client) == 1_800


# --- Budgets ----------------------------------------------------------------------------------------------------------


async def test_an_auto_budget_is_renewed_from_the_recent_runs(client: Client, database: Database) -> None:
    mine = ScheduleDeclaration(id=JobId.AWARD_DUE_BIDS, every_s=86_400, budget_s="auto", most_budget_s=90)
    platform = builders.platform(schedules=(mine,))
    await apply(client, jobs(platform))
    assert "budget 90 s (auto: no run yet" in await note(client, "award_due_bids")

    async with worker(client, database, platform, Settings()):
        await client.get_schedule_handle("award_due_bids").trigger()
        run_id = await ended(client, "award_due_bids", WorkflowExecutionStatus.COMPLETED)
        run = await anext(client.list_workflows(f"RunId='{run_id}'"))
        take_snapshot(database, platform, True, datetime.now(UTC))
        (change,) = await ScheduleActivities(client, database, platform).follow_health()

    assert run.close_time is not None
    took_s = (run.close_time - run.start_time).total_seconds()
    learned = elevation.budget([took_s], (), 100.0, mine)
    assert f"of 1 runs took up to {took_s:.1f} s" in change
    after_s = learned.seconds + max(learned.seconds, cron.LEAST_GRACE_S)
    assert f"cut off after 180 s -> after {after_s:g} s" in change
    assert f"budget {learned.seconds:g} s" in change
    assert await apply(client, jobs(platform)) == []  # a deploy keeps what was learned


async def ended(
    client: Client, name: str, status: WorkflowExecutionStatus, attribute: str = "TemporalScheduledById"
) -> str:
    """The run id of the job's run, or the workflow's, that ended so, once it is listed."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async for run in client.list_workflows(f"{attribute}='{name}'"):
                if run.status is status:
                    return run.run_id
            await asyncio.sleep(0.1)


async def run_job(client: Client, workflow: str, job_id: JobId, budget_s: float) -> JobReport:
    report: JobReport = await client.execute_workflow(
        workflow,
        JobRequest(job_id=job_id.value, budget_s=budget_s),
        id=f"{job_id.value}-by-hand",
        task_queue=wire.TASK_QUEUE,
        result_type=JobReport,
    )
    return report


async def test_a_job_stops_at_its_budget_and_what_was_left_is_an_event(client: Client, database: Database) -> None:
    @activity.defn(name=wire.SCAN_MARKET)
    async def lost_in_thought(agents: tuple[str, ...]) -> Scan:
        await asyncio.sleep(60)
        raise AssertionError("expected to be left behind")

    agents = Worker(client, task_queue=wire.AGENTS_QUEUE, activities=[lost_in_thought])
    async with worker(client, database, builders.platform(), Settings()), agents:
        report = await run_job(client, wire.AUTONOMY_SCAN, JobId.AUTONOMY_SCAN, 8.5)
        details = await client.get_workflow_handle("autonomy_scan-by-hand").query("__temporal_workflow_metadata")

    assert report.done == ("who may scan",)
    assert report.left == ("scan the market",)
    assert report.exceeded
    (event,) = events(database, EventType.BUDGET_EXCEEDED)
    assert event.subject == "autonomy_scan"
    assert event.data == {
        "job": "autonomy_scan",
        "budget": 8.5,
        "done": ["who may scan"],
        "left": ["scan the market"],
    }
    assert "budget of 8.5 s used up: left scan the market" in str(details)


async def test_a_job_within_its_budget_announces_nothing(client: Client, database: Database) -> None:
    async with worker(client, database, builders.platform(), Settings()):
        report = await run_job(client, wire.OBSERVATORY, JobId.METRICS_SNAPSHOT, 30)

    assert report.done == ("snapshot", "schedules")
    assert not report.exceeded
    assert report.notes[0].startswith("health ")
    assert events(database, EventType.BUDGET_EXCEEDED) == []


@workflow.defn(name="Broken")
class Broken:
    """A job with a bug in a step."""

    @workflow.run
    async def run(self, job: JobRequest) -> JobReport:
        return await within_budget(job, (Step("think", self._think),))

    async def _think(self) -> str:
        raise ApplicationError("out of ideas")


async def test_a_bug_in_a_step_is_a_failure_and_not_a_used_up_budget(client: Client, task_queue: str) -> None:
    runner = UnsandboxedWorkflowRunner()
    async with Worker(client, task_queue=task_queue, workflows=[Broken], workflow_runner=runner):
        with pytest.raises(WorkflowFailureError) as failed:
            await client.execute_workflow(
                Broken.run, JobRequest(job_id="broken", budget_s=30), id=task_queue, task_queue=task_queue
            )

    assert str(failed.value.cause) == "out of ideas"


async def test_a_job_that_was_cut_off_hard_is_told_of_by_the_next_snapshot_once(
    client: Client, database: Database
) -> None:
    platform = builders.platform()
    await apply(client, jobs(platform))
    handle = client.get_schedule_handle("award_due_bids")

    def at_once(now: Any) -> ScheduleUpdate:
        changed: Schedule = now.description.schedule
        assert isinstance(changed.action, ScheduleActionStartWorkflow)
        changed.action.execution_timeout = timedelta(seconds=1)
        return ScheduleUpdate(schedule=changed)

    await handle.update(at_once)
    await handle.trigger()  # no worker runs
    await ended(client, "award_due_bids", WorkflowExecutionStatus.TIMED_OUT)
    take_snapshot(database, platform, True, datetime.now(UTC))
    for _ in range(2):
        await ScheduleActivities(client, database, platform).follow_health()

    (event,) = events(database, EventType.BUDGET_EXCEEDED)
    assert (event.subject, event.data["left"]) == ("award_due_bids", ["cut off before it could say"])


# --- The market's jobs ------------------------------------------------------------------------------------------------


async def opened(client: Client, database: Database, platform: Platform, agents: dict[str, str]) -> Stage:
    """A cycle that waits for bids."""
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    for agent, operator in agents.items():
        register_agent(database, agent, operator, now)
    with database.transaction() as session:
        rng = random.Random(11)
        samples = [cut(rng.lognormvariate(0, 0.45), 1.0) for _ in range(90)]
        outcomes = [
            builders.outcome(f"old-{n}", s.failure is None, now - timedelta(seconds=5), duration_s=s.duration_s)
            for n, s in enumerate(samples)
        ]
        record_outcomes(session, outcomes, 1)
    anomaly = builders.anomaly(now - timedelta(seconds=10))
    request = CycleRequest(request_id="opened", anomaly=anomaly)
    await client.start_workflow(wire.IMPROVEMENT_CYCLE, request, id="cycle:here", task_queue=wire.TASK_QUEUE)
    stage = Stage(NautilusClient(client), database, platform, "cycle:here")
    await stage.reach(Phase.BIDDING)
    async with asyncio.timeout(PATIENCE_S):
        while not await stage.client.meta_tasks(Phase.BIDDING):
            await asyncio.sleep(0.05)
    return stage


async def test_the_scan_makes_the_agents_look_and_who_is_suspended_does_not(client: Client, database: Database) -> None:
    platform = builders.platform(cycle=builders.rules(bid_window_s=60), parameters=(limit_of(1.0).declaration,))
    async with worker(client, database, platform, Settings()):
        # Their own first look is at an empty market, and the next one in an hour.
        agents = asyncio.create_task(
            run_agents(NautilusClient(client), ROSTER, every_s=3_600, task_queue=wire.AGENTS_QUEUE)
        )
        await run_job(client, wire.AUTONOMY_SCAN, JobId.AUTONOMY_SCAN, 20)
        stage = await opened(client, database, platform, {a.agent_id: a.operator for a in ROSTER})
        with database.transaction() as session:
            row = session.get_one(AgentRow, "argo")
            row.suspended = True
            session.add(row)

        report = await run_job(client, wire.AUTONOMY_SCAN, JobId.AUTONOMY_SCAN, 20)

        bidders = set((await stage.client.status(stage.cycle)).bids)
        agents.cancel()
        await asyncio.wait([agents])
    assert bidders == {agent.agent_id for agent in ROSTER} - {"argo"}
    assert report.notes == ("5 agents visited 1 open cycles and 0 tasks, and sent 5 messages",)


async def test_a_scan_without_an_agents_process_says_so_and_does_not_fail(client: Client, database: Database) -> None:
    async with worker(client, database, builders.platform(), Settings()):
        report = await run_job(client, wire.AUTONOMY_SCAN, JobId.AUTONOMY_SCAN, 12)

    assert not report.exceeded
    assert report.notes == ("no agent scanned: expected the agents' process on nautilus-agents, but none answers",)


@pytest.mark.parametrize(
    ("window_s", "every"),
    [
        (15, 1.0),  # the demo's windows
        (60, 4.0),
        (600, 30.0),  # the default windows: the scan does the rest
    ],
)
def test_agents_look_by_themselves_as_often_as_the_shortest_window_needs(window_s: float, every: float) -> None:
    cycle = builders.rules(bid_window_s=window_s, proposal_window_s=900, voting_window_s=900)
    market = MarketRules(bid_window_s=600)

    assert agents_every_s(builders.platform(cycle=cycle, market=market)) == every


def test_agents_look_several_times_while_a_user_task_awaits_bids() -> None:
    cycle = builders.rules(bid_window_s=600, proposal_window_s=900, voting_window_s=900)

    assert agents_every_s(builders.platform(cycle=cycle)) <= MarketRules().bid_window_s / 5


@contextmanager
def held(database: Database) -> Iterator[None]:
    """Nothing is written, and everything can be read. On SQLite every transaction does that."""
    with database.transaction() as session:
        is_sqlite = database.engine.dialect.name == "sqlite"
        session.execute(text("SELECT 1" if is_sqlite else "LOCK TABLE award, meta_task, ledger IN EXCLUSIVE MODE"))
        yield


async def test_a_window_that_is_held_up_is_nudged_and_goes_on_where_it_was(client: Client, database: Database) -> None:
    platform = builders.platform(cycle=builders.rules(bid_window_s=12, proposal_window_s=60))
    activities = ScheduleActivities(client, database, platform)
    async with worker(client, database, platform, Settings()):
        stage = await opened(client, database, platform, {agent: f"op-{agent}" for agent in AGENTS})
        await stage.client.place_bid(stage.cycle, builders.bid("ada"))
        due = (await stage.client.status(stage.cycle)).deadline
        assert due is not None
        early = await activities.nudge_overdue(due + timedelta(seconds=59))
        # Somebody holds the database: the window closes in time, but the award cannot be recorded.
        with held(database):
            async with asyncio.timeout(PATIENCE_S):
                while datetime.now(UTC) < due + timedelta(seconds=0.2):
                    await asyncio.sleep(0.1)
            late = await activities.nudge_overdue(due + timedelta(seconds=61))
        await stage.proposes("ada")
        await stage.reach(Phase.VOTING)
        refused = (await stage.client.status(stage.cycle)).refused

    assert early == ()
    assert len(late) == 1
    assert late[0].startswith("cycle:here was nudged: bidding was due to end at ")
    assert refused == 0


async def test_what_is_terminated_is_ended_in_the_record_and_holds_nothing(client: Client, database: Database) -> None:
    platform = builders.platform(cycle=builders.rules(bid_window_s=60))
    async with worker(client, database, platform, Settings()):
        await opened(client, database, platform, {agent: f"op-{agent}" for agent in AGENTS})
        task = TaskRequest(task_id="t-1", task_type="monte_carlo", notify="boss")
        await NautilusClient(client).submit_task(task)
        for workflow_id in ("cycle:here", task_workflow_id("t-1")):
            async with asyncio.timeout(PATIENCE_S):
                while not is_open(database, workflow_id):
                    await asyncio.sleep(0.05)
        running = await ScheduleActivities(client, database, platform).end_abandoned(datetime.now(UTC))
        for workflow_id in ("cycle:here", task_workflow_id("t-1")):
            await client.get_workflow_handle(workflow_id).terminate("by mistake")
            await ended(client, workflow_id, WorkflowExecutionStatus.TERMINATED, "WorkflowId")
        prune_outbox(database)
        report = await run_job(client, wire.AWARD_DUE_BIDS, JobId.AWARD_DUE_BIDS, 20)

    assert running == ()
    assert report.notes[-1].count("was ended: its workflow ended without a word (terminated)") == 2
    assert not is_open(database, "cycle:here")
    assert not is_open(database, task_workflow_id("t-1"))
    *declared, last = [entry.kind for entry in ledger.entries(database)]
    assert declared == [EntryKind.PARAMETER_DECLARED] * len(platform.parameters)
    assert last is EntryKind.CYCLE_ENDED
    with database.reading() as session:
        (settled,) = session.exec(select(EventRow).where(EventRow.type == EventType.TASK_SETTLED.value)).all()
    assert settled.data["notify"] == "boss"  # who asked for the report is told that there will be none


def is_open(database: Database, workflow_id: str) -> bool:
    with database.reading() as session:
        cycles = session.exec(select(MetaTaskRow)).all()
        tasks = session.exec(select(TaskRow)).all()
    ended_at = {row.workflow_id: row.ended_at for row in cycles}
    ended_at |= {task_workflow_id(task.task_id): task.ended_at for task in tasks}
    return workflow_id in ended_at and ended_at[workflow_id] is None


async def test_a_window_whose_worker_is_away_is_told_of(client: Client, database: Database) -> None:
    platform = builders.platform(cycle=builders.rules(bid_window_s=60))
    async with worker(client, database, platform, Settings()):
        await opened(client, database, platform, {agent: f"op-{agent}" for agent in AGENTS})

    later = datetime.now(UTC) + timedelta(seconds=90)
    told = await ScheduleActivities(client, database, platform).nudge_overdue(later)

    assert len(told) == 1
    assert told[0].startswith("cycle:here does not say where it stands")


async def test_a_nudge_changes_nothing_in_a_window_that_is_open(client: Client, database: Database) -> None:
    platform = builders.platform(cycle=builders.rules(bid_window_s=60))
    async with worker(client, database, platform, Settings()):
        stage = await opened(client, database, platform, {agent: f"op-{agent}" for agent in AGENTS})
        before = await stage.client.status(stage.cycle)
        for _ in range(3):
            await client.get_workflow_handle(stage.cycle).signal(wire.NUDGE)
        after = await stage.client.status(stage.cycle)

    assert after == before


# --- The command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def nautilus(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Awaitable[tuple[object, str, str]]]:
    """Runs a command as `main` does, beside this test's loop: exit code, standard output, standard error."""

    def run(*words: str) -> tuple[object, str, str]:
        monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
        monkeypatch.setenv("NAUTILUS_PLATFORM", str(tmp_path / "platform.toml"))
        monkeypatch.setattr(sys, "argv", ["nautilus", "schedules", *words])
        with pytest.raises(SystemExit) as left:
            main()
        structlog.reset_defaults()  # it would go on writing to the standard error of this test
        return left.value.code, *capsys.readouterr()

    return lambda *words: asyncio.to_thread(run, *words)


async def test_an_operator_applies_and_lists_the_schedules(
    client: Client, nautilus: Callable[..., Awaitable[tuple[object, str, str]]], tmp_path: Path
) -> None:
    file = tmp_path / "platform.toml"
    file.write_text("")

    code, said, _ = await nautilus("apply", "--dry-run")
    assert (code, len(said.splitlines())) == (0, 5)
    assert said.startswith("would create metrics_snapshot: when every 3600 s; starts Observatory on nautilus; ")

    assert (await nautilus("apply"))[0] == 0
    assert (await nautilus("apply"))[1] == "nothing to do: 5 schedules are as declared\n"

    code, said, _ = await nautilus("list", "--json")
    assert code == 0
    assert {row["id"]: row["when"] for row in json.loads(said)}["consolidation"] == "0 3 * * *"
    assert "consolidation" in (await nautilus("list"))[1]

    file.write_text('[[schedules]]\nid = "consolidation"\ncron = "0 25 * * *"\nbudget_s = 120')
    code, said, complained = await nautilus("apply")
    assert (code, complained) == (
        1,
        "nautilus: schedule consolidation: expected one that Temporal takes, but: "
        "Invalid schedule spec: Hour is not in range [0-23]\n",
    )
