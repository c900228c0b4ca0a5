"""What is kept from a workflow: events that a query sees before the task that they belong to, on a real server."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.worker import Replayer

from schema import wire
from schema.messages.cycle import Ending, Phase
from tests import builders
from tests.test_improvement_cycle import Stage
from tests.test_upgrade import Installation, address, ending, installation
from worker import WORKFLOWS
from workflows.plugin import plugin

__all__ = ["installation"]

WINDOW_S = 4.0
# Which of the two a new worker gets first is chance, the query or the window's task.
CYCLES = 16
PATIENCE = timedelta(seconds=60)


async def test_a_query_that_waits_for_a_worker_while_a_window_closes_leaves_a_cycle_that_replays(
    installation: Installation,
) -> None:
    rules = builders.rules(bid_window_s=WINDOW_S)
    short = replace(installation, platform=builders.platform(cycle=rules))
    async with short.release():
        stages = [await short.opens(str(number)) for number in range(CYCLES)]
        for stage in stages:
            await stage.reach(Phase.BIDDING)
    # As other programs ask: without our plugin, so that nobody asks again for them.
    plain = await Client.connect(address(short.client), namespace=wire.NAMESPACE)
    strangers = [asyncio.create_task(query(plain, stage)) for stage in stages[::2]]
    ours = [asyncio.create_task(stage.client.status(stage.cycle)) for stage in stages[1::2]]
    await asyncio.gather(*(timer_fired(stage) for stage in stages))
    async with short.release():
        refusals = await asyncio.gather(*strangers)
        answers = await asyncio.gather(*ours)
        results = [await stage.result() for stage in stages]
    histories = [await short.client.get_workflow_handle(stage.cycle).fetch_history() for stage in stages]

    assert wire.ASK_AGAIN in refusals
    assert set(refusals) <= {None, wire.ASK_AGAIN}
    assert [answer.cycle_id for answer in answers] == [result.status.cycle_id for result in results[1::2]]
    assert [ending(result) for result in results] == [Ending.NO_BIDS] * CYCLES
    for history in histories:
        assert [event.event_type for event in history.events].count(EventType.EVENT_TYPE_TIMER_STARTED) == 1
        await Replayer(workflows=WORKFLOWS, plugins=[plugin(only_reads=True)]).replay_workflow(history)


async def query(client: Client, stage: Stage) -> str | None:
    """Why a query was not answered; None where it was."""
    try:
        await client.get_workflow_handle(stage.cycle).query(wire.STATUS, rpc_timeout=PATIENCE)
    except WorkflowQueryFailedError as error:
        return error.message
    return None


async def timer_fired(stage: Stage) -> None:
    """Wait until the window's timer has fired, which needs no worker."""
    handle = stage.client.temporal.get_workflow_handle(stage.cycle)
    async for event in handle.fetch_history_events(wait_new_event=True):
        if event.event_type == EventType.EVENT_TYPE_TIMER_FIRED:
            return
