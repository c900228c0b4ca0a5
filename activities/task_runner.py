"""Runs tasks in processes that are killed at their limit.

A *zygote* (`activities.zygote`), a process started once, prepares the task types and forks a child per task: a task
costs a fork, and starts with warm libraries. This is the runner's side: it starts the zygote, sends it tasks and waits
for what became of them. A failure of a task is an answer with a kind; an exception is no failure of a task.

The zygote ends with the runner's process: its control connection then closes. A runner whose zygote died starts
another and repeats the tasks under way.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import structlog
from pydantic import BaseModel

from schema.failure_kinds import FailureKind
from schema.messages.base import Value

from .task_types import TaskResult, TaskType

MEMORY_LIMIT_BYTES = 4 << 30  # address space of one task: far above any real task, below what hurts a small machine
LONGEST_LIMIT_S = 7 * 86_400.0
PREPARE_LIMIT_S = 300.0  # loading every task type, with the index built on a slow disk
CLOSED_POLL_S = 0.2  # how often a zygote that prepares checks whether the runner was closed
CLOSE_LIMIT_S = 5.0
ONE_THREAD = {
    # Two tasks at a time on two cores: a library that takes every core for each would slow all of them.
    f"{library}_NUM_THREADS": "1"
    for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")
}
BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from activities.zygote import zygote
zygote(int(sys.argv[2]))
"""

log = structlog.get_logger(__name__)


class UnknownTaskType(LookupError):
    """The platform declares a task type that is not installed here: a deployment error, not a failed task."""


class RunnerStopped(RuntimeError):
    """The runner is closed, or its zygote does not start."""


class Execution(NamedTuple):
    """How one task went. `duration_s` is the work alone; of a task that was cut off, the time until it was.

    `reason` is the label that a failure counts under, empty where its kind says all there is to say.
    """

    duration_s: float
    failure: FailureKind | None
    reason: str
    detail: str
    result: TaskResult | None


class TaskRunner:
    """Runs tasks of the given types; `cache` is the folder for what they build once.

    Any number of threads may run tasks at the same time; from asyncio, `asyncio.to_thread(runner.run, ...)`. A context
    manager; a runner that is never closed ends with the process.
    """

    def __init__(
        self, task_types: Mapping[str, TaskType], cache: Path, memory_limit_bytes: int = MEMORY_LIMIT_BYTES
    ) -> None:
        self._order = {
            # By reference, because the zygote makes its own: no state of this process influences a task.
            "task_types": {name: f"{type(t).__module__}:{type(t).__qualname__}" for name, t in task_types.items()},
            "cache": str(cache.absolute()),
            "memory_limit_bytes": memory_limit_bytes,
        }
        self._names = sorted(task_types)
        self._numbers = count()
        self._lock = threading.Lock()  # around every message to the zygote
        self._zygote: _Zygote | None = None
        self._closed = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the zygote, and wait until it has prepared every task type; otherwise the first `run` does so."""
        with self._lock:
            self._ready()

    def close(self) -> None:
        """Kill what runs and end the zygote. Threads that wait for a task get RunnerStopped. May be called twice."""
        self._closed = True  # first, so that `_ready` gives up a zygote that is still preparing and frees the lock
        with self._lock:
            if self._zygote is not None:
                self._zygote.end()

    def run(
        self, task_type: str, payload: Mapping[str, Any] | BaseModel, parameters: Mapping[str, Value], limit_s: float
    ) -> Execution:
        """Do one task and wait for its end, at most `limit_s` after the work began.

        A failure of the task is in the Execution. Raises UnknownTaskType and RunnerStopped, which are no failure of the
        task.
        """
        if task_type not in self._names:
            raise UnknownTaskType(f"expected one of the task types {', '.join(self._names)}, but {task_type!r} came")
        if not 0 < limit_s <= LONGEST_LIMIT_S:
            raise ValueError(f"expected a limit of more than 0 and at most {LONGEST_LIMIT_S:g} s, but {limit_s!r} came")
        content = payload.model_dump(mode="json") if isinstance(payload, BaseModel) else payload
        request = {"task_type": task_type, "payload": content, "parameters": dict(parameters), "limit_s": limit_s}
        for _ in range(2):  # a zygote that died once may have been killed; one that dies again is broken
            with self._lock:
                zygote = self._ready()
                answer = zygote.send(next(self._numbers), request)
            try:
                return answer.result()
            except EOFError:
                log.warning("task_runner.zygote_died", task_type=task_type)
        raise RunnerStopped("the zygote died twice while the task was under way")

    @property
    def zygote_pid(self) -> int | None:
        """The process that forks the tasks, for a person who looks at the machine."""
        return self._zygote.process.pid if self._zygote else None

    def _ready(self) -> "_Zygote":
        if self._closed:
            raise RunnerStopped("expected an open runner, but it was closed")
        if self._zygote is None or not self._zygote.listening:
            self._zygote = _Zygote(self._order, lambda: self._closed)
        return self._zygote


class _Zygote:
    """The zygote, seen from the runner. Raises RunnerStopped where it does not start, or the runner is closed."""

    def __init__(self, order: Mapping[str, Any], is_closed: Callable[[], bool]) -> None:
        self._answers: dict[int, Future[Execution]] = {}
        self._control, zygote_end = Pipe()
        with zygote_end:
            self.process = _start_process(zygote_end.fileno())
        try:
            not_prepared = self._prepare(order, is_closed)
        except BaseException as error:
            self._kill()  # on Ctrl-C too: a zygote that is not ready must not be used later
            if isinstance(error, OSError | EOFError):
                raise RunnerStopped(f"expected the zygote to prepare, but {error!r}; see standard error") from error
            raise
        for name, reason in not_prepared.items():
            log.error("task_type.not_prepared", task_type=name, reason=reason)
        self._answers_lock = threading.Lock()  # no request may come between the last answer and `listening = False`
        self.listening = True
        threading.Thread(target=self._listen, name="zygote", daemon=True).start()

    def _prepare(self, order: Mapping[str, Any], is_closed: Callable[[], bool]) -> dict[str, str]:
        """Have the task types prepared; the reasons why some of them cannot run, by type."""
        self._control.send(order)
        deadline = time.monotonic() + PREPARE_LIMIT_S
        while not self._control.poll(CLOSED_POLL_S):
            if is_closed():
                raise RunnerStopped("expected an open runner, but it was closed while it prepared")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {PREPARE_LIMIT_S:g} s")
        return cast(dict[str, str], self._control.recv())

    def send(self, number: int, request: Mapping[str, Any]) -> "Future[Execution]":
        """Ask for a task. Where the zygote dies before it is done, the answer is an EOFError."""
        answer: Future[Execution] = Future()
        with self._answers_lock:
            self._answers[number] = answer
            try:
                self._control.send((number, request))
            except OSError:
                self.listening = False
            if not self.listening:
                answer.set_exception(EOFError())
                del self._answers[number]
        return answer

    def end(self) -> None:
        """Have every task killed, and wait for the zygote to end. May be called twice."""
        with suppress(OSError):
            self._control.send(None)
        try:
            self.process.wait(CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._kill()

    def _kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _listen(self) -> None:
        try:
            with suppress(OSError, EOFError):
                while True:
                    number, report = self._control.recv()
                    execution = _execution_of(report)
                    self._answers.pop(number).set_result(execution)
        finally:  # whatever happens, no thread may wait for an answer for ever
            with self._answers_lock:
                self.listening = False
                for answer in self._answers.values():
                    answer.set_exception(EOFError())
            self._control.close()
        self.process.wait()


def _start_process(control_fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", BOOT, json.dumps(sys.path), str(control_fd)],
        env={**os.environ, **ONE_THREAD, "PYTHONHASHSEED": "0"},  # the same order of sets in every run
        pass_fds=[control_fd],
        stdin=subprocess.DEVNULL,
        stdout=2,  # a task that prints must not break a command that prints JSON
        start_new_session=True,  # Ctrl-C on the terminal is for the runner, which then closes in order
    )


def _execution_of(report: Mapping[str, Any]) -> Execution:
    """How a task went, from the fields of the zygote's report."""
    return Execution(
        duration_s=report["duration_s"],
        failure=FailureKind(report["failure"]) if report["failure"] else None,
        reason=report["reason"],
        detail=report["detail"],
        result=TaskResult.model_validate_json(report["result"]) if report["result"] is not None else None,
    )
