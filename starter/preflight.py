"""Preflight: whether this code can go on with every workflow that runs, before a worker takes work with it.

It replays their histories as a worker would. It only reads: a workflow that does not replay is left as it is.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import NamedTuple

import structlog
from temporalio.client import Client, WorkflowHistory
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.service import RPCError
from temporalio.worker import Replayer, WorkflowReplayResult

from schema import wire
from schema.connection import is_missing
from workflows.plugin import plugin

log = structlog.get_logger()

# To the SDK, what takes two seconds to go on does not replay. Where it got no processor, that says nothing of the code.
ATTEMPTS = 3
BUSY = f"it took over 2 s to go on, {ATTEMPTS} times: the machine is busy, or the code blocks [TMPRL1101]"
# The sentence in what the SDK's core dumps.
MESSAGE = re.compile(r'message: "(?P<message>[^"]+)"')


class DoesNotReplay(ValueError):
    """A running workflow would be stuck with this code; the message is one line, and says what to do."""


class Replay(NamedTuple):
    """What became of the replay of one workflow: `failure` is one line, and empty where it replays."""

    workflow_id: str
    failure: str


async def replays(client: Client, workflows: Sequence[type], task_queue: str) -> AsyncGenerator[Replay]:
    """Replay every workflow that runs on `task_queue` against these classes, newest first.

    None of them may count a NondeterminismError as a failure of its own: the SDK's replayer would wait for ever.
    """
    with ThreadPoolExecutor(thread_name_prefix="replay") as threads:
        # Without a log of its own: the core would dump what does not replay, and its state, to standard error.
        quiet = Runtime(telemetry=TelemetryConfig(logging=None))
        plugins = [plugin(only_reads=True)]
        replayer = Replayer(workflows=workflows, plugins=plugins, workflow_task_executor=threads, runtime=quiet)
        async with replayer.workflow_replay_iterator(_running(client, task_queue)) as results:
            async for result in results:
                yield await _judged(replayer, result)


async def expect_replay(client: Client, workflows: Sequence[type], task_queue: str = wire.TASK_QUEUE) -> None:
    """Raise DoesNotReplay at the first running workflow that this code cannot go on with."""
    count = 0
    async with aclosing(replays(client, workflows, task_queue)) as results:
        async for workflow_id, failure in results:
            if failure:
                raise DoesNotReplay(
                    f"expected every running workflow to replay with this code, but {workflow_id} does not: {failure}; "
                    "go back to the code before, or start anyway with --no-check-replay"
                )
            count += 1
    log.info("replay.checked", workflows=count, task_queue=task_queue)


async def _judged(replayer: Replayer, result: WorkflowReplayResult) -> Replay:
    """What its code made of a history: where the machine had no time for it, it is replayed again."""
    for _ in range(ATTEMPTS - 1):
        if wire.STARVED not in str(result.replay_failure):
            break
        result = await replayer.replay_workflow(result.history, raise_on_replay_failure=False)
    failure = _in_one_line(result.replay_failure)
    if wire.STARVED in failure:
        failure = BUSY
    return Replay(result.history.workflow_id, failure)


async def _running(client: Client, task_queue: str) -> AsyncIterator[WorkflowHistory]:
    query = f"TaskQueue='{task_queue}' AND ExecutionStatus='Running'"
    async for execution in client.list_workflows(query):
        try:
            yield await client.get_workflow_handle(execution.id, run_id=execution.run_id).fetch_history()
        except RPCError as error:
            if not is_missing(error):  # lists of what is there lag behind
                raise


def _in_one_line(failure: Exception | None) -> str:
    text = " ".join(str(failure or "").split())
    message = MESSAGE.search(text)
    return message["message"] if message else text
