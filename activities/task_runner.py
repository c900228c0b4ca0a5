"""Runs tasks in processes that are killed at their limit.

A *zygote*, started once, loads the task types and all they share, and forks a child per task: a task costs a fork, and
starts with warm libraries. Every child leads a process group of its own. Whatever the end, the whole group is killed
before the zygote reaps its leader, so that nothing of a task outlives it and no number is killed that already belongs
to another process. A task that ends by itself, in time, reports over a pipe of its own; all else is a failure with a
kind.

The zygote dies with the runner's process: its control connection then closes. A runner whose zygote died starts
another, and what was under way begins again. Not contained: a descendant that leaves the group on purpose (`setsid`),
or a task that writes half a report and holds the pipe open. A task type is code the operator installed.
"""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import structlog
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from schema.messages.base import Value
from schema.messages.observatory import FailureKind
from schema.mistakes import in_one_line

from .task_types import InvalidResult, TaskResult, TaskType

MEMORY_LIMIT_BYTES = 4 << 30  # address space of one task: far above the honest, below what hurts a small machine
RESULT_LIMIT_BYTES = 1 << 20  # a report; what is larger belongs in a store, not in a message
LONGEST_LIMIT_S = 7 * 86_400.0
START_LIMIT_S = 30.0  # from the fork to the start of the work, on a machine that is busy
PREPARE_LIMIT_S = 300.0  # loading every task type, with the index built on a slow disk
UNWANTED_POLL_S = 0.2  # how soon a runner that is closed while it prepares is closed
CLOSE_LIMIT_S = 5.0
ORPHAN_LIMIT_S = 5.0  # beyond the task's limit: ends a child whose zygote was killed
DETAIL_CHARS = 500
ONE_THREAD = {
    # Two tasks at a time on two cores: a library that takes every core for each would slow all of them.
    f"{library}_NUM_THREADS": "1"
    for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")
}
BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from activities.task_runner import zygote
zygote(int(sys.argv[2]))
"""

log = structlog.get_logger(__name__)


class UnknownTaskType(LookupError):
    """The platform declares a task type that is not installed here: a mistake of deployment, not a failed task."""


class RunnerStopped(RuntimeError):
    """The runner is closed, or its zygote does not start."""


class Execution(NamedTuple):
    """How one task went. `duration_s` is the work alone; of a task that was cut off, the time until it was."""

    duration_s: float
    failure: FailureKind | None
    detail: str
    result: TaskResult | None


class TaskRunner:
    """Runs tasks of the given types; `cache` is the folder for what they build once.

    Any number of threads may run tasks at the same time; from asyncio, `asyncio.to_thread(runner.run, ...)`. A context
    manager: what is not closed ends with the process.
    """

    def __init__(
        self, task_types: Mapping[str, TaskType], cache: Path, memory_limit_bytes: int = MEMORY_LIMIT_BYTES
    ) -> None:
        self._order = {
            # By reference, because the zygote makes its own: nothing of this process's state decides how a task goes.
            "task_types": {name: f"{type(t).__module__}:{type(t).__qualname__}" for name, t in task_types.items()},
            "cache": str(cache.absolute()),
            "memory_limit_bytes": memory_limit_bytes,
        }
        self._names = sorted(task_types)
        self._numbers = count()
        self._lock = threading.Lock()  # around every word to the zygote
        self._zygote: _Zygote | None = None
        self._closed = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the zygote, and wait until it has prepared every task type. `run` does it where it was not done."""
        with self._lock:
            self._ready()

    def close(self) -> None:
        """Kill what runs and end the zygote. Threads that wait for a task get RunnerStopped. May be called twice."""
        self._closed = True  # first, so that a zygote that is still preparing is given up and the lock is free soon
        with self._lock:
            if self._zygote is not None:
                self._zygote.end()

    def run(
        self, task_type: str, payload: Mapping[str, Any] | BaseModel, parameters: Mapping[str, Value], limit_s: float
    ) -> Execution:
        """Do one task and wait for its end, at most `limit_s` after the work began.

        What goes wrong with the task is in the Execution. Raises UnknownTaskType and RunnerStopped, which say nothing
        about the task.
        """
        if task_type not in self._names:
            raise UnknownTaskType(f"expected one of the task types {', '.join(self._names)}, but {task_type!r} came")
        if not 0 < limit_s <= LONGEST_LIMIT_S:
            raise ValueError(f"expected a limit of more than 0 and at most {LONGEST_LIMIT_S:g} s, but {limit_s!r} came")
        content = payload.model_dump(mode="json") if isinstance(payload, BaseModel) else payload
        request = {"task_type": task_type, "payload": content, "parameters": dict(parameters), "limit_s": limit_s}
        for _ in range(2):
            with self._lock:
                answer = self._ready().send(next(self._numbers), request)
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
    """The zygote, seen from the runner. Raises RunnerStopped where it does not start, or is no longer wanted."""

    def __init__(self, order: Mapping[str, Any], unwanted: Callable[[], bool]) -> None:
        self._answers: dict[int, Future[Execution]] = {}
        self._control, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", BOOT, json.dumps(sys.path), str(theirs.fileno())],
                env={**os.environ, **ONE_THREAD, "PYTHONHASHSEED": "0"},  # the same order of sets in every run
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # a task that prints must not break a command that prints JSON
                start_new_session=True,  # Ctrl-C on the terminal is for the runner, which then closes in order
            )
        try:
            self._control.send(order)
            deadline = time.monotonic() + PREPARE_LIMIT_S
            while not self._control.poll(UNWANTED_POLL_S):
                if unwanted():
                    raise RunnerStopped("expected an open runner, but it was closed while it prepared")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"expected it within {PREPARE_LIMIT_S:g} s")
            not_prepared: dict[str, str] = self._control.recv()
        except BaseException as error:
            self.process.kill()  # on Ctrl-C too: what is not ready must not be taken for it later
            self.process.wait()
            if isinstance(error, OSError | EOFError):
                raise RunnerStopped(f"expected a zygote that is ready, but {error!r}; see standard error") from error
            raise
        for name, reason in not_prepared.items():
            log.error("task_type.not_prepared", task_type=name, reason=reason)
        self._dying = threading.Lock()  # nobody may ask between the last answer and the news of the end
        self.listening = True
        threading.Thread(target=self._listen, name="zygote", daemon=True).start()

    def send(self, number: int, request: Mapping[str, Any]) -> "Future[Execution]":
        """Ask for a task. Where the zygote dies before it is done, the answer is an EOFError."""
        answer: Future[Execution] = Future()
        with self._dying:
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
        """Have everything killed, and wait for the end. May be called twice."""
        with suppress(OSError):
            self._control.send(None)
        try:
            self.process.wait(CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _listen(self) -> None:
        try:
            with suppress(OSError, EOFError):
                while True:
                    number, duration_s, failure, detail, result = self._control.recv()
                    found = TaskResult.model_validate_json(result) if result is not None else None
                    answer = self._answers.pop(number)
                    answer.set_result(Execution(duration_s, FailureKind(failure) if failure else None, detail, found))
        finally:  # however it ends: who waits for an answer must not wait for ever
            with self._dying:
                self.listening = False
                for answer in self._answers.values():
                    answer.set_exception(EOFError())
            self._control.close()
        self.process.wait()


# -- in the zygote, and in the children it forks


class _Report(NamedTuple):
    """What a child says at its end. `result` is JSON."""

    duration_s: float
    failure: str | None
    detail: str
    result: str | None


@dataclass
class _Child:
    """A task under way. `deadline` is on the monotonic clock, which all processes of a machine share."""

    number: int
    pid: int
    limit_s: float
    deadline: float
    started_at: float | None = None

    def hear(self, line: Connection) -> _Report | None:
        """What it says at its end, or None where it goes on. At the end of the line it has ended without a word."""
        try:
            received = line.recv()
        except (EOFError, OSError):
            return _Report(self._worked_s(), FailureKind.ERROR, "", None)
        if isinstance(received, float):
            self.started_at, self.deadline = received, received + self.limit_s
            return None
        report = _Report(*received)
        # It finished late, before anybody looked: the limit is the limit.
        return report if report.duration_s <= self.limit_s else self.overdue()

    def overdue(self) -> _Report:
        if self.started_at is None:
            detail = f"expected the work to begin within {START_LIMIT_S:g} s"
            return _Report(0.0, FailureKind.ERROR, detail, None)
        return _Report(self._worked_s(), FailureKind.TIMEOUT, f"killed at its limit of {self.limit_s:g} s", None)

    def end(self) -> int:
        """Kill all that is left of it; its exit code, negative for a signal."""
        # The leader lives, or is a zombie until it is waited for: its number is still its own.
        with suppress(ProcessLookupError, PermissionError):  # macOS says so of a group of zombies
            os.killpg(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _worked_s(self) -> float:
        return time.monotonic() - self.started_at if self.started_at else 0.0


def zygote(control_fd: int) -> None:
    """Prepare the task types, then fork, watch and reap for the runner until it is gone. One thread, so that a fork
    copies no lock that another thread holds."""
    control = Connection(control_fd)
    order = control.recv()
    prepared: dict[str, TaskType] = {}
    not_prepared: dict[str, str] = {}
    for name, reference in order["task_types"].items():
        module, _, attribute = reference.partition(":")
        try:
            prepared[name] = getattr(import_module(module), attribute)()
            prepared[name].prepare(Path(order["cache"]))
        except Exception as error:  # noqa: BLE001 - a plug-in that cannot start must not stop the others
            not_prepared[name] = _reason(error)
    gc.collect()
    gc.freeze()  # or the collector would touch, and so copy, every page that the children share
    control.send(not_prepared)
    children: dict[Connection, _Child] = {}
    with suppress(OSError, EOFError):  # the runner is gone
        while True:
            due = min((child.deadline for child in children.values()), default=None)
            ready = wait([control, *children], max(0.0, due - time.monotonic()) if due is not None else None)
            for line, child in list(children.items()):
                report = child.hear(line) if line in ready else None
                if report is None and child.deadline <= time.monotonic():
                    report = child.overdue()
                if report is not None:
                    del children[line]
                    line.close()
                    exit_code = child.end()
                    if not report.detail and report.result is None:
                        report = report._replace(detail=_last_output(exit_code))
                    control.send((child.number, *report))
            if control in ready:
                if (asked := control.recv()) is None:
                    break
                number, request = asked
                ours, theirs = Pipe(duplex=False)
                with theirs:
                    sys.stdout.flush()
                    pid = os.fork()
                    if pid == 0:
                        control.close()
                        _be_a_task(theirs, request, prepared, not_prepared, order["memory_limit_bytes"])
                with suppress(OSError):  # the child does the same; whoever comes first, the group exists from here
                    os.setpgid(pid, pid)
                children[ours] = _Child(number, pid, request["limit_s"], time.monotonic() + START_LIMIT_S)
    for child in children.values():
        child.end()


def _last_output(exit_code: int) -> str:
    if exit_code >= 0:
        return f"the process ended without a report, with exit code {exit_code}"
    why = ", as the system does to a process that takes too much memory" if -exit_code == signal.SIGKILL else ""
    return f"the process died by signal {-exit_code} ({signal.strsignal(-exit_code)}){why}"


def _be_a_task(
    line: Connection,
    request: Mapping[str, Any],
    prepared: Mapping[str, TaskType],
    not_prepared: Mapping[str, str],
    memory_limit_bytes: int,
) -> NoReturn:
    exit_code = 1
    try:
        with suppress(PermissionError):  # the zygote was first
            os.setpgid(0, 0)
        signal.setitimer(signal.ITIMER_REAL, request["limit_s"] + START_LIMIT_S + ORPHAN_LIMIT_S)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sys.platform == "linux":  # elsewhere the kernel does not enforce it
            resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
        line.send(tuple(_work(line, request, prepared, not_prepared)))
        exit_code = 0
    except OSError:
        pass  # the zygote is gone, and with it everybody who could be told
    except BaseException:  # noqa: BLE001 - the only other way out is os._exit
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(exit_code)


def _work(
    line: Connection, request: Mapping[str, Any], prepared: Mapping[str, TaskType], not_prepared: Mapping[str, str]
) -> _Report:
    name = request["task_type"]
    if name in not_prepared:
        return _Report(0.0, FailureKind.ERROR, f"{name} could not be prepared: {not_prepared[name]}", None)
    try:
        # As JSON: strict models take a list for a tuple, or a string for a time, from JSON alone.
        payload = prepared[name].Payload.model_validate_json(json.dumps(request["payload"]))
    except ValidationError as error:
        wrong = in_one_line(error)
        return _Report(0.0, FailureKind.ERROR, f"the payload is not one of {name}: {wrong}"[:DETAIL_CHARS], None)
    started_at = time.monotonic()
    line.send(started_at)
    try:
        found = prepared[name].run(payload, request["parameters"])
        duration_s = time.monotonic() - started_at
        result = TaskResult.model_validate(found).model_dump_json()
        if (size := len(result.encode())) > RESULT_LIMIT_BYTES:
            raise InvalidResult(f"expected a result of at most {RESULT_LIMIT_BYTES} bytes, but {size} came")
        TaskResult.model_validate_json(result)  # what cannot be read again, nested too deep, is no result
        return _Report(duration_s, None, "", result)
    except (InvalidResult, ValidationError, PydanticSerializationError) as error:
        failure, detail = FailureKind.INVALID_RESULT, str(error)
    except MemoryError:
        failure, detail = FailureKind.ERROR, "out of memory"
    except BaseException as error:  # noqa: BLE001 - sys.exit too: whatever a task raises is how it ended
        failure, detail = FailureKind.ERROR, _reason(error)
    return _Report(time.monotonic() - started_at, failure, detail[:DETAIL_CHARS], None)


def _reason(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(where[-1].filename).name}:{where[-1].lineno})" if where else ""
    return f"{type(error).__name__}: {error}{place}"[:DETAIL_CHARS]
