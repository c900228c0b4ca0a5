"""A platform of your own, in a process of its own: asks its own service, within the limit that production runs on.

    python docs/own_platform.py http://127.0.0.1:8901

Run it with the variables that `nautilus up` prints. Each task asks for the limit, does its work, and records how it
went; nothing else ties it to Nautilus. `support` and `support.timeout_s` are what its `platform.toml` declares.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import count
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

from activities.database import existing
from schema.declaration import declared_platform
from schema.failure_kinds import FailureKind
from schema.messages.observatory import TaskOutcome, detail_of, reason_of
from schema.settings import Settings
from starter.platform.database_store import DatabaseStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver

TASK_TYPE, LIMIT = "support", "support.timeout_s"
TASKS_PER_SECOND = 4
QUESTIONS = (["timeout", "request"], ["connection", "closed"], ["retry", "error"], ["log", "record"])


def ask(service: str, words: list[str], limit_s: float) -> None:
    """The work of one task. Raises TimeoutError at its limit, and OSError where the service fails."""
    search = {"searches": [{"query": words, "most": 5, "without": []}], "once": False}
    with urlopen(Request(f"{service}/search", json.dumps(search).encode()), timeout=limit_s) as response:
        response.read()


def why_failed(error: OSError) -> tuple[FailureKind, str]:
    """The coarse kind of a failure, and the reason: a short label of this platform's own, the same for many tasks."""
    match error:
        case TimeoutError():
            return FailureKind.TIMEOUT, "no_answer_in_time"
        case HTTPError():
            return FailureKind.ERROR, f"upstream_{error.code}"
        case _:
            return FailureKind.ERROR, reason_of(type(error).__name__)


def run_task(service: str, number: int, resolver: ParameterResolver, recorder: Recorder) -> None:
    """One task, from its parameters to its recorded outcome."""
    task_id, started_at, started = f"support-{uuid4()}", datetime.now(UTC), time.monotonic()
    resolution = resolver.resolve_task(TASK_TYPE, task_id, started_at)
    recorder.assigned(resolution.assignments)
    failure, reason, detail = None, "", ""
    words = QUESTIONS[number % len(QUESTIONS)]
    try:
        ask(service, words, float(resolution.values[LIMIT]))
    except OSError as error:
        failure, reason = why_failed(error)
        detail = detail_of(str(error))
    outcome = TaskOutcome(
        task_id=task_id,
        task_type=TASK_TYPE,
        started_at=started_at,
        finished_at=datetime.now(UTC),
        duration_s=time.monotonic() - started,
        failure=failure,
        reason=reason,
        detail=detail,
        attributes={"topic": words[0]},
    )
    recorder.record(outcome).result()


def main(service: str) -> None:
    """Run tasks until Ctrl-C."""
    settings = Settings()
    database, platform = existing(settings.database), declared_platform(settings)
    store = DatabaseStore(database, platform)
    with (
        ParameterResolver(store) as resolver,
        Recorder(store) as recorder,
        ThreadPoolExecutor(64) as pool,
    ):
        for number in count():
            pool.submit(run_task, service, number, resolver, recorder)
            time.sleep(1 / TASKS_PER_SECOND)


if __name__ == "__main__":
    main(sys.argv[1])
