"""Calls: the activities that workflows ask for, with their timeouts and retries, and how a story is told to its end.

Short writes and reads are retried for as long as it takes: a database that is away for an hour delays a cycle and
decides nothing. Polls are short activities that ask to be retried while there is nothing to report; the attempts are
not history and hold no worker's slot.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, Protocol

from temporalio import workflow
from temporalio.common import RetryPolicy

from schema.messages.cycle import Act

# A transaction takes milliseconds; half a minute leaves room for a busy database and finds a dead worker soon.
SHORT = timedelta(seconds=30)
# Retries wait at most this long, so that an outage costs little more than itself.
PATIENT = RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=15))

# What a bug raises fails its workflow, so that it surfaces. A change that does not replay must not: it would end every
# running cycle without a ledger entry, where rolling the deploy back lets them all go on. So `Exception` is too much.
BUGS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


async def call(activity: Callable[..., Any], *args: Any, summary: str = "") -> Any:
    """Run a short activity method to its result, however often that takes."""
    return await start(activity, *args, summary=summary)


def start(activity: Callable[..., Any], *args: Any, summary: str = "") -> workflow.ActivityHandle[Any]:
    """Start a short or polling activity method; the handle can be cancelled."""
    return workflow.start_activity_method(
        activity, args=args, start_to_close_timeout=SHORT, retry_policy=PATIENT, summary=summary or None
    )


async def poll(
    handle: workflow.ActivityHandle[Any], until: Callable[[Callable[[], bool], str], Awaitable[None]], summary: str
) -> tuple[bool, Any]:
    """Wait for an activity that reports when it is ready: (True, its result), or (False, None) at the deadline."""
    # Nobody awaits a poll that is left: its end is looked at here.
    handle.add_done_callback(lambda task: None if task.cancelled() else task.exception())
    try:
        await until(handle.done, f"deadline: {summary}")
        return (True, await handle) if handle.done() else (False, None)
    finally:
        if not handle.done():
            handle.cancel()


class Abortable(Protocol):
    """The state of a cycle or of a task: who wants it to end."""

    abort: Act | None


async def uncancelled(story: Coroutine[Any, Any, None], state: Abortable) -> None:
    """`temporal workflow cancel` is a person who wants it to end: it ends in the record like every other ending."""
    telling = asyncio.create_task(story)
    while not telling.done():
        try:
            await asyncio.shield(telling)
        except asyncio.CancelledError:
            state.abort = Act(message_id="cancel", who="temporal", why="the workflow was cancelled")
    telling.result()
