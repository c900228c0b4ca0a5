"""Agents at work: watch the market, look at the records, send what the investigators conclude.

All state is in Temporal: a restarted agent sees in the cycle's status what it has sent, and a message it repeats has
the same id. One watcher serves every agent of a process, so that six cost little more than one; the records of a cycle
are read once in each of its phases, and again when they have aged.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from temporalio.client import WorkflowFailureError, WorkflowQueryFailedError, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.service import RPCError, RPCStatusCode

from schema.messages.cycle import CycleStatus, Phase
from starter.client import MetaTask, NautilusClient, Refused

from .evidence import Case
from .investigator import Investigator

log = structlog.get_logger()

# In these phases a cycle waits for agents.
OPEN_PHASES = (Phase.BIDDING, Phase.PROPOSING, Phase.VOTING)
# Facts this old are read again, so that who had no explanation may find one before the deadline.
FACTS_S = 30.0
# A cycle whose worker is away does not answer; the others must not wait for it for ever.
PATIENCE_S = 30.0
LONGEST_PAUSE_S = 60.0
# What a server that is away, starting or busy answers; any other status is a mistake of ours and must surface.
AWAY = frozenset(
    {
        RPCStatusCode.UNAVAILABLE,
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.RESOURCE_EXHAUSTED,
        RPCStatusCode.FAILED_PRECONDITION,
        RPCStatusCode.ABORTED,
        RPCStatusCode.CANCELLED,
        RPCStatusCode.INTERNAL,
        RPCStatusCode.UNKNOWN,
    }
)


class BuiltInAgent:
    """An investigator with a client: sends what it concludes."""

    def __init__(self, client: NautilusClient, investigator: Investigator) -> None:
        self.client = client
        self.investigator = investigator
        self.agent_id = investigator.agent_id

    def is_due(self, status: CycleStatus) -> bool:
        """Whether the cycle waits for a word of this agent."""
        match status.phase:
            case Phase.BIDDING:
                return all(bid.agent_id != self.agent_id for bid in status.bids)
            case Phase.PROPOSING:
                return status.award is not None and status.award.agent_id == self.agent_id and status.proposal is None
            case Phase.VOTING:
                voted = any(ballot.agent_id == self.agent_id for ballot in status.ballots)
                return self.agent_id in status.voters and not voted
            case _:
                return False

    async def answer(self, case: Case) -> None:
        """Investigate, and send what comes of it; a refusal is noted, because the cycle may have moved on."""
        cycle, phase = case.status.workflow_id, case.status.phase
        bound = log.bind(cycle_id=case.status.cycle_id, agent_id=self.agent_id)
        try:
            # In a thread: the fits take some milliseconds each, and a worker may share this loop.
            if phase is Phase.BIDDING:
                if (bid := await asyncio.to_thread(self.investigator.bid, case)) is not None:
                    await self.client.place_bid(cycle, bid)
                    bound.info("bid.placed", price=bid.price)
            elif phase is Phase.PROPOSING:
                if (proposal := await asyncio.to_thread(self.investigator.proposal, case)) is not None:
                    await self.client.submit_proposal(cycle, proposal)
                    bound.info("proposal.submitted", parameter=proposal.parameter, value=proposal.value)
            else:
                ballot = await asyncio.to_thread(self.investigator.ballot, case)
                await self.client.cast_ballot(cycle, ballot)
                bound.info("ballot.cast", choice=ballot.choice.value, reason=ballot.reason)
        except Refused as refused:
            bound.info("message.refused", phase=phase.value, reason=str(refused))

    async def step(self) -> None:
        """Look once at every open cycle."""
        await Watcher(self.client, [self]).step()

    async def run(self, stop: asyncio.Event, every_s: float = 5.0) -> None:
        """Work alone until `stop` is set."""
        await run_agents(self.client, [self], stop, every_s)


@dataclass
class _File:
    """What was read about a cycle in one phase, and who has made up its mind on it."""

    key: tuple[object, ...]
    case: Case
    read_at: float
    answered: set[str] = field(default_factory=set)


class Watcher:
    """Polls the market once for all its agents. `mine` leaves out cycles that are not theirs to look at."""

    def __init__(
        self,
        client: NautilusClient,
        agents: Sequence[BuiltInAgent],
        mine: Callable[[MetaTask], bool] = lambda task: True,
    ) -> None:
        self._client = client
        self._agents = agents
        self._mine = mine
        self._files: dict[str, _File] = {}

    async def step(self) -> None:
        """Look once at every open cycle, and let each agent answer that it waits for."""
        listed = await asyncio.gather(*(self._client.meta_tasks(phase) for phase in OPEN_PHASES))
        cycles = list(dict.fromkeys(task.workflow_id for tasks in listed for task in tasks if self._mine(task)))
        self._files = {cycle: file for cycle, file in self._files.items() if cycle in cycles}
        await asyncio.gather(*(self._attend(cycle) for cycle in cycles))

    async def _attend(self, cycle: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                status = await self._client.status(cycle)
                due = [agent for agent in self._agents if agent.is_due(status)]
                if due:
                    file = await self._file(status)
                    await asyncio.gather(
                        *(self._ask(agent, file) for agent in due if agent.agent_id not in file.answered)
                    )
        except (
            Refused,
            TimeoutError,
            WorkflowFailureError,
            WorkflowQueryFailedError,
            WorkflowUpdateRPCTimeoutOrCancelledError,
        ) as error:
            # It ended meanwhile, or its worker is away: the next look tells.
            log.warning("cycle.unanswered", cycle=cycle, error=repr(error))

    async def _ask(self, agent: BuiltInAgent, file: _File) -> None:
        await agent.answer(file.case)
        file.answered.add(agent.agent_id)

    async def _file(self, status: CycleStatus) -> _File:
        key = (status.cycle_id, status.phase, status.award, status.proposal)
        file = self._files.get(status.workflow_id)
        if file is None or file.key != key or time.monotonic() - file.read_at > FACTS_S:
            file = _File(key, await self._read(status), time.monotonic())
            self._files[status.workflow_id] = file
        return file

    async def _read(self, status: CycleStatus) -> Case:
        history = await self._client.diagnose(status.subject)
        if status.anomaly is None:
            return Case(status, history, history)
        since_onset = (history.at - status.anomaly.onset).total_seconds()
        return Case(status, await self._client.diagnose(status.subject, max(1, math.ceil(since_onset))), history)


async def run_agents(
    client: NautilusClient,
    agents: Sequence[BuiltInAgent],
    stop: asyncio.Event,
    every_s: float = 5.0,
    mine: Callable[[MetaTask], bool] = lambda task: True,
) -> None:
    """Let the agents work until `stop` is set. A server that is away is waited for; an unknown error ends this."""
    watcher = Watcher(client, agents, mine)
    pause_s = every_s
    while not stop.is_set():
        try:
            await _unless(stop, watcher.step())
            pause_s = every_s
        except RPCError as error:
            if error.status not in AWAY:
                raise
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
            log.warning("agents.waiting", error=str(error), pause_s=pause_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_s)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, and leave it when `stop` is set."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
