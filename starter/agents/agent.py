"""Agents at work: watch the market, read the records, send what the investigators conclude.

All state is in Temporal: a restarted agent sees in the cycle's status what it has sent, and a message it repeats has
the same id. One watcher serves every agent of a process, so that six cost little more than one; the records of a cycle
are read once in each of its phases, and again when they have aged.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import structlog
from temporalio import activity
from temporalio.client import WorkflowFailureError, WorkflowQueryFailedError, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.service import RPCError
from temporalio.worker import Worker

from schema import wire
from schema.messages.cycle import OPEN_PHASES, CycleStatus
from schema.messages.market import PLATFORM_META, Bid
from schema.messages.proposals import Ballot, Decline, Proposal
from schema.messages.schedules import Scan
from schema.messages.tasks import TaskStatus
from starter.client import Listed, NautilusClient, Refused

from .bidder import bid_on
from .evidence import Case

log = structlog.get_logger()
Visitable = Callable[[Listed], bool]
CycleMessage = Bid | Decline | Proposal | Ballot

# Facts this old are read again: an agent without an explanation may find one before the deadline.
FACTS_S = 30.0
# A workflow whose worker is away does not answer: a visit is given up after the first, and a scan waits the second.
PATIENCE_S, SCAN_WAIT_S = 30.0, 5.0
LONGEST_PAUSE_S = 60.0
# The newest of the tasks that await bids; the others come when these are awarded.
TASKS_A_SCAN = 100
# The cycle ended meanwhile, or its worker is away: the next scan finds out.
UNANSWERED = (
    Refused,
    RPCError,
    TimeoutError,
    WorkflowFailureError,
    WorkflowQueryFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)


class Participant(Protocol):
    """What takes part in cycles: it has a name and an operator, and answers a case with the message that is due."""

    @property
    def agent_id(self) -> str: ...

    @property
    def operator(self) -> str: ...

    def message(self, case: Case) -> CycleMessage | None:
        """The message that the cycle's phase asks for; None where the agent has nothing to say."""


async def send(client: NautilusClient, to: CycleStatus | TaskStatus, message: CycleMessage) -> bool:
    """Whether the message was accepted. A refusal is logged: the window may have closed."""
    about = {"workflow_id": to.workflow_id, "agent_id": message.agent_id, "message": type(message).__name__}
    try:
        match message:
            case Bid():
                await client.place_bid(to, message)
            case Decline():
                await client.decline(to, message)
            case Proposal():
                await client.submit_proposal(to, message)
            case Ballot():
                await client.cast_ballot(to, message)
    except Refused as refused:
        log.info("message.refused", **about, reason=str(refused))
        return False
    log.info("agent.answered", **about)
    return True


@dataclass
class _File:
    """What was read about a cycle in one phase, and which agents have answered on it."""

    key: tuple[object, ...]
    case: Case
    read_at: float
    answered: set[str] = field(default_factory=set)


class Watcher:
    """Scans the market for some agents. `may_visit` leaves out cycles and tasks that are not theirs."""

    def __init__(
        self, client: NautilusClient, agents: Sequence[Participant], may_visit: Visitable = lambda _: True
    ) -> None:
        self._client = client
        self._agents = agents
        self._may_visit = may_visit
        self._files: dict[str, _File] = {}
        # By workflow: one that has not answered yet is not asked again.
        self._visits: dict[str, asyncio.Task[int]] = {}
        # The process scans by itself and when the autonomy scan asks: two scans at once would send everything twice.
        self._scanning = asyncio.Lock()

    @activity.defn(name=wire.SCAN_MARKET)
    async def scan(self, agents: tuple[str, ...]) -> Scan:
        """Scan the market now, for those of the named agents that live here."""
        return await self.step(agents)

    async def step(self, only: Collection[str] | None = None) -> Scan:
        """Visit every open cycle and task once, and send each the messages it waits for (of `only` these agents)."""
        agents = [agent for agent in self._agents if only is None or agent.agent_id in only]
        async with self._scanning:
            by_phase = await asyncio.gather(*(self._client.meta_tasks(phase) for phase in OPEN_PHASES))
            # A cycle that moves on meanwhile may be listed in two phases.
            cycles = {cycle.workflow_id for cycle in chain(*by_phase) if self._may_visit(cycle)}
            self._files = {cycle: file for cycle, file in self._files.items() if cycle in cycles}
            market = await self._client.tasks(most=TASKS_A_SCAN)
            user_tasks = [task for task in market if task.task_type != PLATFORM_META]
            tasks = [task.workflow_id for task in user_tasks if self._may_visit(task)]
            begun = [self._begin(cycle, self._attend(cycle, agents)) for cycle in cycles if cycle not in self._visits]
            begun += [self._begin(task, self._bid(task, agents)) for task in tasks if task not in self._visits]
            if begun:
                await asyncio.wait(begun, timeout=SCAN_WAIT_S)
            messages = self._ended()
        return Scan(agents=len(agents), cycles=len(cycles), messages=messages, tasks=len(tasks))

    def _begin(self, workflow_id: str, visit: Coroutine[Any, Any, int]) -> asyncio.Task[int]:
        begun = asyncio.create_task(self._patiently(workflow_id, visit))
        self._visits[workflow_id] = begun
        return begun

    def _ended(self) -> int:
        """Forget the visits that have ended; returns how many messages were accepted. Raises what a visit raised."""
        ended = {workflow: visit for workflow, visit in self._visits.items() if visit.done()}
        for workflow in ended:
            del self._visits[workflow]
        return sum(visit.result() for visit in ended.values())

    async def close(self) -> None:
        """End the visits that are under way."""
        for visit in self._visits.values():
            visit.cancel()
        await asyncio.gather(*self._visits.values(), return_exceptions=True)

    async def _patiently(self, workflow_id: str, visit: Coroutine[Any, Any, int]) -> int:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await visit
        except UNANSWERED as error:
            log.warning("agents.unanswered", workflow_id=workflow_id, error=repr(error))
            return 0

    async def _bid(self, task: str, agents: Sequence[Participant]) -> int:
        """Offer, for each agent, to do a user task; returns how many offers were accepted."""
        status = await self._client.task_status(task)
        offers = [bid_on(status, agent.agent_id) for agent in agents]
        return sum(await asyncio.gather(*(send(self._client, status, bid) for bid in offers if bid is not None)))

    async def _attend(self, cycle: str, agents: Sequence[Participant]) -> int:
        """Have the agents that a cycle waits for answer it; returns how many messages were accepted."""
        status = await self._client.status(cycle)
        due = [agent for agent in agents if status.awaits(agent.agent_id)]
        if not due:
            return 0
        file = await self._file(status)
        unanswered = [agent for agent in due if agent.agent_id not in file.answered]
        return sum(await asyncio.gather(*(self._answer(agent, file) for agent in unanswered)))

    async def _answer(self, agent: Participant, file: _File) -> bool:
        # In a thread: an estimate takes some milliseconds, and a worker may share this loop.
        message = await asyncio.to_thread(agent.message, file.case)
        accepted = message is not None and await send(self._client, file.case.status, message)
        file.answered.add(agent.agent_id)
        return accepted

    async def _file(self, status: CycleStatus) -> _File:
        key = (status.cycle_id, status.phase, status.award, status.proposal)
        file = self._files.get(status.workflow_id)
        if file is None or file.key != key or time.monotonic() - file.read_at > FACTS_S:
            file = self._files[status.workflow_id] = _File(key, await self._read(status), time.monotonic())
        return file

    async def _read(self, status: CycleStatus) -> Case:
        onset = status.anomaly.onset if status.anomaly else None
        return Case(status, await self._client.diagnose(status.subject, since=onset))


async def run_agents(
    client: NautilusClient,
    agents: Sequence[Participant],
    every_s: float = 5.0,
    may_visit: Visitable = lambda _: True,
    task_queue: str | None = None,
) -> None:
    """Let agents work until this is cancelled. It waits for a server that is away; an unknown error ends it.

    With a `task_queue`, they also scan whenever the autonomy scan asks there.
    """
    watcher = Watcher(client, agents, may_visit)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(watcher.close)
        if task_queue is not None:
            await stack.enter_async_context(Worker(client.temporal, task_queue=task_queue, activities=[watcher.scan]))
        await _watch(watcher, every_s)


async def _watch(watcher: Watcher, every_s: float) -> None:
    """Let a watcher step for ever; while no server answers, it pauses for longer and longer."""
    pause_s = every_s
    while True:
        try:
            await watcher.step()
            pause_s = every_s
        except RPCError as error:
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
            log.warning("agents.waiting", error=str(error), pause_s=pause_s)
        await asyncio.sleep(pause_s)
