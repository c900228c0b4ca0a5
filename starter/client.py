"""The small client: all that an agent needs, over Temporal alone. Built-in agents enter by this door too.

client = await NautilusClient.connect()
for task in await client.meta_tasks(Phase.BIDDING):
    await client.place_bid(task.workflow_id, Bid(message_id="b-1", agent_id="me", price=40, eta_s=60))
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Self
from uuid import uuid4

from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import SearchAttributeKey, WorkflowIDConflictPolicy
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError, RPCStatusCode

from schema import wire
from schema.messages.cycle import Act, CycleRequest, CycleResult, CycleStatus, Phase, Receipt, workflow_id
from schema.messages.market import Bid
from schema.messages.observatory import Diagnosis, DiagnosisRequest
from schema.messages.proposals import Ballot, Proposal

# What the server says of a run that has had 10,000 signals, and how long to wait for the next run.
FULL = "exceeded workflow execution limit for signal events"
FULL_PAUSES_S = (0.2, 0.5, 1, 2, 4, 8, 16, 16)


class Refused(Exception):
    """The cycle did not take a message; the text says what was expected."""


class MetaTask(NamedTuple):
    """An open improvement cycle, as the market lists it."""

    workflow_id: str
    metric: str
    phase: Phase


class NautilusClient:
    """Talks to cycles by their workflow ids. Safe to share between coroutines."""

    def __init__(self, temporal: Client, task_queue: str = wire.TASK_QUEUE) -> None:
        self.temporal = temporal
        self._task_queue = task_queue

    @classmethod
    async def connect(cls) -> Self:
        """Connect by the SDK's own configuration: temporal.toml and TEMPORAL_* variables."""
        config = ClientConfig.load_client_connect_config()
        config.setdefault("namespace", wire.NAMESPACE)
        config.setdefault("target_host", "localhost:7233")
        return cls(await Client.connect(**config, data_converter=pydantic_data_converter))

    async def meta_tasks(self, phase: Phase) -> list[MetaTask]:
        """The running cycles in this phase, oldest first."""
        query = (
            f"WorkflowType='{wire.IMPROVEMENT_CYCLE}' AND ExecutionStatus='Running' AND {wire.PHASE}='{phase.value}'"
        )
        found = [execution async for execution in self.temporal.list_workflows(query)]
        metric = SearchAttributeKey.for_keyword(wire.METRIC)
        return [
            MetaTask(e.id, e.typed_search_attributes.get(metric, ""), phase)
            for e in sorted(found, key=lambda execution: execution.start_time)
        ]

    async def status(self, cycle: str) -> CycleStatus:
        """Where a cycle stands; `cycle` is its workflow id. Raises Refused where there is none."""
        try:
            status: CycleStatus = await self._handle(cycle).query(wire.STATUS, result_type=CycleStatus)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND and "amespace" not in str(error):
                raise Refused(f"expected a cycle, but there is no workflow {cycle}") from None
            raise
        return status

    async def diagnose(self, subject: str, window_s: int = 86_400) -> Diagnosis:
        """The facts about a subject, over the trailing window."""
        result: Diagnosis = await self.temporal.execute_workflow(
            wire.DIAGNOSTICS,
            DiagnosisRequest(subject=subject, window_s=window_s),
            id=f"diagnostics:{uuid4()}",
            task_queue=self._task_queue,
            result_type=Diagnosis,
        )
        return result

    async def place_bid(self, cycle: str, bid: Bid, wait: bool = True) -> Receipt | None:
        """Offer to investigate. Waiting (an update) raises Refused; else see `signal`."""
        return await self._say(cycle, wire.PLACE_BID, bid, wait)

    async def submit_proposal(self, cycle: str, proposal: Proposal, wait: bool = True) -> Receipt | None:
        """Hand in the awarded proposal. Waiting (an update) raises Refused; else see `signal`."""
        return await self._say(cycle, wire.SUBMIT_PROPOSAL, proposal, wait)

    async def cast_ballot(self, cycle: str, ballot: Ballot, wait: bool = True) -> Receipt | None:
        """Vote on the open proposal. Waiting (an update) raises Refused; else see `signal`."""
        return await self._say(cycle, wire.CAST_BALLOT, ballot, wait)

    async def signal(self, cycle: str, name: str, message: Bid | Proposal | Ballot) -> None:
        """Send without waiting, even while no worker runs; `receipts` tells later what became of it.

        A run that a flood has filled takes no more until the cycle continues as new: then this tries again.
        """
        for pause_s in FULL_PAUSES_S:
            try:
                await self._handle(cycle).signal(name, message)
            except RPCError as error:
                if FULL not in error.message:
                    raise
                await asyncio.sleep(pause_s)
            else:
                return
        raise Refused(f"expected {cycle} to continue as new, but it is full of messages")

    async def _say(self, cycle: str, name: str, message: Bid | Proposal | Ballot, wait: bool) -> Receipt | None:
        if wait:
            return await self._send(cycle, name, message)
        await self.signal(cycle, name, message)
        return None

    async def receipts(self, cycle: str) -> list[Receipt]:
        """What became of the latest messages to a cycle."""
        found: list[Receipt] = await self._handle(cycle).query(wire.RECEIPTS, result_type=list[Receipt])
        return found

    async def open_cycle(self, proposal: Proposal) -> str:
        """Open a cycle at the vote, with a proposal of one's own; its workflow id."""
        request = CycleRequest(request_id=f"{proposal.agent_id}:{proposal.message_id}", proposal=proposal)
        handle = await self.temporal.start_workflow(
            wire.IMPROVEMENT_CYCLE,
            request,
            id=workflow_id(request.subject),
            task_queue=self._task_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=f"Improvement cycle: {proposal.agent_id} proposes {proposal.parameter}",
        )
        return handle.id

    async def act(
        self, cycle: str, kind: str, who: str, why: str, seconds: float | None = None, exposure: float | None = None
    ) -> Receipt:
        """Steer a cycle, as a person: pause, resume, abort, veto, extend, promote or widen. Raises Refused."""
        act = Act(message_id=str(uuid4()), who=who, why=why, seconds=seconds, exposure=exposure)
        return await self._send(cycle, kind, act)

    async def result(self, cycle: str) -> CycleResult:
        """Wait for the end of a cycle."""
        result: CycleResult = await self.temporal.get_workflow_handle(cycle, result_type=CycleResult).result()
        return result

    async def follow(self, cycle: str, every_s: float = 1.0) -> AsyncIterator[CycleStatus]:
        """Each new state of a cycle until it has ended."""
        seen: CycleStatus | None = None
        while seen is None or seen.phase is not Phase.ENDED:
            status = await self.status(cycle)
            if status != seen:
                seen = status
                yield status
            else:
                await asyncio.sleep(every_s)

    def _handle(self, cycle: str) -> WorkflowHandle[Any, Any]:
        return self.temporal.get_workflow_handle(cycle)

    async def _send(self, cycle: str, name: str, message: object) -> Receipt:
        try:
            receipt: Receipt = await self._handle(cycle).execute_update(name, message, result_type=Receipt)
        except WorkflowUpdateFailedError as error:
            raise Refused(str(error.cause)) from None
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise Refused(f"expected a running cycle, but {cycle} is not running") from None
            raise
        if not receipt.accepted:
            raise Refused(receipt.reason)
        return receipt
