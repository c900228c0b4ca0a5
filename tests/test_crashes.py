"""A killed process loses nothing: the story is in Temporal, the facts are in the database.

`python -m benchmarks.phases` kills every process in every phase; here is what fits into every test run.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetStickyTaskQueueRequest
from temporalio.bridge.worker import Worker as BridgeWorker
from temporalio.client import Client
from temporalio.worker import Worker

from activities import ledger
from activities.database import Database
from benchmarks.phases import WINDOWS, Scene, as_promised, judged, reached, scene
from benchmarks.processes import WORKER, Processes, Temporal
from schema import wire
from schema.messages.cycle import Phase
from schema.messages.ledger import EntryKind
from schema.messages.proposals import Choice
from schema.settings import Settings
from starter import keys
from starter.agents.roster import ROSTER
from starter.client import NautilusClient
from starter.server import Server
from starter.stack import connect
from tests.patience import PATIENCE_S
from tests.record_histories import RECORDINGS, mid_vote, open_cycle, platform
from tests.test_improvement_cycle import Stage
from worker import worker
from workflows import plugin

# A look each second: a worker killed during one would cost the activity's timeout, half a minute.
QUICK = {**WINDOWS, "counter_poll_s": 1.0, "bake_window_s": 0.5, "minimum_run_s": 0.0}


async def restart_worker(temporal: Client, on_stage: Scene) -> None:
    on_stage.processes.kill(WORKER)
    on_stage.processes.start(WORKER)
    # The server would notice by itself, after ten seconds.
    await temporal.workflow_service.reset_sticky_task_queue(
        ResetStickyTaskQueueRequest(
            namespace=temporal.namespace, execution=WorkflowExecution(workflow_id=on_stage.handle.id)
        )
    )


async def test_a_worker_killed_in_the_vote_and_in_the_experiment_loses_nothing(
    temporal: Client, tmp_path: Path
) -> None:
    server = Server(temporal.service_client.config.target_host, "")
    async with scene(tmp_path / "home", temporal, Processes(server, tmp_path), "crash", QUICK) as on_stage:
        signers = [keys.own(tmp_path / "home", agent.agent_id) for agent in ROSTER]
        stage = Stage(
            NautilusClient(temporal, wire.TASK_QUEUE, *signers),
            on_stage.database,
            on_stage.platform,
            on_stage.handle.id,
        )
        await stage.bids(*(agent.agent_id for agent in ROSTER))
        proposal_id = await stage.proposes(ROSTER[0].agent_id, value=2.0)
        await stage.votes(proposal_id, beagle=Choice.APPROVE)
        await restart_worker(temporal, on_stage)
        await stage.votes(proposal_id, challenger=Choice.APPROVE, endurance=Choice.APPROVE)
        await reached(on_stage, Phase.EXPERIMENT)
        await restart_worker(temporal, on_stage)
        result = await asyncio.wait_for(on_stage.handle.result(), PATIENCE_S)
        run = judged(on_stage.database, result)

    assert as_promised(run), run
    assert set(result.status.ballots) == {"beagle", "challenger", "endurance"}


async def test_a_server_killed_in_the_vote_loses_nothing(tmp_path: Path, database: Database, task_queue: str) -> None:
    declared = platform(RECORDINGS["mid_vote"])
    async with own_server(tmp_path) as temporal:
        client = await connect(await temporal.start())
        async with worker(client, database, declared, Settings(), task_queue):
            stage = await open_cycle(client, database, declared, task_queue)
            await mid_vote(stage)
            await temporal.kill()
            await temporal.start()
            proposal = (await stage.client.status(stage.cycle)).proposal
            assert proposal is not None
            against = {"cyd": Choice.REJECT, "dee": Choice.REJECT, "eve": Choice.REJECT}
            await stage.votes(proposal.proposal_id, **against)
            result = await stage.result()

    assert set(result.status.ballots) == {"bob", *against}
    assert [entry.kind for entry in ledger.entries(database)] == [EntryKind.PARAMETER_DECLARED, EntryKind.CYCLE_ENDED]
    assert ledger.verify(database)[2] is None


@asynccontextmanager
async def own_server(home: Path) -> AsyncIterator[Temporal]:
    """A server that may be killed; the others of this session are not."""
    temporal = Temporal(home)
    try:
        yield temporal
    finally:
        await temporal.stop()


@activity.defn
async def nothing() -> None: ...


async def test_a_worker_ends_though_the_sdk_never_lets_go_of_it(
    temporal: Client, task_queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def waits_for_ever(bridge: BridgeWorker) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(BridgeWorker, "finalize_shutdown", waits_for_ever)
    monkeypatch.setattr(plugin, "FINALIZE_S", 0.1)
    with capture_logs() as logs:
        async with asyncio.timeout(PATIENCE_S), Worker(temporal, task_queue=task_queue, activities=[nothing]):
            pass

    assert [(line["event"], line["task_queue"]) for line in logs] == [("worker.not_finalized", task_queue)]
