"""Deploys over running cycles: a real server, a real database, and workers of one version after another.

The changed versions of the workflow are in test_replay.py.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlmodel import select
from temporalio import workflow
from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.worker import Worker

from activities import ledger
from activities.agents import register_agent
from activities.database import Database
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from schema import wire
from schema.messages.cycle import CycleRequest, CycleResult, Ending, Phase
from schema.messages.ledger import EntryKind
from schema.messages.platform import Platform
from schema.messages.proposals import Choice
from schema.settings import Settings
from schema.tables.events import EventRow
from schema.tables.experiment import ExperimentRow, ParameterRow, TaskTypeLockRow
from schema.tables.market import AgentRow
from starter import preflight
from starter.client import NautilusClient
from starter.platform.database_store import DatabaseStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver
from starter.server import Server, dev_server
from starter.stack import Ports, connect, running
from tests import builders
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.record_histories import tasks
from tests.test_improvement_cycle import AGENTS, Stage, limited
from tests.test_operators_page import LINES, run
from tests.test_replay import Changed, EndsEarly, Patched
from worker import WORKFLOWS, activities, code_id, worker

DOES_NOT_REPLAY = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR
ROOT = Path(__file__).parent.parent
# So many ballots of one choice decide a vote.
ENOUGH = 3
# Tasks of an experiment that finish before a reset.
FIRST_TASKS = 4


@dataclass(frozen=True)
class Installation:
    """A platform whose workers come and go."""

    client: Client
    database: Database
    platform: Platform
    queue: str
    onset: datetime

    def release(self, build_id: str = "") -> Worker:
        """A worker with the code of this checkout."""
        return worker(self.client, self.database, self.platform, Settings(build_id=build_id), self.queue)

    def deploy(self, cycle: type, build_id: str = "next") -> Worker:
        """A worker with another version of the cycle."""
        return Worker(
            self.client,
            task_queue=self.queue,
            workflows=[cycle],
            activities=activities(self.database, self.client, self.platform, Settings()),
            activity_executor=ThreadPoolExecutor(2),
            build_id=build_id,
        )

    async def opens(self, name: str) -> Stage:
        """A cycle of this name."""
        request = CycleRequest(request_id=f"{self.queue}:{name}", anomaly=builders.anomaly(self.onset))
        cycle = f"cycle:{name}:{self.queue}"
        await self.client.start_workflow(wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue=self.queue)
        return Stage(NautilusClient(self.client, self.queue), self.database, self.platform, cycle)


def installed(client: Client, database: Database, queue: str) -> Installation:
    declared = builders.platform(cycle=builders.rules(experiment_window_s=600))
    now = datetime.now(UTC)
    declare_parameters(database, declared, now)
    for agent in AGENTS:
        register_agent(database, agent, f"op-{agent}", now)
    with database.transaction() as session:
        before = [builders.outcome(f"old-{n}", n % 3 > 0, now - timedelta(seconds=5)) for n in range(90)]
        record_outcomes(session, before, declared.observatory.interval_s)
    return Installation(client, database, declared, queue, now - timedelta(seconds=10))


@pytest.fixture
def installation(temporal: Client, database: Database, task_queue: str) -> Installation:
    return installed(temporal, database, task_queue)


class Vote:
    """The vote on the proposal of whoever was awarded: another from cycle to cycle."""

    def __init__(self, stage: Stage, proposal_id: str, voters: tuple[str, ...]) -> None:
        self._stage = stage
        self._proposal_id = proposal_id
        self.voters = voters

    async def cast(self, choice: Choice, *voters: str) -> None:
        await self._stage.votes(self._proposal_id, **dict.fromkeys(voters, choice))

    async def signal(self, choice: Choice, voter: str) -> None:
        """Cast a ballot that waits for a worker."""
        ballot = builders.ballot(voter, self._proposal_id, choice)
        await self._stage.client.signal(self._stage.cycle, wire.CAST_BALLOT, ballot)


async def to_the_vote(stage: Stage, *bidders: str, **changes: object) -> Vote:
    """The vote that is open once these have bid, the last that a cycle waits for, and the best has proposed."""
    await stage.bids(*bidders or AGENTS)
    await stage.reach(Phase.PROPOSING)
    award = (await stage.client.status(stage.cycle)).award
    assert award is not None
    proposal_id = await stage.proposes(award.agent_id, **changes)
    await stage.reach(Phase.VOTING)
    voters = tuple(agent for agent in AGENTS if agent != award.agent_id)[:ENOUGH]
    return Vote(stage, proposal_id, voters)


async def failed_task(stage: Stage) -> WorkflowTaskFailedCause.ValueType:
    """Why a worker could not go on with a cycle, once one could not."""
    handle = stage.client.temporal.get_workflow_handle(stage.cycle)
    async for event in handle.fetch_history_events(wait_new_event=True):
        failed = event.workflow_task_failed_event_attributes
        # One that had no processor is tried again.
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED and failed.failure.message != wire.STARVED:
            return failed.cause
    raise AssertionError(f"{stage.cycle} has ended, and no task of it failed")


async def patches(stage: Stage) -> int:
    """How many patched branches a cycle has taken."""
    history = await stage.client.temporal.get_workflow_handle(stage.cycle).fetch_history()
    return sum(event.marker_recorded_event_attributes.marker_name == "core_patch" for event in history.events)


async def status_of(stage: Stage) -> WorkflowExecutionStatus | None:
    return (await stage.client.temporal.get_workflow_handle(stage.cycle).describe()).status


def address(client: Client) -> str:
    return client.service_client.config.target_host


def ending(result: CycleResult) -> Ending:
    assert result.end is not None
    return result.end.ending


async def test_what_is_past_a_patched_branch_keeps_the_old_path_and_the_rest_takes_the_new(
    installation: Installation,
) -> None:
    async with installation.release():
        past, before = await installation.opens("past"), await installation.opens("before")
        vote = await to_the_vote(past)
        await vote.cast(Choice.REJECT, vote.voters[0])
        await before.bids("ada", "bob")
    async with installation.deploy(Patched):
        new = await installation.opens("new")
        await vote.cast(Choice.REJECT, *vote.voters[1:])
        later_votes = await to_the_vote(before, *AGENTS[2:]), await to_the_vote(new)
        for later_vote in later_votes:
            await later_vote.cast(Choice.REJECT, *later_vote.voters)
        stages = (past, before, new)
        results = [await stage.result() for stage in stages]

    assert [ending(result) for result in results] == [Ending.REJECTED] * 3
    assert [set(result.status.ballots) for result in results] == [set(each.voters) for each in (vote, *later_votes)]
    assert [await patches(stage) for stage in stages] == [0, 1, 1]


async def test_old_and_new_workers_side_by_side_lose_no_cycle(installation: Installation) -> None:
    async with installation.deploy(Patched):
        stage = await installation.opens("new")
        vote = await to_the_vote(stage)
    async with installation.release():
        await vote.signal(Choice.REJECT, vote.voters[0])
        cause = await failed_task(stage)
        # A process of its own would have a client of its own.
        other = replace(installation, client=await connect(Server(address(installation.client), "")))
        async with other.deploy(Patched):
            await vote.signal(Choice.REJECT, vote.voters[1])
            await vote.signal(Choice.REJECT, vote.voters[2])
            result = await stage.result()

    assert cause == DOES_NOT_REPLAY
    assert ending(result) is Ending.REJECTED
    assert set(result.status.ballots) == set(vote.voters)


@pytest.mark.parametrize("bad", [Changed, EndsEarly])
async def test_a_deploy_that_does_not_replay_hurts_no_cycle_and_after_a_rollback_each_goes_to_its_end(
    installation: Installation, bad: type
) -> None:
    async with installation.release():
        testing = await installation.opens("testing")
        vote_for = await to_the_vote(testing)
        await vote_for.cast(Choice.APPROVE, *vote_for.voters)
        await testing.reach(Phase.EXPERIMENT)
        voting, bidding = await installation.opens("voting"), await installation.opens("bidding")
        vote = await to_the_vote(voting)
        await vote.cast(Choice.REJECT, vote.voters[0])
        await bidding.bids("ada")
    stages = (testing, voting, bidding)
    async with installation.deploy(bad):
        # What is sent meanwhile: a ballot, a bid, and junk.
        await vote.signal(Choice.REJECT, vote.voters[1])
        await bidding.client.signal(bidding.cycle, wire.PLACE_BID, builders.bid("bob"))
        await testing.client.temporal.get_workflow_handle(testing.cycle).signal(wire.PLACE_BID, {"junk": True})
        causes = [await failed_task(stage) for stage in (testing, voting)]
        states = [await status_of(stage) for stage in stages]
    async with installation.release():
        await vote.cast(Choice.REJECT, vote.voters[2])
        late_vote = await to_the_vote(bidding, *AGENTS[2:])
        await late_vote.cast(Choice.REJECT, *late_vote.voters)
        async with tasks(testing, limited):
            results = [await stage.result() for stage in stages]

    assert causes == [DOES_NOT_REPLAY, DOES_NOT_REPLAY]
    assert states == [WorkflowExecutionStatus.RUNNING] * 3
    assert [ending(result) for result in results] == [Ending.PROMOTED, Ending.REJECTED, Ending.REJECTED]
    assert set(results[1].status.ballots) == set(vote.voters)
    assert set(results[2].status.bids) == set(AGENTS)
    assert ledger.verify(installation.database)[2] is None


async def test_what_a_rolled_back_deploy_has_taken_further_is_set_back_to_before_it(
    installation: Installation,
) -> None:
    async with installation.release("good"):
        stage = await installation.opens("taken-further")
        await stage.bids("ada", "bob")
    async with installation.deploy(Changed, "bad"):
        await to_the_vote(stage, *AGENTS[2:])
    async with installation.release("good"):
        stuck = [replay.workflow_id async for replay in replays(installation) if replay.failure]
        await set_back(stage, "bad")
        kept = set((await stage.client.status(stage.cycle)).bids)
        vote = await to_the_vote(stage, *AGENTS[2:])
        await vote.cast(Choice.REJECT, *vote.voters)
        result = await stage.result()

    assert stuck == [stage.cycle]
    assert kept == {"ada", "bob"}
    assert ending(result) is Ending.REJECTED
    kinds = [entry.kind for entry in ledger.entries(installation.database)]
    assert kinds == [EntryKind.PARAMETER_DECLARED, EntryKind.CYCLE_ENDED]


async def test_a_cycle_that_is_set_back_past_its_registered_experiment_goes_on_with_that_one(
    installation: Installation,
) -> None:
    stage = await in_test_by_a_bad_release(installation)
    with installation.database.reading() as session:
        [first] = session.exec(select(ExperimentRow)).all()
    async with installation.release("good"):
        await set_back(stage, "bad")
        vote = await to_the_vote(stage, *AGENTS[2:])
        await vote.cast(Choice.APPROVE, *vote.voters)
        async with tasks(stage, limited):
            result = await stage.result()
    with installation.database.reading() as session:
        experiments = {row.experiment_id: row for row in session.exec(select(ExperimentRow))}

    assert ending(result) is Ending.PROMOTED
    assert experiments.keys() == {first.experiment_id, f"{first.experiment_id}.watch"}
    again = experiments[first.experiment_id]
    assert (again.design, again.opened_at) == (first.design, first.opened_at)
    assert result.status.reading is not None
    counted = result.status.reading.control.tasks + result.status.reading.treatment.tasks
    assert counted >= FIRST_TASKS  # what was tested before counts
    kinds = [entry.kind for entry in ledger.entries(installation.database)]
    assert kinds == [
        EntryKind.PARAMETER_DECLARED,
        EntryKind.EXPERIMENT_DESIGNED,
        EntryKind.PARAMETER_PROMOTED,
        EntryKind.CYCLE_ENDED,
    ]
    assert ledger.verify(installation.database)[2] is None


async def test_another_change_is_not_promoted_by_the_experiment_that_was_registered_before_a_reset(
    installation: Installation,
) -> None:
    stage = await in_test_by_a_bad_release(installation)
    async with installation.release("good"):
        await set_back(stage, "bad")
        vote = await to_the_vote(stage, *AGENTS[2:], value=150.0)
        await vote.cast(Choice.APPROVE, *vote.voters)
        async with tasks(stage, limited):
            result = await stage.result()
    with installation.database.reading() as session:
        locks = session.exec(select(TaskTypeLockRow)).all()
        in_force = session.get_one(ParameterRow, builders.TIMEOUT).value
        [experiment] = session.exec(select(ExperimentRow)).all()
        told = session.exec(select(EventRow).where(EventRow.type == wire.EventType.PROPOSAL_ACCEPTED)).all()

    assert len({event.data["proposal_id"] for event in told}) == len(told) == 2
    assert ending(result) is Ending.INVALID
    assert "is registered for research_synthesis.timeout_s 90 -> 180, but 90 -> 150 came" in result.status.reason
    assert (locks, in_force, experiment.design["treatment"]) == ([], 90.0, 180.0)
    assert experiment.closed_at is not None
    kinds = [entry.kind for entry in ledger.entries(installation.database)]
    assert kinds == [EntryKind.PARAMETER_DECLARED, EntryKind.EXPERIMENT_DESIGNED, EntryKind.CYCLE_ENDED]
    assert ledger.verify(installation.database)[2] is None


async def in_test_by_a_bad_release(installation: Installation) -> Stage:
    """A cycle whose experiment a release has registered that is rolled back; some tasks of it have finished."""
    async with installation.release("good"):
        stage = await installation.opens("tested")
        await stage.bids("ada", "bob")
    async with installation.deploy(Changed, "bad"):
        vote = await to_the_vote(stage, *AGENTS[2:])
        await vote.cast(Choice.APPROVE, *vote.voters)
        await stage.reach(Phase.EXPERIMENT)
    store = DatabaseStore(installation.database, installation.platform)
    with ParameterResolver(store) as resolver, Recorder(store) as recorder:
        for number in range(FIRST_TASKS):
            task_id, now = f"first-{number}", datetime.now(UTC)
            recorder.assigned(resolver.resolve_task("research_synthesis", task_id, now).assignments)
            await asyncio.to_thread(recorder.record(builders.outcome(task_id, at=now)).result)
    return stage


async def set_back(stage: Stage, build: str) -> None:
    """Reset a cycle to where a build first had it, by the line of the operators' page."""
    [line] = [line for line in LINES if "workflow reset" in line]
    before = (await stage.client.temporal.get_workflow_handle(stage.cycle).describe()).run_id
    for placeholder, value in {"CYCLE": stage.cycle, "BUILD": build, "WHY": "rolled-back"}.items():
        line = line.replace(placeholder, value)
    code, printed = await run(stage.client.temporal, line)
    assert code == 0, printed
    await until_new_run(stage, before)


@pytest.mark.parametrize("cycle", WORKFLOWS)
def test_no_workflow_fails_by_a_deploy_that_does_not_replay(cycle: type) -> None:
    fails_by = workflow._Definition.must_from_class(cycle).failure_exception_types

    assert not issubclass(workflow.NondeterminismError, tuple(fails_by))


def replays(installation: Installation) -> AsyncIterator[preflight.Replay]:
    return preflight.replays(installation.client, WORKFLOWS, installation.queue)


async def until_new_run(stage: Stage, before: str | None) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await stage.client.temporal.get_workflow_handle(stage.cycle).describe()).run_id == before:
            await asyncio.sleep(0.05)


# ---- the preflight: before a worker takes work


@dataclass(frozen=True)
class Home:
    """An installation on a server of its own, and our command there."""

    installation: Installation
    server: Server
    path: Path

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        environment = os.environ | {
            "TEMPORAL_ADDRESS": self.server.address,
            "NAUTILUS_HOME": str(self.path),
            "NAUTILUS_DATABASE_URL": str(self.installation.database.engine.url),
            "NAUTILUS_PLATFORM": str(self.path / "platform.toml"),
            "NAUTILUS_BUILD_ID": "",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "starter", *arguments],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def says(self, *arguments: str) -> tuple[int, str, str]:
        """The exit code of a command, and what it writes to each stream."""
        process = self.start(*arguments)
        out, err = await asyncio.to_thread(process.communicate, timeout=PATIENCE_S)
        return process.returncode, out, err


@pytest.fixture
async def own(tmp_path: Path, database: Database) -> AsyncIterator[Home]:
    (tmp_path / "platform.toml").write_text("")
    async with dev_server(tmp_path, free_port(), free_port(), database_file=False) as server:
        client = await connect(server)
        yield Home(installed(client, database, wire.TASK_QUEUE), server, tmp_path)


async def events(stage: Stage) -> int:
    return len((await stage.client.temporal.get_workflow_handle(stage.cycle).fetch_history()).events)


async def test_a_worker_that_is_to_check_takes_no_work_where_a_running_cycle_does_not_replay(own: Home) -> None:
    async with own.installation.release():
        fine = await own.installation.opens("fine")
        await fine.bids("ada")
    async with own.installation.deploy(Changed):
        other = await own.installation.opens("of-other-code")
        await to_the_vote(other)
    before = await events(fine), await events(other)
    code, out, err = await own.says("worker", "--check-replay")
    shown = await own.says("cycle", "replay")

    [complaint] = err.splitlines()
    assert (code, out) == (1, "")
    assert f"expected every running workflow to replay with this code, but {other.cycle} does not: " in complaint
    assert "Nondeterminism error" in complaint
    assert "--no-check-replay" in complaint
    assert (await events(fine), await events(other)) == before
    assert shown[0] == 1
    assert other.cycle in shown[1]
    assert fine.cycle not in shown[1]
    assert "1 of 2 do not" in shown[2]


async def test_a_worker_starts_where_everything_replays_or_where_it_is_not_to_check(own: Home) -> None:
    async with own.installation.release():
        stage = await own.installation.opens("fine")
        await stage.bids("ada")
    shown = await own.says("cycle", "replay")
    checked = await first_lines(own.start("worker", "--check-replay"))
    async with own.installation.deploy(Changed):
        await to_the_vote(stage, *AGENTS[1:])
    unchecked = await first_lines(own.start("worker", "--no-check-replay"))

    assert shown[:2] == (0, "1 run, and all of them replay\n")
    assert "replay.checked" in checked
    assert f'"build_id": "{code_id()}"' in checked
    assert "replay.checked" not in unchecked


async def first_lines(process: "subprocess.Popen[str]") -> str:
    """What a worker logs until it has started; it is stopped then."""

    def read() -> str:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "worker.started" in line:
                break
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
        return "".join(lines)

    return await asyncio.wait_for(asyncio.to_thread(read), PATIENCE_S)


async def test_up_changes_nothing_where_a_running_cycle_does_not_replay(own: Home) -> None:
    async with own.installation.deploy(Changed):
        stage = await own.installation.opens("of-other-code")
        await to_the_vote(stage)
    code, out, err = await own.says("up", "--door-port", str(free_port()))

    [complaint] = err.splitlines()
    assert (code, out) == (1, "")
    assert f"expected every running workflow to replay with this code, but {stage.cycle} does not: " in complaint
    assert [schedule async for schedule in await own.installation.client.list_schedules()] == []
    with own.installation.database.reading() as session:
        registered = {agent.agent_id for agent in session.exec(select(AgentRow))}
    assert registered == set(AGENTS)  # and no built-in agent


async def test_up_starts_where_it_is_not_to_check(own: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with own.installation.deploy(Changed):
        await to_the_vote(await own.installation.opens("of-other-code"))
    monkeypatch.setenv("TEMPORAL_ADDRESS", own.server.address)
    settings = Settings(home=own.path / "home", platform=own.path / "platform.toml")
    async with running(settings, Ports(door=free_port()), check_replay=False) as stack:
        jobs = [schedule async for schedule in await stack.client.list_schedules()]

    assert jobs
