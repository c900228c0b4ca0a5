"""The cost of Temporal alone: a workflow with as many activities as a direct task has, all of them empty.

A module of its own, because the sandbox loads a workflow's module anew for each run.
"""

import asyncio
from datetime import timedelta

from temporalio import activity, workflow

QUEUE = "bare"
NAME = "Bare"
TIMEOUT = timedelta(seconds=30)


@activity.defn
async def nothing() -> None:
    """An activity that does nothing."""


@workflow.defn(name=NAME)
class Bare:
    """Two activities, the second on a queue of its own, like a direct task's work."""

    @workflow.run
    async def run(self, number: int) -> int:
        await workflow.execute_activity(nothing, start_to_close_timeout=TIMEOUT)
        await workflow.execute_activity(nothing, task_queue=f"{QUEUE}-tasks", start_to_close_timeout=TIMEOUT)
        return number


async def serve() -> None:
    from temporalio.worker import Worker

    from schema import connection
    from workflows.plugin import plugin

    client = await connection.connect(plugins=[plugin()])
    async with (
        Worker(client, task_queue=QUEUE, workflows=[Bare], activities=[nothing]),
        Worker(client, task_queue=f"{QUEUE}-tasks", activities=[nothing]),
    ):
        await asyncio.Event().wait()


if __name__ == "__main__":
    # Under its own name, or the sandbox would look for the workflow in `__main__`.
    from benchmarks import bare

    asyncio.run(bare.serve())
