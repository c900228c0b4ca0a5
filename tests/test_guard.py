"""What is kept from a workflow: events before the task that they belong to, and an eviction while it runs."""

import asyncio
import base64
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from threading import Event
from typing import Any, ClassVar, cast

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.client import Client, OutboundInterceptor, QueryWorkflowInput, WorkflowHandle, WorkflowQueryFailedError
from temporalio.worker import (
    Replayer,
    UnsandboxedWorkflowRunner,
    Worker,
    WorkflowInstance,
    WorkflowInstanceDetails,
    WorkflowRunner,
)

from schema import connection, wire
from schema.codec import Keyring, configured
from schema.messages.cycle import Ending
from starter import preflight
from tests import builders
from tests.patience import PATIENCE_S
from tests.test_improvement_cycle import Stage
from tests.test_upgrade import Installation, address, ending, installation
from worker import WORKFLOWS
from workflows import plugin as plugins
from workflows.guard import Guard, StillRuns
from workflows.plugin import plugin

__all__ = ["installation"]

WINDOW_S = 10.0
# Which of the two a new worker gets first is chance, the query or the window's task.
CYCLES = 32
PATIENCE = timedelta(seconds=PATIENCE_S)


# ---- each sequence of activations by itself

START, QUERY, UPDATE = "initialize_workflow", "query_workflow", "do_update"
TIMER, SIGNAL, ACTIVITY = "fire_timer", "signal_workflow", "resolve_activity"
# The last event, and the size and the second of the last task's start, of each activation; with what is in it.
SEQUENCES: dict[str, tuple[list[tuple[int, int, int, str]], str]] = {
    "a query alone": ([(3, 180, 1, START), (6, 180, 1, QUERY)], "given"),
    "a task": ([(3, 180, 1, START), (9, 727, 2, ACTIVITY)], "given"),
    "a task at a time that stands still": ([(3, 180, 1, START), (9, 727, 1, ACTIVITY)], "given"),
    "a server that tells no size": ([(3, 0, 1, START), (9, 0, 1, TIMER)], "given"),
    "a timer without its task": ([(9, 727, 2, ACTIVITY), (13, 727, 2, TIMER)], "kept"),
    "a signal without its task": ([(9, 727, 2, ACTIVITY), (11, 727, 2, SIGNAL)], "kept"),
    "an activity that was cancelled here": ([(9, 727, 2, SIGNAL), (9, 727, 2, ACTIVITY)], "given"),
    "a timer after a refused update": ([(5, 300, 1, START), (7, 300, 2, UPDATE), (7, 300, 2, TIMER)], "kept"),
    "an activity after a refused update": ([(5, 300, 1, START), (7, 300, 2, UPDATE), (8, 300, 2, ACTIVITY)], "kept"),
    "updates while the time stands still": (
        [(7, 300, 2, UPDATE), (5, 300, 2, QUERY), (7, 300, 2, UPDATE)],
        "given",
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_what_has_no_task_is_kept_and_a_query_after_it_is_to_be_repeated(name: str) -> None:
    sequence, expected = SEQUENCES[name]
    recording = Recording()
    guarded = Guard(recording, Keyring({}, None)).create_instance(cast(WorkflowInstanceDetails, None))

    answers = [guarded.activate(activation(*each)) for each in sequence]
    events, size, second, _ = sequence[-1]
    asked = guarded.activate(activation(events, size, second, QUERY))
    guarded.activate(activation(0, 0, 0, "remove_from_cache"))

    given = [each[-1] for each in (sequence if expected == "given" else sequence[:-1])]
    assert all(answer.HasField("successful") for answer in answers)
    assert asked.failed.failure.message == ("" if expected == "given" else wire.ASK_AGAIN)
    assert recording.given == [*given, *([QUERY] if expected == "given" else []), "remove_from_cache"]


def activation(events: int, size: int, second: int, kind: str) -> WorkflowActivation:
    made = WorkflowActivation(history_length=events, history_size_bytes=size, timestamp=Timestamp(seconds=second))
    getattr(made.jobs.add(), kind).SetInParent()
    return made


class Recording(WorkflowRunner, WorkflowInstance):
    """A workflow that does nothing but tell what it was given."""

    def __init__(self) -> None:
        self.given: list[str | None] = []

    def prepare_workflow(self, defn: Any) -> None: ...

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return self

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        self.given.extend(job.WhichOneof("variant") for job in act.jobs)
        completion = WorkflowActivationCompletion()
        completion.successful.SetInParent()
        return completion

    def get_serialization_context(self, command_info: Any) -> Any: ...

    def get_external_store_context(self, command_info: Any) -> Any: ...

    def get_info(self) -> Any: ...

    def get_thread_id(self) -> int | None: ...


class Waiting(Recording):
    """A workflow whose activations take until they may end."""

    def __init__(self) -> None:
        super().__init__()
        self.runs, self.may_end = Event(), Event()

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        self.runs.set()
        assert self.may_end.wait(PATIENCE_S)
        return super().activate(act)


def test_an_eviction_waits_for_the_activation_before_it_and_keeps_no_thread() -> None:
    waiting = Waiting()
    guarded = Guard(waiting, Keyring({}, None)).create_instance(cast(WorkflowInstanceDetails, None))
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(guarded.activate, activation(3, 180, 1, START))
        assert waiting.runs.wait(PATIENCE_S)
        with pytest.raises(StillRuns):
            guarded.activate(activation(0, 0, 0, "remove_from_cache"))
        waiting.may_end.set()
        running.result(PATIENCE_S)
    guarded.activate(activation(0, 0, 0, "remove_from_cache"))

    assert waiting.given == [START, "remove_from_cache"]


# ---- the client


@pytest.mark.parametrize(
    ("failures", "asked", "fails"),
    [
        ([], 1, None),
        ([wire.ASK_AGAIN], 2, None),
        ([wire.ASK_AGAIN] * 3, 3, wire.ASK_AGAIN),
        ([wire.STARVED], 2, None),
        (["a defect"], 1, "a defect"),
    ],
)
async def test_a_query_that_came_too_early_or_found_no_processor_is_repeated_and_no_other(
    failures: list[str], asked: int, fails: str | None
) -> None:
    server = Server(failures)
    client = connection.AsksAgain().intercept_client(server)

    if fails is None:
        assert await client.query_workflow(cast(QueryWorkflowInput, None)) == "answered"
    else:
        with pytest.raises(WorkflowQueryFailedError, match=fails):
            await client.query_workflow(cast(QueryWorkflowInput, None))

    assert server.asked == asked


class Server(OutboundInterceptor):
    """Answers once its failures are told."""

    def __init__(self, failures: list[str]) -> None:
        self._failures = list(failures)
        self.asked = 0

    async def query_workflow(self, input: QueryWorkflowInput) -> Any:
        self.asked += 1
        if self._failures:
            raise WorkflowQueryFailedError(self._failures.pop(0))
        return "answered"


# ---- on a real server


@workflow.defn
class Busy:
    """Takes longer for the first query than the SDK lets a workflow have, and its eviction wait."""

    queries: ClassVar[int] = 0
    ended: ClassVar[int] = 0

    @workflow.run
    async def run(self) -> None:
        await asyncio.Event().wait()

    @workflow.query
    def status(self) -> str:
        Busy.queries += 1
        if Busy.queries == 1:
            time.sleep(4)
        Busy.ended += 1
        return "answered"


@pytest.mark.parametrize("key", ["", f"k1:{base64.b64encode(bytes(32)).decode()}"], ids=["plain", "encrypted"])
async def test_a_query_to_a_worker_that_had_no_time_is_answered(
    temporal: Client, task_queue: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAUTILUS_CODEC_KEYS", key)
    monkeypatch.setattr(Busy, "queries", 0)
    monkeypatch.setattr(Busy, "ended", 0)
    client = await connection.connect(address(temporal), plugins=[plugin()])
    runner = Guard(UnsandboxedWorkflowRunner(), configured())
    async with Worker(client, task_queue=task_queue, workflows=[Busy], workflow_runner=runner):
        handle = await client.start_workflow(Busy.run, id=task_queue, task_queue=task_queue)
        # Not along with the first task, which the server would send again: alone.
        await happened(handle, EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED)
        said = await handle.query(Busy.status, rpc_timeout=PATIENCE)
        await handle.terminate("the test is over")

    assert said == "answered"
    assert Busy.ended == Busy.queries >= 2  # none was interrupted


@workflow.defn
class BusyAtFirst:
    """Takes longer than the SDK lets a workflow have, in so many replays after its run."""

    runs: ClassVar[int] = 0
    starved: ClassVar[int] = 0

    @workflow.run
    async def run(self) -> None:
        BusyAtFirst.runs += 1
        if 1 < BusyAtFirst.runs <= 1 + BusyAtFirst.starved:
            time.sleep(4)
        await asyncio.Event().wait()


@pytest.mark.parametrize(("starved", "failure"), [(1, ""), (3, preflight.BUSY)], ids=["once", "always"])
async def test_a_workflow_that_had_no_processor_in_a_replay_is_replayed_again(
    temporal: Client, task_queue: str, starved: int, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BusyAtFirst, "runs", 0)
    monkeypatch.setattr(BusyAtFirst, "starved", starved)
    monkeypatch.setattr(plugins, "sandbox", UnsandboxedWorkflowRunner)
    client = await connection.connect(address(temporal), plugins=[plugin()])
    async with Worker(client, task_queue=task_queue, workflows=[BusyAtFirst]):
        handle = await client.start_workflow(BusyAtFirst.run, id=task_queue, task_queue=task_queue)
        await happened(handle, EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED)
    async with asyncio.timeout(PATIENCE_S):
        while not (replays := [one async for one in preflight.replays(client, [BusyAtFirst], task_queue)]):
            await asyncio.sleep(0.05)  # the server lists a workflow a moment after it began
    await handle.terminate("the test is over")

    assert replays == [preflight.Replay(task_queue, failure)]
    assert BusyAtFirst.runs == 1 + min(starved + 1, 3)


async def test_a_query_that_waits_for_a_worker_while_a_window_closes_leaves_a_cycle_that_replays(
    installation: Installation,
) -> None:
    rules = builders.rules(bid_window_s=WINDOW_S)
    short = replace(installation, platform=builders.platform(cycle=rules))
    async with short.release():
        stages = [await short.opens(str(number)) for number in range(CYCLES)]
        for stage in stages:
            handle = short.client.get_workflow_handle(stage.cycle)
            await happened(handle, EventType.EVENT_TYPE_TIMER_STARTED)
    # As other programs ask: without our plugin, so that nobody asks again for them.
    plain = await Client.connect(address(short.client), namespace=wire.NAMESPACE)
    strangers = [asyncio.create_task(query(plain, stage)) for stage in stages[::2]]
    ours = [asyncio.create_task(stage.client.status(stage.cycle)) for stage in stages[1::2]]
    await asyncio.gather(*(timer_fired(stage) for stage in stages))
    async with short.release():
        refusals = await asyncio.gather(*strangers)
        answers = await asyncio.gather(*ours)
        results = [await stage.result() for stage in stages]
    histories = [await short.client.get_workflow_handle(stage.cycle).fetch_history() for stage in stages]

    assert wire.ASK_AGAIN in refusals
    assert set(refusals) <= {None, wire.ASK_AGAIN}
    assert [answer.cycle_id for answer in answers] == [result.status.cycle_id for result in results[1::2]]
    assert [ending(result) for result in results] == [Ending.NO_BIDS] * CYCLES
    for history in histories:
        assert [event.event_type for event in history.events].count(EventType.EVENT_TYPE_TIMER_STARTED) == 1
        await Replayer(workflows=WORKFLOWS, plugins=[plugin(only_reads=True)]).replay_workflow(history)


async def query(client: Client, stage: Stage) -> str | None:
    """Why a query was not answered; None where it was."""
    try:
        await client.get_workflow_handle(stage.cycle).query(wire.STATUS, rpc_timeout=PATIENCE)
    except WorkflowQueryFailedError as error:
        return error.message
    return None


async def timer_fired(stage: Stage) -> None:
    """Wait until the window's timer has fired, which needs no worker."""
    await happened(stage.client.temporal.get_workflow_handle(stage.cycle), EventType.EVENT_TYPE_TIMER_FIRED)


async def happened(handle: WorkflowHandle[Any, Any], kind: EventType.ValueType) -> None:
    async for event in handle.fetch_history_events(wait_new_event=True):
        if event.event_type == kind:
            return
