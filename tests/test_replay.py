"""Recorded histories replay: a cycle that runs in production goes on after every change of the workflow."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import pytest
    from temporalio.client import Client, WorkflowHistory
    from temporalio.worker import Replayer, Worker

    from activities.database import Database
    from schema import wire
    from schema.messages.cycle import CycleRequest, CycleResult, CycleState, Ending
    from schema.messages.platform import Platform
    from schema.messages.proposals import Choice
    from schema.settings import Settings
    from tests import builders
    from tests.record_histories import HISTORIES, RECORDINGS, mid_vote, open_cycle, platform
    from tests.test_improvement_cycle import Stage
    from worker import activities, worker
    from workflows.plugin import plugin

from workflows.improvement_cycle import ImprovementCycle

HINT = """{name} does not replay: the workflow does something else now than when this cycle ran.
A running cycle would be stuck in the same way. Guard the change by workflow.patched("...") and keep the old path; or,
where no such cycle can be running (before a release), record anew: python -m tests.record_histories"""
REPLAY_TIMEOUT_S = 30.0
# What the cycle fails by: the versions below must treat a change alike.
FAILS_BY = workflow._Definition.must_from_class(ImprovementCycle).failure_exception_types


@workflow.defn(name=wire.IMPROVEMENT_CYCLE, failure_exception_types=FAILS_BY)
class Changed(ImprovementCycle):
    """The cycle of a next version, which waits a moment before every vote; nothing guards the running ones."""

    @workflow.init
    def __init__(self, request: CycleRequest, carried: CycleState | None = None) -> None:
        super().__init__(request, carried)

    @workflow.run
    async def run(self, request: CycleRequest, carried: CycleState | None = None) -> CycleResult:
        return await super().run(request, carried)

    async def _wait_for_votes(self) -> None:
        await workflow.sleep(0.01)
        await super()._wait_for_votes()


@workflow.defn(name=wire.IMPROVEMENT_CYCLE, failure_exception_types=FAILS_BY)
class Patched(ImprovementCycle):
    """The same, guarded: a cycle that is past this point keeps the old path."""

    @workflow.init
    def __init__(self, request: CycleRequest, carried: CycleState | None = None) -> None:
        super().__init__(request, carried)

    @workflow.run
    async def run(self, request: CycleRequest, carried: CycleState | None = None) -> CycleResult:
        return await super().run(request, carried)

    async def _wait_for_votes(self) -> None:
        if workflow.patched("a-moment-before-the-vote"):
            await workflow.sleep(0.01)
        await super()._wait_for_votes()


def recorded() -> list[str]:
    return sorted(path.stem for path in HISTORIES.glob("*.json"))


async def replay(name: str, cycle: type = ImprovementCycle) -> Exception | None:
    history = WorkflowHistory.from_json(f"cycle:{name}", (HISTORIES / f"{name}.json").read_text())
    replayer = Replayer(workflows=[cycle], plugins=[plugin()])
    try:
        async with asyncio.timeout(REPLAY_TIMEOUT_S):
            return (await replayer.replay_workflow(history, raise_on_replay_failure=False)).replay_failure
    except TimeoutError:
        # Where a change would fail the running workflow instead of its task, the replayer waits for ever.
        return RuntimeError(f"no end of the replay in {REPLAY_TIMEOUT_S:g} s")


@pytest.mark.parametrize("name", recorded())
async def test_a_recorded_history_replays(name: str) -> None:
    failure = await replay(name)

    assert failure is None, f"{HINT.format(name=name)}\n{failure}"


def test_every_ending_is_recorded() -> None:
    stories = {name.partition(".")[0] for name in recorded()}

    assert stories == set(RECORDINGS), "record anew: python -m tests.record_histories"
    assert {Ending(recording.ending) for recording in RECORDINGS.values() if recording.ending} == set(Ending)


async def test_a_change_without_a_guard_does_not_replay() -> None:
    assert await replay("mid_vote", Changed) is not None
    assert await replay("mid_vote", Patched) is None


def next_version(cycle: type, client: Client, database: Database, declared: Platform, queue: str) -> Worker:
    return Worker(
        client,
        task_queue=queue,
        workflows=[cycle],
        activities=activities(database, client, declared, Settings()),
        activity_executor=ThreadPoolExecutor(2),
    )


async def vote_to_the_end(stage: Stage) -> CycleResult:
    """Two more ballots decide the vote; then a person ends the cycle."""
    proposal = (await stage.client.status(stage.cycle)).proposal
    assert proposal is not None
    for agent in ("cyd", "dee"):
        ballot = builders.ballot(agent, proposal.proposal_id, Choice.APPROVE)
        await stage.client.cast_ballot(stage.cycle, ballot)
    await stage.client.act(stage.cycle, wire.ABORT, "olga", "the vote is what this is about")
    return await stage.result()


async def test_a_workflow_patched_in_mid_vote_finishes(temporal: Client, database: Database, task_queue: str) -> None:
    declared = platform(RECORDINGS["mid_vote"])
    async with worker(temporal, database, declared, Settings(), task_queue):
        stage = await open_cycle(temporal, database, declared, task_queue)
        await mid_vote(stage)
    async with next_version(Patched, temporal, database, declared, task_queue):
        result = await vote_to_the_end(stage)

    assert result.end is not None
    assert result.end.tally is not None
    assert result.end.tally.accepted
    assert set(result.status.ballots) == {"bob", "cyd", "dee"}


async def test_a_bad_deploy_stalls_a_cycle_and_rolling_it_back_lets_it_go_on(
    temporal: Client, database: Database, task_queue: str
) -> None:
    declared = platform(RECORDINGS["mid_vote"])
    async with worker(temporal, database, declared, Settings(), task_queue):
        stage = await open_cycle(temporal, database, declared, task_queue)
        await mid_vote(stage)
    handle = temporal.get_workflow_handle(stage.cycle)
    async with next_version(Changed, temporal, database, declared, task_queue):
        await handle.signal(wire.PLACE_BID, {"junk": True})  # gives the new version a task
        async for event in handle.fetch_history_events(wait_new_event=True):
            if event.HasField("workflow_task_failed_event_attributes"):
                break
    async with worker(temporal, database, declared, Settings(), task_queue):
        result = await vote_to_the_end(stage)

    assert result.end is not None
    assert result.end.ending is Ending.ABORTED
    assert set(result.status.ballots) == {"bob", "cyd", "dee"}
