"""Recorded histories replay: a cycle that runs in production goes on after every change of the workflow."""

from concurrent.futures import ThreadPoolExecutor

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import pytest
    from temporalio.client import Client, WorkflowHistory
    from temporalio.worker import Replayer, Worker

    from activities.database import Database
    from schema import wire
    from schema.messages.cycle import CycleRequest, CycleResult, CycleState, Ending
    from schema.messages.proposals import Choice
    from schema.settings import Settings
    from tests import builders
    from tests.record_histories import HISTORIES, RECORDINGS, mid_vote, open_cycle, platform
    from worker import activities, worker
    from workflows.plugin import plugin

from workflows.improvement_cycle import ImprovementCycle

HINT = """{name} does not replay: the workflow does something else now than when this cycle ran.
A running cycle would be stuck in the same way. Guard the change by workflow.patched("...") and keep the old path; or,
where no such cycle can be running (before a release), record anew: python -m tests.record_histories"""


@workflow.defn(name=wire.IMPROVEMENT_CYCLE, failure_exception_types=[Exception])
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


@workflow.defn(name=wire.IMPROVEMENT_CYCLE, failure_exception_types=[Exception])
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
    return (await replayer.replay_workflow(history, raise_on_replay_failure=False)).replay_failure


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


async def test_a_workflow_patched_in_mid_vote_finishes(temporal: Client, database: Database, task_queue: str) -> None:
    declared = platform(RECORDINGS["mid_vote"])
    async with worker(temporal, database, declared, Settings(), task_queue):
        stage = await open_cycle(temporal, database, declared, task_queue)
        await mid_vote(stage)
    patched = Worker(
        temporal,
        task_queue=task_queue,
        workflows=[Patched],
        activities=activities(database, temporal, declared, Settings()),
        activity_executor=ThreadPoolExecutor(2),
    )
    async with patched:
        proposal = (await stage.client.status(stage.cycle)).proposal
        assert proposal is not None
        for agent in ("cyd", "dee", "eve"):
            ballot = builders.ballot(agent, proposal.proposal_id, Choice.APPROVE)
            await stage.client.cast_ballot(stage.cycle, ballot)
        await stage.client.act(stage.cycle, wire.ABORT, "olga", "the vote is what this is about")
        result = await stage.result()

    assert result.end is not None
    assert result.end.tally is not None
    assert result.end.tally.accepted
    assert result.end.tally.approve >= 3
