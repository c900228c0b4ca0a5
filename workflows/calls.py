"""Calls: the activities that workflows ask for, with their timeouts and retries.

Short writes and reads are retried for as long as it takes: a database that is away for an hour delays a cycle and
decides nothing. Polls are short activities that ask to be retried while there is nothing to report; the attempts are
not history and hold no worker's slot.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy

from schema import display

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
        activity,
        args=args,
        start_to_close_timeout=SHORT,
        retry_policy=PATIENT,
        summary=display.summary(summary) or None,
    )
