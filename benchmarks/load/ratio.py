"""CPU per cycle, over that of a bare workflow with the same activities and updates, in turn in one run.

Batches of whole cycles, from the anomaly to the end of the watch, run on a `worker.py` of their own. After each, the
bare workflow (`bare`) does on another process, with another database, what the histories of that batch hold. Only the
server is asked where a cycle stands, so that no query costs either of them. The ratio is that of the totals.
"""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHandle

from benchmarks.load.bare import NAME, QUEUE, Script, Step
from benchmarks.load.play import TYPES, Stage, ballots, bids, proposal
from benchmarks.load.process import Child, cpu_s
from benchmarks.output import note
from schema import wire
from schema.messages.base import AgentMessage
from schema.messages.cycle import CycleResult, Ending, workflow_id
from schema.messages.proposals import Choice

BOUND = 1.25
TASKS = 200
# Long enough to feed the tasks between two attempts, so that both sides make the same number of them.
RULES = {"counter_poll_s": 5, "bake_window_s": 3}
# The windows that open one after another; each starts a timer.
BIDDING, PROPOSING, VOTING, EXPERIMENT = 1, 2, 3, 5
# Activities that are waited for until a deadline.
POLLS = frozenset({"open_experiment", "await_verdict", "await_thaw"})
COUNTED = {
    EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED: "activities",
    EventType.EVENT_TYPE_TIMER_STARTED: "timers",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED: "updates",
    EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED: "workflow tasks",
}
TIMEOUT_S, LOOK_S = 300.0, 0.25
Sent = list[tuple[str, AgentMessage]]


class RatioReport(BaseModel):
    """CPU in milliseconds per cycle; `events` are the means by kind, of a cycle and of the bare workflow."""

    ratio: float
    pairs: list[float]
    cycle_ms: float
    bare_ms: float
    cycles: int
    events: dict[str, tuple[float, float]]


class Played(BaseModel):
    """What one cycle did, and which messages it was sent: all that the bare workflow needs to do the same."""

    model_config = {"arbitrary_types_allowed": True}

    number: int
    script: Script
    messages: dict[int, Any]
    events: Counter[str]


async def measure(client: Client, address: str, home: Path, batches: int) -> RatioReport:
    """Play batches of one cycle for each type, and as many of the bare workflow, in turn; the first ones warm up."""
    stages = Stage(home / "cycles", RULES), Stage(home / "bare", RULES)
    spent: list[tuple[float, float]] = []
    events = Counter[str](), Counter[str]()
    async with (
        _served(["worker.py"], stages[0], address) as worker,
        _served(["-m", "benchmarks.load.bare"], stages[1], address) as bare,
    ):
        for batch in range(batches + 1):
            numbers = range(batch * len(TYPES), (batch + 1) * len(TYPES))
            before = cpu_s(worker.pid)
            played = await asyncio.gather(*(_cycle(client, stages[0], number) for number in numbers))
            cycles_s = cpu_s(worker.pid) - before
            before = cpu_s(bare.pid)
            bare_events = await asyncio.gather(*(_bare(client, stages[1], one) for one in played))
            bare_s = cpu_s(bare.pid) - before
            note(f"ratio: batch {batch} of {batches}: cycles {cycles_s:.2f} s, bare {bare_s:.2f} s of CPU")
            if batch:
                spent.append((cycles_s, bare_s))
                for one, other in zip(played, bare_events, strict=True):
                    events[0].update(one.events)
                    events[1].update(other)
    return _report(spent, events)


def _report(spent: Sequence[tuple[float, float]], events: tuple[Counter[str], Counter[str]]) -> RatioReport:
    cycles = len(spent) * len(TYPES)
    cycles_s, bare_s = sum(pair[0] for pair in spent), sum(pair[1] for pair in spent)
    for name in ("activities", "timers", "updates"):
        if events[0][name] != events[1][name]:
            raise RuntimeError(
                f"expected as many {name} as in the cycles, {events[0][name]}, but {events[1][name]} came"
            )
    return RatioReport(
        ratio=round(cycles_s / bare_s, 3),
        pairs=[round(one / other, 2) for one, other in spent],
        cycle_ms=round(1_000 * cycles_s / cycles, 1),
        bare_ms=round(1_000 * bare_s / cycles, 1),
        cycles=cycles,
        events={name: (events[0][name] / cycles, events[1][name] / cycles) for name in events[0]},
    )


@asynccontextmanager
async def _served(arguments: list[str], stage: Stage, address: str) -> AsyncIterator[Child]:
    child = Child(arguments, stage.environment(address), stage.home / "worker.log")
    try:
        yield child
    finally:
        await asyncio.to_thread(child.end, signal.SIGTERM)
        stage.database.close()


async def _cycle(client: Client, stage: Stage, number: int) -> Played:
    """Play a cycle to its end. Raises RuntimeError where it ends otherwise than by a promotion."""
    request = stage.request(number)
    cycle, task_type = workflow_id(request.subject), TYPES[number % len(TYPES)]
    handle: WorkflowHandle[Any, Any] = await client.start_workflow(
        wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue=wire.TASK_QUEUE, result_type=CycleResult
    )
    run_id = handle.first_execution_run_id
    assert run_id is not None

    def signed(kind: str, message: AgentMessage) -> tuple[str, AgentMessage]:
        return kind, stage.signed(message, cycle, run_id, kind)

    messages: dict[int, Sent] = {BIDDING: [signed(wire.PLACE_BID, bid) for bid in bids(stage.agents)]}
    await _send(handle, BIDDING, messages)
    await _timers(handle, PROPOSING)
    cycle_id = f"{request.subject}#1"
    (award,) = stage.database.rows("SELECT agent_id FROM award WHERE cycle_id = :id", id=cycle_id)
    proposed = proposal(award["agent_id"], task_type, 1 + number // len(TYPES))
    messages[PROPOSING] = [signed(wire.SUBMIT_PROPOSAL, proposed)]
    await _send(handle, PROPOSING, messages)
    votes = ballots(proposed, stage.agents, Choice.APPROVE)[:3]
    messages[VOTING] = [signed(wire.CAST_BALLOT, ballot) for ballot in votes]
    await _send(handle, VOTING, messages)
    await _timers(handle, EXPERIMENT)
    await asyncio.to_thread(stage.feed, cycle_id, task_type, TASKS)
    result: CycleResult = await asyncio.wait_for(handle.result(), TIMEOUT_S)
    if result.end is None or result.end.ending is not Ending.PROMOTED:
        raise RuntimeError(f"expected a promotion, but {cycle}: {result.end}")
    events = list((await handle.fetch_history()).events)
    return Played(number=number, script=script(events), messages=messages, events=_counted(events))


async def _bare(client: Client, stage: Stage, played: Played) -> Counter[str]:
    """Let the bare workflow do what a cycle did, with the same messages; what its history holds, by kind."""
    handle: WorkflowHandle[Any, Any] = await client.start_workflow(
        NAME, played.script, id=f"bare-{played.number}", task_queue=QUEUE, result_type=int
    )
    for window in played.messages:
        await _send(handle, window, played.messages)
    await _timers(handle, EXPERIMENT)
    task_type = TYPES[played.number % len(TYPES)]
    await asyncio.to_thread(stage.feed, f"{stage.request(played.number).subject}#1", task_type, TASKS)
    await asyncio.wait_for(handle.result(), TIMEOUT_S)
    return _counted((await handle.fetch_history()).events)


async def _send(handle: WorkflowHandle[Any, Any], window: int, messages: dict[int, Sent]) -> None:
    """Send the messages of a window once it is open."""
    await _timers(handle, window)
    await asyncio.gather(*(handle.execute_update(kind, message) for kind, message in messages[window]))


async def _timers(handle: WorkflowHandle[Any, Any], count: int) -> None:
    """Wait until a workflow has started so many timers."""
    async with asyncio.timeout(TIMEOUT_S):
        while _counted((await handle.fetch_history()).events)["timers"] < count:
            await asyncio.sleep(LOOK_S)


def _counted(events: Sequence[HistoryEvent]) -> Counter[str]:
    return Counter(COUNTED[event.event_type] for event in events if event.event_type in COUNTED)


def script(events: Sequence[HistoryEvent]) -> Script:
    """What a bare workflow must do, to do what a cycle with this history did."""
    steps: list[Step] = []
    messages, window_s = 0, None
    for event in events:
        match event.event_type:
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
                messages += 1
            case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                scheduled = event.activity_task_scheduled_event_attributes
                arguments = [json.loads(payload.data) for payload in scheduled.input.payloads]
                name = scheduled.activity_type.name
                steps.append(Step(activity=name, arguments=arguments, messages=messages, message_window_s=window_s))
                window_s = None
            case EventType.EVENT_TYPE_TIMER_STARTED:
                timer = event.timer_started_event_attributes
                seconds = timer.start_to_fire_timeout.ToTimedelta() / timedelta(seconds=1)
                if steps[-1].activity in POLLS and steps[-1].window_s is None:
                    steps[-1] = steps[-1].model_copy(update={"window_s": seconds})
                else:
                    window_s = seconds
    return Script(steps=steps)
