"""The cost of Temporal alone: a workflow that does what a cycle did, without its windows, rules, checks and pages.

It calls the same activities with the same arguments, on a database of its own; it takes the same messages as the same
updates, and starts as many timers. `python -m benchmarks.load.bare` serves it, with the SDK's own converter and
sandbox.
"""

import asyncio
from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from typing import Any

    from pydantic import BaseModel

    from activities.experiment import ExperimentActivities
    from activities.market import MarketActivities
    from activities.proposals import ProposalActivities
    from schema import wire
    from schema.messages.market import Bid
    from schema.messages.proposals import Ballot, Proposal
    from schema.messages.story import Receipt

QUEUE, NAME = "bare-cycles", "BareCycle"
TIMEOUT = timedelta(seconds=30)
METHODS = {
    method.__name__: method
    for method in (
        MarketActivities.open_meta_task,
        MarketActivities.record_award,
        ProposalActivities.open_vote,
        ProposalActivities.record_vote,
        ExperimentActivities.open_experiment,
        ExperimentActivities.await_verdict,
        ExperimentActivities.read_experiment,
        ExperimentActivities.conclude_experiment,
        ExperimentActivities.await_thaw,
        ExperimentActivities.promote,
        MarketActivities.end_cycle,
    )
}


class Step(BaseModel):
    """An activity. Before it so many messages must have come in all; with a window it is waited for no longer."""

    activity: str
    arguments: list[Any]
    messages: int
    message_window_s: float | None = None
    window_s: float | None = None


class Script(BaseModel):
    """What a cycle did, in its order."""

    steps: list[Step]


@workflow.defn(name=NAME)
class BareCycle:
    """Activities in a row, each after the messages that its cycle had by then."""

    def __init__(self) -> None:
        self._messages = 0

    @workflow.run
    async def run(self, script: Script) -> int:
        for step in script.steps:
            if step.message_window_s is not None:
                expected = step.messages
                await workflow.wait_condition(
                    lambda expected=expected: self._messages >= expected,  # type: ignore[misc]
                    timeout=step.message_window_s,
                )
            handle = workflow.start_activity_method(
                METHODS[step.activity], args=step.arguments, start_to_close_timeout=TIMEOUT
            )
            if step.window_s is None:
                await handle
                continue
            try:
                await workflow.wait_condition(handle.done, timeout=step.window_s)
                await handle
            except TimeoutError:
                # Its error is retrieved, or asyncio would complain, and that costs.
                handle.add_done_callback(lambda task: None if task.cancelled() else task.exception())
                handle.cancel()
        return self._messages

    @workflow.update(name=wire.PLACE_BID)
    def place_bid(self, message: Bid) -> Receipt:
        return self._take(message.message_id)

    @workflow.update(name=wire.SUBMIT_PROPOSAL)
    def submit_proposal(self, message: Proposal) -> Receipt:
        return self._take(message.message_id)

    @workflow.update(name=wire.CAST_BALLOT)
    def cast_ballot(self, message: Ballot) -> Receipt:
        return self._take(message.message_id)

    def _take(self, message_id: str) -> Receipt:
        self._messages += 1
        return Receipt(message_id=message_id, kind="message", accepted=True)


async def serve() -> None:
    """Serve until SIGTERM: with the same activities, and as many threads for them, as the product's worker."""
    from concurrent.futures import ThreadPoolExecutor

    from temporalio.contrib.pydantic import pydantic_data_converter
    from temporalio.worker import Worker

    from activities.database import existing
    from schema import connection
    from schema.declaration import declared_platform
    from schema.settings import Settings
    from worker import ACTIVITY_THREADS, activities

    settings = Settings()
    platform, database = declared_platform(settings), existing(settings.database)
    client = await connection.connect(data_converter=pydantic_data_converter)
    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[BareCycle],
        activities=activities(database, client, platform, settings),
        activity_executor=ThreadPoolExecutor(ACTIVITY_THREADS),
        max_concurrent_activities=ACTIVITY_THREADS,
    ):
        await asyncio.Event().wait()


if __name__ == "__main__":
    # Under its own name, or the sandbox would look for the workflow in `__main__`.
    from benchmarks.load import bare

    asyncio.run(bare.serve())
