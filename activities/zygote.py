"""Zygote: the process that prepares task types once and forks one child a task.

Every child leads a process group of its own. However a task ends, the whole group is killed before the zygote reaps its
leader, so that nothing of a task outlives it and no process id is killed that already belongs to another process. A
task that ends by itself, in time, reports over a pipe of its own; every other end is a failure with a kind.

The runner's side is `activities.task_runner`; the zygote ends when its connection to it closes. Not contained: a
descendant that leaves the group on purpose (`setsid`), or a task that writes half a report and holds the pipe open. A
task type is code the operator installed.
"""

import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from rules.redaction import beginning
from schema.failure_kinds import FailureKind
from schema.messages.observatory import reason_of
from schema.mistakes import in_one_line

from .task_types import InvalidResult, TaskResult, TaskType, failure_reason

RESULT_LIMIT_BYTES = 1 << 20  # a report; what is larger belongs in a store, not in a message
START_LIMIT_S = 30.0  # from the fork to the start of the work, on a machine that is busy
ORPHAN_LIMIT_S = 5.0  # beyond the task's limit: ends a child whose zygote was killed
DETAIL_CHARS = 500


class _Report(NamedTuple):
    """What a child reports at its end. `result` is JSON."""

    duration_s: float
    failure: str | None
    reason: str
    detail: str
    result: str | None


@dataclass
class _Child:
    """A task under way. `deadline` is on the monotonic clock, which all processes of the machine share."""

    number: int
    pid: int
    pipe: Connection
    limit_s: float
    deadline: float
    started_at: float | None = None

    def receive(self) -> _Report | None:
        """The child's report, or None where it only reports that its work began. A closed pipe is an error."""
        try:
            received = self.pipe.recv()
        except (EOFError, OSError):
            return _Report(self._worked_s(), FailureKind.ERROR, "", "", None)
        if isinstance(received, float):
            self.started_at = received
            self.deadline = received + self.limit_s
            return None
        report = _Report(*received)
        # A report may arrive after the limit, before the deadline was checked: the limit still holds.
        return report if report.duration_s <= self.limit_s else self.overdue()

    def overdue(self) -> _Report:
        """The report of a child that is past its deadline."""
        if self.started_at is None:
            detail = f"expected the work to begin within {START_LIMIT_S:g} s"
            return _Report(0.0, FailureKind.ERROR, "not_started", detail, None)
        return _Report(self._worked_s(), FailureKind.TIMEOUT, "", f"killed at its limit of {self.limit_s:g} s", None)

    def end(self) -> int:
        """Kill all that is left of the group; the child's exit code, negative for a signal."""
        # The leader lives, or is a zombie until it is waited for: its process id is still its own.
        with suppress(ProcessLookupError, PermissionError):  # macOS raises it for a group of zombies
            os.killpg(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _worked_s(self) -> float:
        return time.monotonic() - self.started_at if self.started_at else 0.0


class _Prepared(NamedTuple):
    """What the zygote's children share; `not_prepared` are the reasons why the other types cannot run."""

    task_types: dict[str, TaskType]
    not_prepared: dict[str, str]
    memory_limit_bytes: int


def zygote(control_fd: int) -> None:
    """Prepare the task types, serve the runner, and leave no child behind."""
    # One thread, so that a fork copies no lock that another thread holds.
    control = Connection(control_fd)
    prepared = _prepare(control.recv())
    control.send(prepared.not_prepared)
    children: dict[Connection, _Child] = {}
    with suppress(OSError, EOFError):  # the runner is gone
        _serve(control, prepared, children)
    for child in children.values():
        child.end()


def _serve(control: Connection, prepared: _Prepared, children: dict[Connection, _Child]) -> None:
    """Fork a child for each request, and watch and reap the children, until the runner asks for the end."""
    while True:
        timeout_s = _time_to_the_next_deadline(children.values())
        ready = wait([control, *children], timeout_s)
        _finish_children(control, children, ready)
        if control not in ready:
            continue
        message = control.recv()
        if message is None:
            return
        number, request = message
        child = _fork(control, number, request, prepared)
        children[child.pipe] = child


def _time_to_the_next_deadline(children: Iterable[_Child]) -> float | None:
    """Seconds; None where no child runs, and only the runner can have something to say."""
    deadlines = [child.deadline for child in children]
    return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None


def _finish_children(control: Connection, children: dict[Connection, _Child], ready: Collection[object]) -> None:
    """End the children that reported or are past their deadline, and send their reports to the runner."""
    for child in list(children.values()):
        report = child.receive() if child.pipe in ready else None
        if report is None and child.deadline <= time.monotonic():
            report = child.overdue()
        if report is None:
            continue
        del children[child.pipe]
        child.pipe.close()
        exit_code = child.end()
        if not report.detail and report.result is None:
            report = _explained(report, exit_code)
        control.send((child.number, report._asdict()))


def _prepare(order: Mapping[str, Any]) -> _Prepared:
    task_types: dict[str, TaskType] = {}
    not_prepared: dict[str, str] = {}
    for name, reference in order["task_types"].items():
        module, _, attribute = reference.partition(":")
        try:
            task_types[name] = getattr(import_module(module), attribute)()
            task_types[name].prepare(Path(order["cache"]))
        except Exception as error:  # noqa: BLE001 - a plug-in that cannot start must not stop the others
            not_prepared[name] = _described(error)
    gc.collect()
    gc.freeze()  # or the collector would touch, and so copy, every page that the children share
    return _Prepared(task_types, not_prepared, order["memory_limit_bytes"])


def _fork(control: Connection, number: int, request: Mapping[str, Any], prepared: _Prepared) -> _Child:
    """Start a task in a child of its own, which reports over a pipe."""
    pipe, child_end = Pipe(duplex=False)
    with child_end:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            control.close()
            _run_child(child_end, request, prepared)
    with suppress(OSError):  # the child does the same: the group exists from here, whichever comes first
        os.setpgid(pid, pid)
    return _Child(number, pid, pipe, request["limit_s"], time.monotonic() + START_LIMIT_S)


def _explained(report: _Report, exit_code: int) -> _Report:
    """The report of a child that left none, with what its exit code says."""
    if exit_code >= 0:
        detail = f"the process ended without a report, with exit code {exit_code}"
        return report._replace(reason=f"exit_code_{exit_code}", detail=detail)
    detail = f"the process died by signal {-exit_code} ({signal.strsignal(-exit_code)})"
    if -exit_code == signal.SIGKILL:
        detail += ", as the system does to a process that takes too much memory"
    return report._replace(reason=f"signal_{-exit_code}", detail=detail)


def _run_child(pipe: Connection, request: Mapping[str, Any], prepared: _Prepared) -> NoReturn:
    exit_code = 1
    try:
        with suppress(PermissionError):  # the zygote was first
            os.setpgid(0, 0)
        signal.setitimer(signal.ITIMER_REAL, request["limit_s"] + START_LIMIT_S + ORPHAN_LIMIT_S)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sys.platform == "linux":  # elsewhere the kernel does not enforce it
            resource.setrlimit(resource.RLIMIT_AS, (prepared.memory_limit_bytes,) * 2)
        pipe.send(tuple(_work(pipe, request, prepared)))
        exit_code = 0
    except OSError:
        pass  # the zygote is gone: there is no one to report to
    except BaseException:  # noqa: BLE001 - the only other way out is os._exit
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(exit_code)


def _work(pipe: Connection, request: Mapping[str, Any], prepared: _Prepared) -> _Report:
    """Do the task, and send the instant at which its work began over the pipe."""
    name = request["task_type"]
    if name in prepared.not_prepared:
        return _not_begun("not_prepared", f"{name} could not be prepared: {prepared.not_prepared[name]}")
    task_type = prepared.task_types[name]
    try:
        # As JSON: strict models take a list for a tuple, or a string for a time, from JSON alone.
        payload = task_type.Payload.model_validate_json(json.dumps(request["payload"]))
    except ValidationError as error:
        return _not_begun("invalid_payload", f"the payload is not one of {name}: {in_one_line(error)}")

    started_at = time.monotonic()
    pipe.send(started_at)
    try:
        returned = task_type.run(payload, request["parameters"])
        duration_s = time.monotonic() - started_at
        return _Report(duration_s, None, "", "", _as_json(returned))
    except BaseException as error:  # noqa: BLE001 - sys.exit too: any exception of a task is a failure of it
        return _failed(time.monotonic() - started_at, error)


def _not_begun(reason: str, detail: str) -> _Report:
    return _Report(0.0, FailureKind.ERROR, reason, beginning(detail, DETAIL_CHARS), None)


def _as_json(returned: TaskResult) -> str:
    """A task's result as JSON. Raises InvalidResult, or an error of pydantic's, for one that cannot be sent or read."""
    result = TaskResult.model_validate(returned).model_dump_json()
    size = len(result.encode())
    if size > RESULT_LIMIT_BYTES:
        raise InvalidResult(f"expected a result of at most {RESULT_LIMIT_BYTES} bytes, but {size} came", "too_large")
    TaskResult.model_validate_json(result)  # a result that cannot be read again, nested too deep, is invalid
    return result


def _failed(duration_s: float, error: BaseException) -> _Report:
    """The report of a task that raised an exception."""
    if isinstance(error, MemoryError):
        return _Report(duration_s, FailureKind.ERROR, "out_of_memory", "out of memory", None)
    if isinstance(error, InvalidResult):
        reason = reason_of(error.failure_reason)
        return _Report(duration_s, FailureKind.INVALID_RESULT, reason, beginning(str(error), DETAIL_CHARS), None)
    if isinstance(error, ValidationError | PydanticSerializationError):
        detail = beginning(str(error), DETAIL_CHARS)
        return _Report(duration_s, FailureKind.INVALID_RESULT, failure_reason(error), detail, None)
    return _Report(duration_s, FailureKind.ERROR, failure_reason(error), _described(error), None)


def _described(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return beginning(f"{type(error).__name__}: {error}{place}", DETAIL_CHARS)
