"""Runs tasks in processes that are killed at their limit.

A *zygote*, started once, loads the task types and all they share, and forks a child per task: a task costs a fork, and
starts with warm libraries. Every child leads a process group of its own. Whatever the end, the whole group is killed
before the zygote reaps its leader, so that nothing of a task outlives it and no number is killed that already belongs
to another process. A task that ends by itself, in time, reports over a socket of its own; all else is a failure with a
kind.

The zygote dies with the runner's process: its control socket then closes. A runner whose zygote died starts another.
Not contained: a descendant that leaves the group on purpose (`setsid`). A task type is code the operator installed.
"""

import gc
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import structlog
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from schema.messages.base import Value
from schema.messages.observatory import FailureKind

from .task_types import InvalidResult, TaskResult, TaskType

MEMORY_LIMIT_BYTES = 4 << 30  # address space of one task: far above the honest, below what hurts a small machine
RESULT_LIMIT_BYTES = 1 << 20  # a report; what is larger belongs in a store, not in a message
MESSAGE_LIMIT_BYTES = 2 * RESULT_LIMIT_BYTES  # the result and what is said about it
LONGEST_LIMIT_S = 7 * 86_400.0
START_LIMIT_S = 30.0  # from the fork to the start of the work, on a machine that is busy
PREPARE_LIMIT_S = 300.0  # loading every task type, with the index built on a slow disk
CLOSE_LIMIT_S = 5.0
ORPHAN_LIMIT_S = 5.0  # beyond the task's limit: ends a child whose runner and zygote were both killed
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

_FORK, _REAP = b"F", b"R"
_NUMBER = struct.Struct("!q")  # a process id, an exit code, or the length of the message that follows


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


class _Child(NamedTuple):
    pid: int
    zygote: subprocess.Popen[bytes]


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
        self._lock = threading.Lock()  # around every word with the zygote, each of a few milliseconds
        self._zygote: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._running: set[_Child] = set()
        self._closed = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the zygote, and wait until it has prepared every task type. `run` does it where it was not done."""
        with self._lock:
            self._ensure_zygote()

    def close(self) -> None:
        """Kill what runs and end the zygote. Threads that wait for a task get an error. May be called twice."""
        with self._lock:
            self._closed = True
            for child in self._running:
                _kill_group(child.pid)
            self._discard_zygote()

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
        request = json.dumps(
            {"task_type": task_type, "payload": content, "parameters": dict(parameters), "limit_s": limit_s}
        ).encode()
        child, task = self._fork()
        try:
            with task:
                execution = _attend(task, request, limit_s)
        finally:
            # The leader lives, or is a zombie until `_reap`: its number is still its own.
            _kill_group(child.pid)
            exit_code = self._reap(child)
        return execution if execution.detail or execution.result else execution._replace(detail=_last_words(exit_code))

    @property
    def zygote_pid(self) -> int | None:
        """The process that forks the tasks, for a person who looks at the machine."""
        return self._zygote.pid if self._zygote else None

    def _fork(self) -> tuple[_Child, socket.socket]:
        """A child that waits for its request, and the line to it."""
        with self._lock:
            for attempt in (1, 2):
                zygote, control = self._ensure_zygote()
                # A new line each time: a zygote that dies between fork and answer leaves a child that nobody knows.
                # It must find its line closed, and not take the request of the next.
                ours, theirs = socket.socketpair()
                try:
                    with theirs:
                        socket.send_fds(control, [_FORK], [theirs.fileno()])
                    child = _Child(_number(control), zygote)
                except OSError as error:
                    log.warning("task_runner.zygote_died", attempt=attempt, error=repr(error))
                    ours.close()
                    self._discard_zygote()
                else:
                    self._running.add(child)
                    return child, ours
        raise RunnerStopped("the zygote died twice when it was asked for a child")

    def _reap(self, child: _Child) -> int | None:
        """The exit code of a killed child, negative for a signal; None when the zygote that knew it is gone."""
        with self._lock:
            self._running.discard(child)
            if self._control is None or child.zygote is not self._zygote:
                return None
            try:
                self._control.sendall(_REAP + _NUMBER.pack(child.pid))
                return _number(self._control)
            except OSError:
                self._discard_zygote()
                return None

    def _ensure_zygote(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        if self._closed:
            raise RunnerStopped("expected an open runner, but it was closed")
        if self._zygote is not None and self._control is not None and self._zygote.poll() is None:
            return self._zygote, self._control
        self._discard_zygote()
        control, theirs = socket.socketpair()
        with theirs:
            zygote = subprocess.Popen(
                [sys.executable, "-c", BOOT, json.dumps(sys.path), str(theirs.fileno())],
                env={**os.environ, **ONE_THREAD, "PYTHONHASHSEED": "0"},  # the same order of sets in every run
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # a task that prints must not break a command that prints JSON
                start_new_session=True,  # Ctrl-C on the terminal is for the runner, which then closes in order
            )
        self._zygote, self._control = zygote, control
        try:
            control.settimeout(PREPARE_LIMIT_S)
            _send(control, json.dumps(self._order).encode())
            not_prepared: dict[str, str] = json.loads(_receive(control))
            control.settimeout(START_LIMIT_S)
        except BaseException as error:
            self._discard_zygote()  # on Ctrl-C too: what is not ready must not be taken for it later
            if isinstance(error, OSError):
                raise RunnerStopped(f"expected a zygote that is ready, but {error!r}; see standard error") from error
            raise
        for name, reason in not_prepared.items():
            log.error("task_type.not_prepared", task_type=name, reason=reason)
        return zygote, control

    def _discard_zygote(self) -> None:
        if self._control is not None:
            self._control.close()  # on which the zygote kills its children and ends
        if self._zygote is not None:
            try:
                self._zygote.wait(CLOSE_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._zygote.kill()
                self._zygote.wait()
        self._zygote = self._control = None


def measure(runner: TaskRunner, task_type: TaskType, tasks: int, at_once: int, limit_s: float = 60.0) -> list[float]:
    """How long sampled tasks take on this machine, in seconds, ascending; `at_once` as many as will run later.

    Raises InvalidResult where one fails: a limit must not be drawn from what does not work.
    """

    def duration(i: int) -> float:
        execution = runner.run(task_type.name, task_type.sample(f"measure-{i}"), {}, limit_s)
        if execution.failure is not None:
            raise InvalidResult(f"measuring {task_type.name}: {execution.failure.value}: {execution.detail}")
        return execution.duration_s

    with ThreadPoolExecutor(at_once) as threads:
        return sorted(threads.map(duration, range(tasks)))


def _attend(task: socket.socket, request: bytes, limit_s: float) -> Execution:
    """Follow one child until it reports or its time is up. The detail is empty when it ended without a word."""
    started_at = None
    try:
        task.settimeout(START_LIMIT_S)
        _send(task, request)
        first = json.loads(_receive(task))
        if "started_at" not in first:
            return Execution(0.0, FailureKind.ERROR, first["detail"], None)
        started_at = float(first["started_at"])  # on the monotonic clock, which all processes of a machine share
        answer = json.loads(_receive(task, deadline=started_at + limit_s))
        if answer["duration_s"] > limit_s:
            raise TimeoutError  # it finished late, before anybody looked: the limit is the limit
        failure = FailureKind(answer["failure"]) if answer["failure"] else None
        result = TaskResult.model_validate(answer["result"]) if failure is None else None
        return Execution(answer["duration_s"], failure, answer["detail"], result)
    except TimeoutError:
        if started_at is None:
            return Execution(0.0, FailureKind.ERROR, f"expected the work to begin within {START_LIMIT_S:g} s", None)
        detail = f"killed at its limit of {limit_s:g} s"
        return Execution(time.monotonic() - started_at, FailureKind.TIMEOUT, detail, None)
    except ConnectionError:
        return Execution(time.monotonic() - started_at if started_at else 0.0, FailureKind.ERROR, "", None)


def _last_words(exit_code: int | None) -> str:
    if exit_code is None:
        return "the process ended without a report, because its runner stopped"
    if exit_code >= 0:
        return f"the process ended without a report, with exit code {exit_code}"
    why = ", as the system does to a process that takes too much memory" if -exit_code == signal.SIGKILL else ""
    return f"the process died by signal {-exit_code} ({signal.strsignal(-exit_code)}){why}"


# -- in the zygote, and in the children it forks


def zygote(control_fd: int) -> None:
    """Prepare the task types, then fork and reap at the runner's word until it is gone. One thread, so that a fork
    copies no lock that another thread holds."""
    control = socket.socket(fileno=control_fd)
    order = json.loads(_receive(control))
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
    _send(control, json.dumps(not_prepared).encode())
    children: set[int] = set()
    while True:
        try:
            word, received, _, _ = socket.recv_fds(control, 1, 1)
            if word == _FORK:
                with socket.socket(fileno=received[0]) as task:
                    task.set_inheritable(False)
                    sys.stdout.flush()
                    pid = os.fork()
                    if pid == 0:
                        control.close()
                        _be_a_task(task, prepared, not_prepared, order["memory_limit_bytes"])
                children.add(pid)
                with suppress(OSError):  # the child does the same; whoever comes first, the group exists from here on
                    os.setpgid(pid, pid)
                control.sendall(_NUMBER.pack(pid))
            elif word == _REAP:
                pid = _number(control)
                _, status = os.waitpid(pid, 0)
                children.discard(pid)
                control.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(status)))
            else:
                break
        except ConnectionError:
            break
    for pid in children:
        _kill_group(pid)


def _be_a_task(
    task: socket.socket, prepared: Mapping[str, TaskType], not_prepared: Mapping[str, str], memory_limit_bytes: int
) -> NoReturn:
    exit_code = 1
    try:
        with suppress(PermissionError):  # the zygote was first
            os.setpgid(0, 0)
        request = json.loads(_receive(task))
        name, limit_s = request["task_type"], request["limit_s"]
        if name in not_prepared:
            _send(task, json.dumps({"detail": f"{name} could not be prepared: {not_prepared[name]}"}).encode())
        else:
            try:
                # As JSON: strict models take a list for a tuple, or a string for a time, from JSON alone.
                payload = prepared[name].Payload.model_validate_json(json.dumps(request["payload"]))
            except ValidationError as error:
                wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
                _send(
                    task, json.dumps({"detail": f"the payload is not one of {name}: {wrong}"[:DETAIL_CHARS]}).encode()
                )
            else:
                signal.setitimer(signal.ITIMER_REAL, limit_s + ORPHAN_LIMIT_S)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                if sys.platform == "linux":  # elsewhere the kernel does not enforce it
                    resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
                _work(task, prepared[name], payload, request["parameters"])
        exit_code = 0
    except ConnectionError:
        pass  # the runner is gone, and with it everybody who could be told
    except BaseException:  # noqa: BLE001 - the only other way out is os._exit
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(exit_code)


def _work(task: socket.socket, task_type: TaskType, payload: BaseModel, parameters: Mapping[str, Value]) -> None:
    failure, detail, result = None, "", ""
    started_at = time.monotonic()
    _send(task, json.dumps({"started_at": started_at}).encode())
    try:
        found = task_type.run(payload, parameters)
        duration_s = time.monotonic() - started_at
        result = TaskResult.model_validate(found).model_dump_json()
        if len(result.encode()) > RESULT_LIMIT_BYTES:
            raise InvalidResult(f"expected a result of at most {RESULT_LIMIT_BYTES} bytes, but {len(result)} came")
    except (InvalidResult, ValidationError, PydanticSerializationError) as error:
        failure, detail = FailureKind.INVALID_RESULT, str(error)
    except MemoryError:
        failure, detail = FailureKind.ERROR, "out of memory"
    except BaseException as error:  # noqa: BLE001 - sys.exit too: whatever a task raises is how it ended
        failure, detail = FailureKind.ERROR, _reason(error)
    if failure is not None:
        duration_s = time.monotonic() - started_at
    answer = json.dumps({"duration_s": duration_s, "failure": failure, "detail": detail[:DETAIL_CHARS]})
    # The result is JSON already.
    _send(task, f'{answer[:-1]}, "result": {result if failure is None else "null"}}}'.encode())


def _reason(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(where[-1].filename).name}:{where[-1].lineno})" if where else ""
    return f"{type(error).__name__}: {error}{place}"[:DETAIL_CHARS]


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS says so of a group of zombies
        os.killpg(pid, signal.SIGKILL)


# -- messages on a stream socket: their length, then their bytes


def _send(stream: socket.socket, message: bytes) -> None:
    stream.sendall(_NUMBER.pack(len(message)) + message)


def _receive(stream: socket.socket, deadline: float | None = None) -> bytes:
    """The next message. Raises ConnectionError at the end of the stream, and TimeoutError at the deadline."""
    length = _number(stream, deadline)
    if not 0 <= length <= MESSAGE_LIMIT_BYTES:
        raise ConnectionError(f"expected a message of at most {MESSAGE_LIMIT_BYTES} bytes, but {length} are announced")
    return _exactly(stream, length, deadline)


def _number(stream: socket.socket, deadline: float | None = None) -> int:
    number: int = _NUMBER.unpack(_exactly(stream, _NUMBER.size, deadline))[0]
    return number


def _exactly(stream: socket.socket, size: int, deadline: float | None = None) -> bytes:
    received = bytearray()
    while len(received) < size:
        if deadline is not None:
            # Never zero, which would mean not to wait: what has arrived is read even if we come late.
            stream.settimeout(max(deadline - time.monotonic(), 0.001))
        part = stream.recv(size - len(received))
        if not part:
            raise ConnectionError("the stream ended")
        received += part
    return bytes(received)
