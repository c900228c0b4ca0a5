"""What the platform may rely on when it runs a task: real processes, killed at real limits."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from activities.task_runner import RunnerStopped, TaskRunner, UnknownTaskType
from activities.task_types import InvalidResult, TaskPayload, TaskResult, TaskType
from activities.task_types.monte_carlo import MonteCarlo
from activities.zygote import RESULT_LIMIT_BYTES
from schema.failure_kinds import FailureKind
from schema.messages.base import Value
from tests.patience import PATIENCE_S

LIMIT_S = PATIENCE_S  # of a task that ends by itself: far more than it needs
KEY = "ghp_16C7e42F292c6912E7710c838347Ae178B4a"  # pragma: allowlist secret


class Act(TaskPayload):
    """What the task does. `call` is a socket it connects to, so that a test knows that it runs and when it is dead."""

    act: str
    call: str = ""


class Probe:
    """A task type that does what a task must not."""

    name: ClassVar[str] = "probe"
    Payload: ClassVar[type[Act]] = Act

    def prepare(self, _cache: Path) -> None:
        """Nothing is shared."""

    def run(self, payload: Act, parameters: Mapping[str, Value]) -> TaskResult:
        line = socket.socket(socket.AF_UNIX)
        if payload.call:
            line.connect(payload.call)
        match payload.act:
            case "hang":
                signal.pause()
            case "hang with a child":
                os.fork()
                signal.pause()
            case "leave a child":
                if os.fork() == 0:
                    signal.pause()
            case "wait":
                line.recv(1)
            case "invalid":
                raise InvalidResult("it does not hold")
            case "refute":
                raise InvalidResult("it does not hold", "not_exact_enough")
            case "raise":
                raise ValueError("it broke")
            case "exit":
                sys.exit(3)
            case "vanish":
                os._exit(3)
            case "crash":
                signal.signal(signal.SIGSEGV, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGSEGV)
            case "quote a key":
                raise ValueError("a " * 235 + KEY)
            case "eat memory":
                bytearray(1 << 40)
            case "say too much":
                return TaskResult(summary="x" * (RESULT_LIMIT_BYTES + 1), quality=1.0)
            case "nest too deep":
                details: dict[str, Any] = {}
                for _ in range(220):  # it can be written, and not read again
                    details = {"in": details}
                return TaskResult(summary="", quality=1.0, details=details)
            case "boast":
                return TaskResult(summary="perfect", quality=2.0)
            case "print":
                print("a line on standard output")  # noqa: T201 - that it does is the point
            case "threads":
                return TaskResult(summary=os.environ["OMP_NUM_THREADS"], quality=1.0)
        return TaskResult(summary=str(parameters.get("probe.echo", "")), quality=1.0, details={"pid": os.getpid()})

    def sample(self, unit_id: str) -> Act:
        return Act(act=unit_id)


class Unprepared(Probe):
    name: ClassVar[str] = "unprepared"

    def prepare(self, _cache: Path) -> None:
        raise OSError("the disk is full")


class Unready(Probe):
    """Prepares for ever, and calls the test from there."""

    name: ClassVar[str] = "unready"

    def prepare(self, cache: Path) -> None:
        line = socket.socket(socket.AF_UNIX)
        line.connect(str(cache / "call"))
        signal.pause()


class Line:
    """The other end of a task's call."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "call")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen()
        self._listener.settimeout(PATIENCE_S)

    def answered(self) -> socket.socket:
        call, _ = self._listener.accept()
        call.settimeout(PATIENCE_S)
        return call

    def close(self) -> None:
        self._listener.close()


def everyone_hung_up(call: socket.socket) -> bool:
    """True once no process holds the other end; waits for it. A dead process holds nothing, a living one does."""
    with call:
        return call.recv(1) == b""


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskRunner]:
    types: dict[str, TaskType] = {"probe": Probe(), "unprepared": Unprepared(), "monte_carlo": MonteCarlo()}
    with TaskRunner(types, tmp_path_factory.mktemp("cache")) as runner:
        yield runner


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path)
    yield line
    line.close()


def test_a_task_gets_its_payload_and_parameters_and_its_result_comes_back(runner: TaskRunner) -> None:
    execution = runner.run("probe", {"act": "echo"}, {"probe.echo": 3}, LIMIT_S)

    assert execution.failure is None
    assert execution.result is not None
    assert execution.result.summary == "3"
    assert execution.result.details["pid"] not in (os.getpid(), runner.zygote_pid)
    assert 0 <= execution.duration_s < LIMIT_S


def test_a_real_task_runs(runner: TaskRunner) -> None:
    execution = runner.run("monte_carlo", MonteCarlo().sample("unit-1"), {"monte_carlo.samples": 1_000_000}, LIMIT_S)

    assert execution.failure is None, execution.detail
    assert execution.duration_s > 0


@pytest.mark.parametrize(
    ("act", "failure", "reason", "detail"),
    [
        ("invalid", FailureKind.INVALID_RESULT, "", "it does not hold"),
        ("refute", FailureKind.INVALID_RESULT, "not_exact_enough", "it does not hold"),
        ("boast", FailureKind.INVALID_RESULT, "ValidationError", "quality"),  # a quality outside 0 to 1 is not a result
        ("nest too deep", FailureKind.INVALID_RESULT, "ValidationError", "recursion limit"),
        ("say too much", FailureKind.INVALID_RESULT, "too_large", "at most 1048576 bytes"),
        ("raise", FailureKind.ERROR, "ValueError", "ValueError: it broke"),
        ("exit", FailureKind.ERROR, "SystemExit", "SystemExit: 3"),
        ("vanish", FailureKind.ERROR, "exit_code_3", "exit code 3"),
        ("crash", FailureKind.ERROR, "signal_11", "signal 11 (Segmentation fault)"),
        ("eat memory", FailureKind.ERROR, "out_of_memory", "out of memory"),
    ],
)
def test_a_failure_has_a_kind_a_reason_and_a_detail(
    runner: TaskRunner, act: str, failure: FailureKind, reason: str, detail: str
) -> None:
    execution = runner.run("probe", Act(act=act), {}, LIMIT_S)

    assert (execution.failure, execution.reason) == (failure, reason)
    assert detail in execution.detail
    assert execution.result is None


def test_a_detail_that_is_cut_does_not_end_with_half_a_key(runner: TaskRunner) -> None:
    detail = runner.run("probe", Act(act="quote a key"), {}, LIMIT_S).detail

    assert detail == "ValueError: " + "a " * 235


def test_a_task_is_killed_at_its_limit(runner: TaskRunner, line: Line) -> None:
    execution = runner.run("probe", Act(act="hang", call=line.address), {}, 0.1)

    assert execution.failure is FailureKind.TIMEOUT
    assert execution.detail == "killed at its limit of 0.1 s"
    assert 0.1 <= execution.duration_s < 20
    assert everyone_hung_up(line.answered())


@pytest.mark.parametrize(
    ("act", "failure"),
    [
        ("hang with a child", FailureKind.TIMEOUT),
        ("leave a child", None),  # the task ended well; what it started still ends with it
    ],
)
def test_nothing_that_a_task_started_outlives_it(
    runner: TaskRunner, line: Line, act: str, failure: FailureKind | None
) -> None:
    execution = runner.run("probe", Act(act=act, call=line.address), {}, LIMIT_S if failure is None else 0.1)

    assert execution.failure is failure
    assert everyone_hung_up(line.answered())


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "act: expected a value, but none came"),
        ({"act": 3}, "act: expected a valid string, but 3 came"),
        ({"act": "x", "b": 1}, "b: "),
    ],
)
def test_a_payload_that_is_not_of_its_type_fails_with_the_name_of_the_field(
    runner: TaskRunner, payload: dict[str, Any], field: str
) -> None:
    execution = runner.run("probe", payload, {}, LIMIT_S)

    assert execution.failure is FailureKind.ERROR
    assert field in execution.detail


def test_a_task_type_that_cannot_be_prepared_fails_alone_and_says_why(runner: TaskRunner) -> None:
    execution = runner.run("unprepared", {"act": "echo"}, {}, LIMIT_S)

    assert execution.failure is FailureKind.ERROR
    assert "the disk is full" in execution.detail


def test_a_task_type_that_is_not_installed_is_not_a_failed_task(runner: TaskRunner) -> None:
    with pytest.raises(UnknownTaskType, match="probe"):
        runner.run("alchemy", {}, {}, LIMIT_S)


def test_what_a_task_prints_stays_off_standard_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with TaskRunner({"probe": Probe()}, tmp_path) as runner:
        runner.run("probe", Act(act="print"), {}, LIMIT_S)

    out, err = capfd.readouterr()
    assert out == ""
    assert "a line on standard output" in err


def test_numeric_libraries_get_one_thread(runner: TaskRunner) -> None:
    execution = runner.run("probe", Act(act="threads"), {}, LIMIT_S)

    assert execution.result is not None
    assert execution.result.summary == "1"


def test_threads_run_tasks_at_once_and_each_gets_its_own_result(runner: TaskRunner) -> None:
    def echo(i: int) -> str:
        execution = runner.run("probe", Act(act="echo"), {"probe.echo": i}, LIMIT_S)
        return execution.result.summary if execution.result else execution.detail

    with ThreadPoolExecutor(8) as threads:
        echoes = list(threads.map(echo, range(100)))

    assert echoes == [str(i) for i in range(100)]


def test_two_tasks_run_at_the_same_time(runner: TaskRunner, line: Line) -> None:
    with ThreadPoolExecutor(2) as threads:
        tasks = [threads.submit(runner.run, "probe", Act(act="wait", call=line.address), {}, LIMIT_S) for _ in "ab"]
        calls = [line.answered() for _ in tasks]  # both are in their work, and neither has ended
        for call in calls:
            call.close()

    assert [task.result().failure for task in tasks] == [None, None]


def test_a_runner_whose_zygote_died_starts_another(runner: TaskRunner) -> None:
    first = runner.zygote_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)

    execution = runner.run("probe", Act(act="echo"), {}, LIMIT_S)

    assert execution.failure is None, execution.detail
    assert runner.zygote_pid != first


def test_a_task_whose_zygote_died_begins_again_and_has_not_failed(runner: TaskRunner, line: Line) -> None:
    with ThreadPoolExecutor(1) as threads:
        task = threads.submit(runner.run, "probe", Act(act="wait", call=line.address), {}, LIMIT_S)
        with line.answered():
            assert runner.zygote_pid is not None
            os.kill(runner.zygote_pid, signal.SIGKILL)
            line.answered().close()

    assert task.result().failure is None


def test_closing_ends_every_process_and_tells_who_waits(tmp_path: Path, line: Line) -> None:
    runner = TaskRunner({"probe": Probe()}, tmp_path)
    with ThreadPoolExecutor(1) as threads:
        task = threads.submit(runner.run, "probe", Act(act="hang with a child", call=line.address), {}, LIMIT_S)
        call = line.answered()
        zygote = runner.zygote_pid
        runner.close()

    with pytest.raises(RunnerStopped):  # which says nothing of the task: a worker that stops fails nobody's work
        task.result()
    assert everyone_hung_up(call)
    assert zygote is not None
    with pytest.raises(ProcessLookupError):
        os.kill(zygote, 0)
    with pytest.raises(RunnerStopped):
        runner.run("probe", Act(act="echo"), {}, LIMIT_S)


def test_a_runner_that_still_prepares_is_closed_at_once(tmp_path: Path, line: Line) -> None:
    runner = TaskRunner({"unready": Unready()}, tmp_path)
    with ThreadPoolExecutor(2) as threads:
        starting = threads.submit(runner.start)
        call = line.answered()
        threads.submit(runner.close).result(PATIENCE_S)

        with pytest.raises(RunnerStopped, match="closed while it prepared"):
            starting.result(PATIENCE_S)
    assert everyone_hung_up(call)


def test_a_killed_platform_leaves_no_process(tmp_path: Path, line: Line) -> None:
    platform = f"""
        from pathlib import Path
        from activities.task_runner import TaskRunner
        from tests.test_task_runner import Act, Probe

        TaskRunner({{"probe": Probe()}}, Path({str(tmp_path)!r})).run(
            "probe", Act(act="hang with a child", call={line.address!r}), {{}}, 600
        )
    """
    # `-c`: the runner must not need its caller's main module either.
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(platform)])
    call = line.answered()
    process.kill()
    process.wait()

    assert everyone_hung_up(call)


def test_an_exhausted_wait_does_not_block_other_threads(runner: TaskRunner, line: Line) -> None:
    """The lock is around words with the zygote alone: a task that hangs must not hold up the next."""
    finished = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        hanging = threads.submit(runner.run, "probe", Act(act="wait", call=line.address), {}, LIMIT_S)
        with line.answered():
            threads.submit(runner.run, "probe", Act(act="echo"), {}, LIMIT_S).add_done_callback(
                lambda _: finished.set()
            )
            assert finished.wait(PATIENCE_S)
            assert not hanging.done()
