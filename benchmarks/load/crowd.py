"""A crowd of cycles on four workers that join and leave, and then all die at once.

Every cycle is opened, so that all are open together. Then agents bid, propose and vote in a hundred cycles at a time,
by signed updates and signals, while one worker after another is stopped (SIGTERM) or killed (SIGKILL) and another one
joins. With a vote open in every cycle, all workers are killed; while there is none, some agents send signals. Four
workers start again, and every cycle must show what it has accepted, and go on to its end.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from pydantic import BaseModel
from temporalio.client import (
    Client,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.service import RPCError

from benchmarks.load.play import SEED, Stage, ballots, bids, proposal
from benchmarks.load.process import Child, rss_kb
from benchmarks.output import note
from schema import wire
from schema.messages.base import AgentMessage
from schema.messages.cycle import CycleResult, CycleStatus, Ending, Phase, workflow_id
from schema.messages.proposals import Ballot, Choice
from starter.client import NautilusClient

WORKERS, AT_ONCE = 4, 100
# The last bid closes the bidding; two of the three ballots decide.
AGENTS = ("ada", "bob", "cyd", "dee")
# What a worker takes without cycles is measured with so many of them: by then it has loaded everything.
WARM = 100
# A worker leaves this often, and another one joins soon.
LEAVE_EVERY_S, JOIN_AFTER_S = 5.0, 1.0
STARTED = "worker.started"
# While no worker runs, agents signal to every tenth cycle.
SIGNALLED = 10
# A cycle that was cached by a dead worker waits for 10 s; with a hundred at a time and two cores, for some of those.
PATIENCE_S, RETRY_S, LIST_S = 900.0, 0.5, 1.0
UNANSWERED = (RPCError, WorkflowQueryFailedError, WorkflowUpdateRPCTimeoutOrCancelledError)
Result = TypeVar("Result")


class CrowdReport(BaseModel):
    """`answered` cycles showed their status after all workers had died; `recovered` ones went on to their end."""

    cycles: int
    answered: int
    recovered: int
    messages: int
    messages_lost: int
    rss_per_cycle_kb: float
    stopped: int
    killed: int
    recovery_s: float


class Workers:
    """Processes of `worker.py`, of which one leaves and another joins."""

    def __init__(self, stage: Stage, address: str) -> None:
        self._stage = stage
        self._environment = stage.environment(address)
        self._random = Random(SEED)
        self._all: list[Child] = []
        self.running: list[Child] = []
        self.left = Counter[signal.Signals]()

    def join(self) -> Child:
        child = Child(["worker.py"], self._environment, self._stage.home / f"worker-{len(self._all)}.log")
        self._all.append(child)
        self.running.append(child)
        return child

    async def come_and_go(self) -> None:
        """One leaves, and another joins, until this is cancelled; the next one leaves when that one serves."""
        while True:
            await asyncio.sleep(LEAVE_EVERY_S)
            leaving = self.running.pop(self._random.randrange(len(self.running)))
            how = self._random.choice((signal.SIGTERM, signal.SIGKILL))
            self.left[how] += 1
            leaving.process.send_signal(how)
            await asyncio.sleep(JOIN_AFTER_S)
            self.join()
            await asyncio.to_thread(leaving.process.wait)
            await self.serving()

    async def serving(self) -> None:
        """Wait until all that have joined serve."""
        for child in self.running:
            while STARTED not in child.log.read_text():
                await asyncio.sleep(RETRY_S)

    def kill_all(self) -> None:
        """All at once, and those that are about to leave."""
        for child in self._all:
            child.process.send_signal(signal.SIGKILL)
        for child in self._all:
            child.process.wait()
        self.running = []


class Phases:
    """In which phase each cycle is, as the server lists them."""

    def __init__(self, client: NautilusClient) -> None:
        self._client = client
        self._phases: dict[str, str] = {}
        self._changed = asyncio.Condition()

    async def keep_reading(self) -> None:
        while True:
            listed = await patiently(lambda: self._client.tasks(None, most=10_000, workflows=(wire.IMPROVEMENT_CYCLE,)))
            async with self._changed:
                self._phases = {cycle.workflow_id: cycle.phase for cycle in listed}
                self._changed.notify_all()
            await asyncio.sleep(LIST_S)

    async def reach(self, cycles: Iterable[str], phase: Phase) -> None:
        """Wait until all of these cycles are in a phase."""
        wanted = list(cycles)
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: all(self._phases.get(cycle) == phase for cycle in wanted))


class Player:
    """The agents of one cycle, and all of theirs that the server has acknowledged."""

    def __init__(self, stage: Stage, handle: WorkflowHandle[Any, CycleResult]) -> None:
        self._stage = stage
        self._handle = handle
        self._ballots: list[Ballot] = []
        self.acknowledged: list[AgentMessage] = []

    @classmethod
    async def open(cls, client: Client, stage: Stage, number: int) -> "Player":
        request = stage.request(number)
        handle: WorkflowHandle[Any, CycleResult] = await client.start_workflow(
            wire.IMPROVEMENT_CYCLE,
            request,
            id=workflow_id(request.subject),
            task_queue=wire.TASK_QUEUE,
            result_type=CycleResult,
        )
        return cls(stage, handle)

    @property
    def cycle(self) -> str:
        return self._handle.id

    async def play(self, phases: Phases) -> None:
        """Bid, propose, and cast the first of the ballots: one more decides the vote."""
        *updates, last = bids(self._stage.agents)
        await asyncio.gather(*(self._update(wire.PLACE_BID, bid) for bid in updates))
        await self._signal(wire.PLACE_BID, last)
        await phases.reach([self.cycle], Phase.PROPOSING)
        status = await self.status()
        assert status.award is not None
        proposed = proposal(status.award.agent_id, status.subject.partition(":")[2], 1)
        self._ballots = ballots(proposed, self._stage.agents, Choice.REJECT)
        await self._update(wire.SUBMIT_PROPOSAL, proposed)
        await phases.reach([self.cycle], Phase.VOTING)
        await self._update(wire.CAST_BALLOT, self._ballots.pop(0))

    async def signal_ballot(self) -> None:
        """Cast the ballot that decides, while no worker may be there to take it."""
        await self._signal(wire.CAST_BALLOT, self._ballots.pop(0))

    async def status(self) -> CycleStatus:
        return await patiently(lambda: self._handle.query(wire.STATUS, result_type=CycleStatus))

    async def finish(self) -> CycleResult:
        """Cast the ballot that decides, unless it was signalled, and wait for the end."""
        if len(self._ballots) == 2:
            await self._update(wire.CAST_BALLOT, self._ballots.pop(0))
        return await patiently(self._handle.result)

    def lost(self, status: CycleStatus) -> list[AgentMessage]:
        """What was acknowledged, and is not in the status of its cycle."""
        kept = [*status.bids.values(), *status.ballots.values(), *([status.proposal] if status.proposal else [])]
        there = {(type(message), message.agent_id, message.message_id) for message in kept}
        return [sent for sent in self.acknowledged if (type(sent), sent.agent_id, sent.message_id) not in there]

    async def _update(self, kind: str, message: AgentMessage) -> None:
        signed = self._signed(kind, message)
        await patiently(lambda: self._handle.execute_update(kind, signed))
        self.acknowledged.append(message)

    async def _signal(self, kind: str, message: AgentMessage) -> None:
        signed = self._signed(kind, message)
        await patiently(lambda: self._handle.signal(kind, signed))
        self.acknowledged.append(message)

    def _signed(self, kind: str, message: AgentMessage) -> AgentMessage:
        run_id = self._handle.first_execution_run_id
        assert run_id is not None
        return self._stage.signed(message, self.cycle, run_id, kind)


async def measure(client: Client, address: str, home: Path, cycles: int) -> CrowdReport:
    """Open so many cycles, and play them as above. Raises TimeoutError where one does not go on."""
    stage = Stage(home / "crowd", {}, AGENTS)
    workers, phases = Workers(stage, address), Phases(NautilusClient(client))
    async with AsyncExitStack() as stack:
        stack.callback(stage.database.close)
        stack.callback(workers.kill_all)
        stack.push_async_callback(_cancelled, asyncio.create_task(phases.keep_reading()))
        players, rss_per_cycle_kb = await _opened(client, stage, workers, phases, cycles)
        await _played(players, workers, phases)
        workers.kill_all()
        signalled = players[::SIGNALLED]
        await _at_once([player.signal_ballot for player in signalled])
        note(f"crowd: all workers killed, {len(signalled)} ballots signalled meanwhile")
        began = time.monotonic()
        for _ in range(WORKERS):
            workers.join()
        answered = await _at_once([player.status for player in players])
        recovery_s = time.monotonic() - began
        note(f"crowd: {len(answered)} cycles answer after {recovery_s:.0f} s")
        results = await _at_once([player.finish for player in players])
    lost = [player.lost(result.status) for player, result in zip(players, results, strict=True)]
    ended = [result for result in results if result.end is not None and result.end.ending is Ending.REJECTED]
    return CrowdReport(
        cycles=cycles,
        answered=len(answered),
        recovered=len(ended),
        messages=sum(len(player.acknowledged) for player in players),
        messages_lost=sum(map(len, lost)),
        rss_per_cycle_kb=round(rss_per_cycle_kb, 1),
        stopped=workers.left[signal.SIGTERM],
        killed=workers.left[signal.SIGKILL],
        recovery_s=round(recovery_s, 1),
    )


async def _opened(
    client: Client, stage: Stage, workers: Workers, phases: Phases, cycles: int
) -> tuple[list[Player], float]:
    """Open all cycles on one worker; what its memory has grown by, in KB, for each but the first."""
    worker = workers.join()
    players: list[Player] = []
    sizes_kb: list[float] = []
    for count in (min(WARM, cycles // 4), cycles):
        numbers = range(len(players), count)
        players += await _at_once([lambda number=number: Player.open(client, stage, number) for number in numbers])  # type: ignore[misc]
        await phases.reach([player.cycle for player in players], Phase.BIDDING)
        sizes_kb.append(rss_kb(worker.pid))
        note(f"crowd: {count} cycles open, the worker takes {sizes_kb[-1] / 1024:.0f} MB")
    return players, (sizes_kb[1] - sizes_kb[0]) / (cycles - min(WARM, cycles // 4))


async def _played(players: list[Player], workers: Workers, phases: Phases) -> None:
    """Have agents play all cycles, a hundred at a time, while workers come and go."""
    while len(workers.running) < WORKERS:
        workers.join()
    await workers.serving()
    coming = asyncio.create_task(workers.come_and_go())
    began = time.monotonic()
    await _at_once([lambda player=player: player.play(phases) for player in players])  # type: ignore[misc]
    await _cancelled(coming)
    took_s, left = time.monotonic() - began, workers.left.total()
    note(f"crowd: {len(players)} cycles at a vote after {took_s:.0f} s, {left} workers left meanwhile")


async def _at_once(work: list[Callable[[], Awaitable[Result]]]) -> list[Result]:
    """The results of all, AT_ONCE at a time."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def in_slot(begin: Callable[[], Awaitable[Result]]) -> Result:
        async with slots:
            return await begin()

    return await asyncio.gather(*map(in_slot, work))


async def patiently(ask: Callable[[], Awaitable[Result]]) -> Result:
    """The answer, asked for again while no worker gives it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await ask()
            except UNANSWERED:
                await asyncio.sleep(RETRY_S)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
