"""Recorded histories replay: a cycle that runs in production goes on after every change of the workflow.

What a deploy does to cycles that run is in test_upgrade.py, which deploys the versions of the workflow that are here.
"""

import asyncio
import json

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import pytest
    from temporalio.client import WorkflowHistory
    from temporalio.worker import Replayer

    from schema import wire
    from schema.messages.cycle import CycleRequest, CycleResult, CycleState, Ending
    from schema.messages.tasks import TaskEnding
    from starter.preflight import ATTEMPTS
    from tests.record_histories import HISTORIES, RECORDINGS
    from tests.record_tasks import BUS, JOBS, NAMES, TASKS
    from worker import WORKFLOWS
    from workflows.plugin import plugin

from workflows.improvement_cycle import ImprovementCycle

HINT = """{name} does not replay: the workflow does something else now than when this cycle ran.
A running cycle would be stuck in the same way. Guard the change by workflow.patched("...") and keep the old path; or,
where no such cycle can be running (before a release), record anew: python -m tests.record_histories, or record_tasks"""
REPLAY_TIMEOUT_S = 30.0
# It needs an executor of the agents, and its only steps are those of `AwardDueBids`: one call after another.
NOT_RECORDED = {wire.AUTONOMY_SCAN}
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


@workflow.defn(name=wire.IMPROVEMENT_CYCLE, failure_exception_types=FAILS_BY)
class EndsEarly(ImprovementCycle):
    """A version with a bug that raises what fails a cycle, at a point that running ones have passed."""

    @workflow.init
    def __init__(self, request: CycleRequest, carried: CycleState | None = None) -> None:
        super().__init__(request, carried)

    @workflow.run
    async def run(self, request: CycleRequest, carried: CycleState | None = None) -> CycleResult:
        return await super().run(request, carried)

    async def _wait_for_votes(self) -> None:
        raise LookupError("a bug")


def recorded() -> list[str]:
    return sorted(path.stem for path in HISTORIES.glob("*.json"))


async def replay(name: str, *workflows: type) -> Exception | None:
    history = WorkflowHistory.from_json(f"cycle:{name}", (HISTORIES / f"{name}.json").read_text())
    replayer = Replayer(workflows=workflows or WORKFLOWS, plugins=[plugin()])
    try:
        async with asyncio.timeout(REPLAY_TIMEOUT_S):
            for _ in range(ATTEMPTS):
                result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
                if wire.STARVED not in str(result.replay_failure):
                    break
            return result.replay_failure
    except TimeoutError:
        # Where a change would fail the running workflow instead of its task, the replayer waits for ever.
        return RuntimeError(f"no end of the replay in {REPLAY_TIMEOUT_S:g} s")


@pytest.mark.parametrize("name", recorded())
async def test_a_recorded_history_replays(name: str) -> None:
    failure = await replay(name)

    assert failure is None, f"{HINT.format(name=name)}\n{failure}"


def test_every_ending_is_recorded() -> None:
    stories = {name.partition(".")[0] for name in recorded()}

    assert stories == {*RECORDINGS, *NAMES}, "record anew: python -m tests.record_histories, or tests.record_tasks"
    assert {Ending(recording.ending) for recording in RECORDINGS.values() if recording.ending} == set(Ending)


def test_every_ending_of_a_task_and_every_workflow_is_recorded() -> None:
    started = [json.loads((HISTORIES / f"{name}.json").read_text())["events"][0] for name in recorded()]
    types = {event["workflowExecutionStartedEventAttributes"]["workflowType"]["name"] for event in started}

    assert {recording.ending for recording in TASKS.values()} == set(TaskEnding)
    assert types == {workflow._Definition.must_from_class(each).name for each in WORKFLOWS} - NOT_RECORDED
    assert {BUS, *JOBS} <= set(recorded())


async def test_a_change_without_a_guard_does_not_replay() -> None:
    assert await replay("mid_vote", Changed) is not None
    assert await replay("mid_vote", Patched) is None
