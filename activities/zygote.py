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
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

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
    limit_s: float
    deadline: float
    started_at: float | None = None

    def receive(self, pipe: Connection) -> _Report | None:
        """The child's report, or None where it only reports that its work began. A closed pipe is an error."""
        try:
            received = pipe.recv()
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
    """Prepare the task types, then fork, watch and reap until the runner is gone."""
    # One thread, so that a fork copies no lock that another thread holds.
    control = Connection(control_fd)
    prepared = _prepare(control.recv())
    control.send(prepared.not_prepared)
    children: dict[Connection, _Child] = {}
    with suppress(OSError, EOFError):  # the runner is gone
        while True:
            ready = wait([control, *children], _time_to_the_next_deadline(children.values()))
            for pipe, child in list(children.items()):
                report = child.receive(pipe) if pipe in ready else None
                if report is None and child.deadline <= time.monotonic():
                    report = child.overdue()
                if report is not None:
                    del children[pipe]
                    _finish(control, pipe, child, report)
            if control in ready:
                message = control.recv()
                if message is None:
                    break
                number, request = message
                pipe, child = _fork(control, number, request, prepared)
                children[pipe] = child
    for child in children.values():
        child.end()


def _time_to_the_next_deadline(children: Iterable[_Child]) -> float | None:
    """Seconds; None where no child runs, and only the runner can have something to say."""
    deadlines = [child.deadline for child in children]
    return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None


def _finish(control: Connection, pipe: Connection, child: _Child, report: _Report) -> None:
    """End a child and send its report to the runner; one that left none is explained by its exit code."""
    pipe.close()
    exit_code = child.end()
    if not report.detail and report.result is None:
        reason, detail = _end_without_report(exit_code)
        report = report._replace(reason=reason, detail=detail)
    control.send((child.number, *report))


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


def _fork(
    control: Connection, number: int, request: Mapping[str, Any], prepared: _Prepared
) -> tuple[Connection, _Child]:
    """Start a task in a child of its own, which reports over the pipe that is returned."""
    pipe, child_end = Pipe(duplex=False)
    with child_end:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            control.close()
            _run_child(child_end, request, prepared)
    with suppress(OSError):  # the child does the same: the group exists from here, whichever comes first
        os.setpgid(pid, pid)
    return pipe, _Child(number, pid, request["limit_s"], time.monotonic() + START_LIMIT_S)


def _end_without_report(exit_code: int) -> tuple[str, str]:
    """The reason of a failure and its detail."""
    if exit_code >= 0:
        return f"exit_code_{exit_code}", f"the process ended without a report, with exit code {exit_code}"
    why = ", as the system does to a process that takes too much memory" if -exit_code == signal.SIGKILL else ""
    detail = f"the process died by signal {-exit_code} ({signal.strsignal(-exit_code)}){why}"
    return f"signal_{-exit_code}", detail


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
    name = request["task_type"]
    if name in prepared.not_prepared:
        detail = f"{name} could not be prepared: {prepared.not_prepared[name]}"
        return _Report(0.0, FailureKind.ERROR, "not_prepared", detail[:DETAIL_CHARS], None)
    task_type = prepared.task_types[name]
    try:
        # As JSON: strict models take a list for a tuple, or a string for a time, from JSON alone.
        payload = task_type.Payload.model_validate_json(json.dumps(request["payload"]))
    except ValidationError as error:
        detail = f"the payload is not one of {name}: {in_one_line(error)}"
        return _Report(0.0, FailureKind.ERROR, "invalid_payload", detail[:DETAIL_CHARS], None)
    started_at = time.monotonic()
    pipe.send(started_at)
    try:
        returned = task_type.run(payload, request["parameters"])
        duration_s = time.monotonic() - started_at
        result = TaskResult.model_validate(returned).model_dump_json()
        size = len(result.encode())
        if size > RESULT_LIMIT_BYTES:
            raise InvalidResult(
                f"expected a result of at most {RESULT_LIMIT_BYTES} bytes, but {size} came", "too_large"
            )
        TaskResult.model_validate_json(result)  # a result that cannot be read again, nested too deep, is invalid
        return _Report(duration_s, None, "", "", result)
    except InvalidResult as error:
        failure, reason, detail = FailureKind.INVALID_RESULT, reason_of(error.failure_reason), str(error)
    except (ValidationError, PydanticSerializationError) as error:
        failure, reason, detail = FailureKind.INVALID_RESULT, failure_reason(error), str(error)
    except MemoryError:
        failure, reason, detail = FailureKind.ERROR, "out_of_memory", "out of memory"
    except BaseException as error:  # noqa: BLE001 - sys.exit too: any exception of a task is a failure of it
        failure, reason, detail = FailureKind.ERROR, failure_reason(error), _described(error)
    return _Report(time.monotonic() - started_at, failure, reason, detail[:DETAIL_CHARS], None)


def _described(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"[:DETAIL_CHARS]
