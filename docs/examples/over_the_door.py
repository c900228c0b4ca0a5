"""A platform in Python that reaches only the door: `pip install` of the wheel nautilus-platform is all it has of Nautilus.

    export NAUTILUS_DOOR_URL=http://127.0.0.1:8484 NAUTILUS_DOOR_KEY=nautilus_...
    python over_the_door.py http://127.0.0.1:8901                # records how its tasks go, and keeps its own limit
    python over_the_door.py http://127.0.0.1:8901 --resolve      # and lets Nautilus say the limit
"""

import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

from nautilus_platform import DoorStore, FailureKind, ParameterResolver, Recorder, TaskOutcome, detail_of, reason_of

OWN_LIMIT_S = 1.0
TASKS_PER_SECOND = 4
QUESTION = b'{"searches": [{"query": ["timeout", "request"], "most": 5, "without": []}], "once": false}'


def run_task(service: str, resolver: ParameterResolver | None, recorder: Recorder) -> None:
    """One task, from its limit to its recorded outcome."""
    task_id, started_at = f"support-{uuid4()}", datetime.now(UTC)
    limit_s = OWN_LIMIT_S
    if resolver is not None:
        resolution = resolver.resolve_task("support", task_id, started_at)
        recorder.assigned(resolution.assignments)
        limit_s = float(resolution.values["support.timeout_s"])

    failure, reason, detail = None, "", ""
    try:
        with urlopen(Request(f"{service}/search", QUESTION), timeout=limit_s) as answer:
            answer.read()
    except OSError as error:
        failure = FailureKind.TIMEOUT if isinstance(error, TimeoutError) else FailureKind.ERROR
        reason, detail = reason_of(type(error).__name__), detail_of(str(error))

    finished_at = datetime.now(UTC)
    outcome = TaskOutcome(
        task_id=task_id,
        task_type="support",
        started_at=started_at,
        finished_at=finished_at,
        duration_s=(finished_at - started_at).total_seconds(),
        failure=failure,
        reason=reason,
        detail=detail,
    )
    # Not waited for: a door that is away must not hold up the next task. 20,000 outcomes may wait for it.
    recorder.record(outcome).add_done_callback(show_error)


def show_error(done: Future[Any]) -> None:
    """What the door refuses, such as a revoked key, is for a person to know."""
    error = done.exception()
    if error is not None:
        print(error, file=sys.stderr)


def main(service: str, resolves: bool) -> None:
    """Run tasks until Ctrl-C, which waits until the door has what was recorded; a second one does not."""
    door = DoorStore(os.environ["NAUTILUS_DOOR_URL"], os.environ["NAUTILUS_DOOR_KEY"])
    resolver = ParameterResolver(door) if resolves else None
    with door, Recorder(door) as recorder, ThreadPoolExecutor(64) as pool:
        for _ in count():
            pool.submit(run_task, service, resolver, recorder).add_done_callback(show_error)
            time.sleep(1 / TASKS_PER_SECOND)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(sys.argv[1], "--resolve" in sys.argv)
