"""The small client: all that an agent needs, over Temporal alone. Built-in agents use it too.

It signs what it sends, with the key file that NAUTILUS_AGENT_KEY names or the keys that it was given.

client = await NautilusClient.connect()
for task in await client.meta_tasks(Phase.BIDDING):
    await client.place_bid(task.workflow_id, Bid(message_id="b-1", agent_id="me", price=40, eta_s=60))
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, cast
from uuid import uuid4

from pydantic import ValidationError
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.common import (
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import ActivityError, ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError

from schema import connection, display, wire
from schema.extras import SIGNING, needs
from schema.messages.base import AgentMessage
from schema.messages.cycle import CycleRequest, CycleResult, CycleStatus, Phase, workflow_id
from schema.messages.diagnosis import Diagnosis, DiagnosisRequest
from schema.messages.market import PLATFORM_META, Bid
from schema.messages.proposals import Ballot, Decline, Proposal
from schema.messages.story import Act, Receipt
from schema.messages.tasks import (
    Heartbeat,
    TaskPhase,
    TaskRequest,
    TaskStatus,
    TaskTypeListing,
    TypeRegistration,
    WorkResult,
    task_workflow_id,
)
from schema.mistakes import in_one_line

if TYPE_CHECKING:
    from starter.keys import AgentKey, PersonKey

# The server's error for a run that has had 10,000 signals, and how long to wait for the next run.
FULL = "exceeded workflow execution limit for signal events"
FULL_PAUSES_S = (0.2, 0.5, 1, 2, 4, 8, 16, 16)

Result = TypeVar("Result")
Sent = TypeVar("Sent", bound=Bid | Decline | Proposal | Ballot | Heartbeat | WorkResult)
# Where a message goes: a workflow id, or a status, which also has the run that a signature must name: one request less.
To = str | CycleStatus | TaskStatus


class Refused(Exception):
    """A workflow did not accept a message; the text says what was expected."""


class Listed(NamedTuple):
    """A task of the market. `task_type` is `platform_meta` for an improvement cycle; `parameter` is what it changes."""

    workflow_id: str
    task_type: str
    phase: str
    agent_id: str
    opened: datetime
    outcome: str
    parameter: str

    @classmethod
    def of(cls, execution: WorkflowExecution) -> Self:
        def attribute(name: str) -> str:
            return execution.typed_search_attributes.get(SearchAttributeKey.for_keyword(name), "")

        task_type, phase = attribute(wire.TASK_TYPE) or PLATFORM_META, attribute(wire.PHASE)
        agent_id, outcome, parameter = map(attribute, (wire.AGENT, wire.OUTCOME, wire.PARAMETER))
        return cls(execution.id, task_type, phase, agent_id, execution.start_time, outcome, parameter)


def opening(proposal: Proposal, key: "AgentKey | None") -> CycleRequest:
    """The request to open a cycle with a proposal, signed for this one request. Raises ValueError."""
    request = CycleRequest(request_id=f"{proposal.agent_id}:{proposal.message_id}", proposal=proposal)
    if key is None:
        return request
    signed = key.sign(proposal, workflow_id(request.subject), request.request_id, wire.OPEN_CYCLE)
    return request.model_copy(update={"proposal": signed})


def registration(message: TypeRegistration, key: "AgentKey") -> TypeRegistration:
    """The registration of a task type, signed for the workflow that takes it. Raises ValueError."""
    return key.sign(message, message.workflow_id, message.message_id, wire.TYPE_REGISTRATION)


@contextmanager
def _refused_if_missing(expected: str) -> Iterator[None]:
    """Raise Refused, with what was expected, where there is no such workflow."""
    try:
        yield
    except RPCError as error:
        if connection.is_missing(error):
            raise Refused(expected) from None
        raise


def _difference(before: TaskRequest, request: TaskRequest) -> str | None:
    """Why a request is not the one that was submitted under its id before; None where it is the same."""
    differs = [name for name in TaskRequest.model_fields if getattr(before, name) != getattr(request, name)]
    if not differs:
        return None
    came = f"another {' and another '.join(differs)} came"
    return f"expected {request.task_id} as it was submitted before, which stands, but {came}; take another id"


def _cause(error: WorkflowFailureError) -> BaseException | None:
    """What made a workflow fail: of a failed activity, the activity's own error."""
    return error.cause.cause if isinstance(error.cause, ActivityError) else error.cause


class NautilusClient:
    """Talks to cycles by their workflow ids. Safe to share between coroutines."""

    def __init__(self, temporal: Client, task_queue: str = wire.TASK_QUEUE, *keys: "AgentKey") -> None:
        self.temporal = temporal
        self._task_queue = task_queue
        self._keys = {key.agent_id: key for key in keys}

    @property
    def signs(self) -> bool:
        """Whether it has an agent's key."""
        return bool(self._keys)

    @classmethod
    async def connect(cls, *signers: "AgentKey") -> Self:
        """Connect by the SDK's own configuration: temporal.toml and TEMPORAL_* variables.

        Raises ConnectionError where no server answers, KeyFileError, and MissingExtra where no library signs.
        """
        if not signers and (file := os.environ.get("NAUTILUS_AGENT_KEY")):
            with needs(SIGNING):
                from starter import keys  # and cryptography with it, which a client that does not sign need not load

            signers = (keys.read(Path(file)),)
        return cls(await connection.connect(), wire.TASK_QUEUE, *signers)

    async def meta_tasks(self, phase: Phase) -> list[Listed]:
        """The running cycles in this phase, oldest first."""
        return sorted(await self.tasks(phase, workflows=(wire.IMPROVEMENT_CYCLE,)), key=lambda cycle: cycle.opened)

    async def tasks(
        self,
        phase: Phase | TaskPhase | None = TaskPhase.BIDDING,
        agent_id: str = "",
        ended: bool = False,
        most: int = 1_000,
        workflows: tuple[str, ...] = (wire.MARKET_TASK, wire.IMPROVEMENT_CYCLE),
    ) -> list[Listed]:
        """The market, newest first: user tasks and cycles in `phase` (None: any), or only `agent_id`'s awards."""
        query = f"WorkflowType IN ({', '.join(map(repr, workflows))})"
        query += "" if ended else " AND ExecutionStatus='Running'"
        query += f" AND {wire.PHASE}='{phase}'" if phase else ""
        query += f" AND {wire.AGENT}='{agent_id}'" if agent_id else ""
        return [Listed.of(execution) async for execution in self.temporal.list_workflows(query, limit=most)]

    async def open_tasks(self) -> int:
        """How many user tasks are under way."""
        query = f"WorkflowType='{wire.MARKET_TASK}' AND ExecutionStatus='Running'"
        return (await self.temporal.count_workflows(query)).count

    async def status(self, cycle: str) -> CycleStatus:
        """Where a cycle stands; `cycle` is its workflow id. Raises Refused where there is no such cycle."""
        return await self._query(cycle, wire.STATUS, CycleStatus, "a cycle")

    async def read(self, workflow: str) -> CycleStatus | TaskStatus:
        """Where the cycle or task of this workflow id stands, or how it ended. Raises Refused."""
        expected = f"expected a cycle or a task, but there is no workflow {workflow}"
        with _refused_if_missing(expected):
            described = await self._handle(workflow).describe()
        runs = described.status is WorkflowExecutionStatus.RUNNING
        match described.workflow_type:
            case wire.IMPROVEMENT_CYCLE:
                return await self.status(workflow) if runs else (await self.result(workflow)).status
            case wire.MARKET_TASK:
                return await self.task_status(workflow) if runs else await self.task_result(workflow)
        raise Refused(f"expected a cycle or a task, but {workflow} is of type {described.workflow_type}")

    async def diagnose(self, subject: str, window_s: int = 86_400, since: datetime | None = None) -> Diagnosis:
        """The facts about a subject, over the trailing window, or since an instant and over the window before it."""
        result: Diagnosis = await self.temporal.execute_workflow(
            wire.DIAGNOSTICS,
            DiagnosisRequest(subject=subject, window_s=window_s, since=since),
            id=f"diagnostics:{uuid4()}",
            task_queue=self._task_queue,
            result_type=Diagnosis,
        )
        return result

    async def place_bid(self, cycle: To, bid: Bid, wait: bool = True) -> Receipt | None:
        """Offer to investigate. Waiting (an update) raises Refused; else see `signal`."""
        return await self._send(cycle, wire.PLACE_BID, bid, wait)

    async def decline(self, cycle: To, decline: Decline, wait: bool = True) -> Receipt | None:
        """Answer that nothing is worth trying. Waiting (an update) raises Refused; else see `signal`."""
        return await self._send(cycle, wire.DECLINE, decline, wait)

    async def submit_proposal(self, cycle: To, proposal: Proposal, wait: bool = True) -> Receipt | None:
        """Hand in the awarded proposal. Waiting (an update) raises Refused; else see `signal`."""
        return await self._send(cycle, wire.SUBMIT_PROPOSAL, proposal, wait)

    async def cast_ballot(self, cycle: To, ballot: Ballot, wait: bool = True) -> Receipt | None:
        """Vote on the open proposal. Waiting (an update) raises Refused; else see `signal`."""
        return await self._send(cycle, wire.CAST_BALLOT, ballot, wait)

    async def signal(self, cycle: To, name: str, message: Sent) -> None:
        """Send without waiting, even while no worker runs; `receipts` has the outcome later.

        A run that a flood has filled accepts no more until the cycle continues as new: this tries again until then.
        """
        cycle, message = await self._signed(cycle, name, message)
        for pause_s in FULL_PAUSES_S:
            try:
                with _refused_if_missing(f"expected a cycle or a task that runs, but {cycle} does not"):
                    await self._handle(cycle).signal(name, message)
            except RPCError as error:
                if FULL not in error.message:
                    raise
                await asyncio.sleep(pause_s)
            else:
                return
        raise Refused(f"expected {cycle} to continue as new, but it is full of messages")

    async def _send(self, to: To, name: str, message: Sent, wait: bool) -> Receipt | None:
        if wait:
            workflow, signed = await self._signed(to, name, message)
            return await self._update(workflow, name, signed)
        await self.signal(to, name, message)
        return None

    async def submit_task(self, request: TaskRequest) -> bool:
        """Ask the market for a task; False where the same was submitted before.

        Raises Refused where the id is that of a different task: the first one stands.
        """
        task_type = SearchAttributePair(SearchAttributeKey.for_keyword(wire.TASK_TYPE), request.task_type)
        try:
            await self.temporal.start_workflow(
                wire.MARKET_TASK,
                request,
                id=task_workflow_id(request.task_id),
                task_queue=self._task_queue,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                search_attributes=TypedSearchAttributes([task_type]),
                static_summary=display.summary(f"{request.task_type} {request.task_id}"),
            )
        except WorkflowAlreadyStartedError:
            submitted = await self._started_with(task_workflow_id(request.task_id), TaskRequest)
            difference = _difference(submitted, request)
            if difference is not None:
                raise Refused(difference) from None
            return False
        return True

    async def task_status(self, task: str) -> TaskStatus:
        """Where a task stands; `task` is its workflow id. Raises Refused where there is no such task."""
        return await self._query(task, wire.STATUS, TaskStatus, "a task")

    async def task_result(self, task: str) -> TaskStatus:
        """Wait for the end of a task. Raises Refused where it was terminated, or its workflow failed."""
        return await self._end(task, TaskStatus, "task")

    async def heartbeat(self, task: To, beat: Heartbeat, wait: bool = True) -> Receipt | None:
        """Report that one's executor is at work. Waiting (an update) raises Refused; else see `signal`."""
        return await self._send(task, wire.HEARTBEAT, beat, wait)

    async def submit_result(self, task: To, result: WorkResult, wait: bool = True) -> Receipt | None:
        """Hand in the awarded task. Waiting (an update) raises Refused; else see `signal`."""
        return await self._send(task, wire.SUBMIT_RESULT, result, wait)

    async def register_type(self, message: TypeRegistration) -> TaskTypeListing:
        """Add a task type that one's own executor does; it can be submitted and bid on at once. Raises Refused."""
        if (key := self._key_of(message)) is not None:
            message = registration(message, key)
        try:
            listing: TaskTypeListing = await self.temporal.execute_workflow(
                wire.TYPE_REGISTRATION,
                message,
                id=message.workflow_id,
                task_queue=self._task_queue,
                result_type=TaskTypeListing,
            )
        except WorkflowFailureError as error:
            cause = _cause(error)
            if isinstance(cause, ApplicationError):
                raise Refused(cause.message) from None
            raise
        return listing

    async def receipts(self, cycle: str) -> list[Receipt]:
        """What became of the latest messages to a cycle or a task. Raises Refused where there is no such workflow."""
        return await self._query(cycle, wire.RECEIPTS, list[Receipt], "a cycle or a task")

    async def open_cycle(self, proposal: Proposal) -> str:
        """Open a cycle on a proposal of one's own, which goes straight to the vote; returns its workflow id.

        The same proposal sent again joins the cycle that it opened; `result` waits for the end. Raises Refused where a
        cycle is open on another proposal for this parameter, and ValueError for a proposal that cannot be signed.
        """
        request = opening(proposal, self._key_of(proposal))
        cycle_workflow_id = workflow_id(request.subject)
        summary = f"Improvement cycle: {proposal.agent_id} proposes {proposal.parameter}"
        try:
            await self.temporal.start_workflow(
                wire.IMPROVEMENT_CYCLE,
                request,
                id=cycle_workflow_id,
                task_queue=self._task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                static_summary=display.summary(summary),
            )
        except WorkflowAlreadyStartedError:
            # The id is the lock: what holds it is this very proposal, sent before, or another one for its parameter.
            holder = await self._started_with(cycle_workflow_id, CycleRequest)
            if holder.request_id != request.request_id:
                refusal = f"expected no open cycle on {request.subject}, but {holder.request_id} has one"
                raise Refused(f"{refusal}; wait for its end") from None
        return cycle_workflow_id

    async def act(
        self,
        cycle: str,
        kind: str,
        who: str,
        why: str,
        seconds: float | None = None,
        exposure: float | None = None,
        key: "PersonKey | None" = None,
    ) -> Receipt:
        """Steer a cycle, as a person: pause, resume, abort, veto, extend, promote or widen. Raises Refused.

        `key` is the person's, needed where the platform declares `signed_acts`.
        """
        try:
            act = Act(message_id=str(uuid4()), who=who, why=why, seconds=seconds, exposure=exposure)
        except ValidationError as error:
            raise Refused(in_one_line(error)) from None
        if key is not None:
            act = key.sign(act, cycle, await self.first_run(cycle), kind)
        return await self._update(cycle, kind, act)

    async def result(self, cycle: str) -> CycleResult:
        """Wait for the end of a cycle. Raises Refused where it was terminated, or could not begin."""
        return await self._end(cycle, CycleResult, "cycle")

    async def _end(self, workflow: str, kind: type[Result], name: str) -> Result:
        try:
            with _refused_if_missing(f"expected a {name}, but there is no workflow {workflow}"):
                result: Result = await self.temporal.get_workflow_handle(workflow, result_type=kind).result()
        except WorkflowFailureError as error:
            cause = _cause(error)
            reason = cause.message if isinstance(cause, ApplicationError) else cause
            raise Refused(f"expected a {name} that comes to an end of its own, but {workflow}: {reason}") from None
        return result

    async def follow(self, cycle: str, every_s: float = 1.0) -> AsyncIterator[CycleStatus]:
        """Each new state of a cycle until it has ended."""
        last: CycleStatus | None = None
        while last is None or last.phase is not Phase.ENDED:
            status = await self.status(cycle)
            if status != last:
                last = status
                yield status
            else:
                await asyncio.sleep(every_s)

    async def _started_with(self, workflow: str, kind: type[Result]) -> Result:
        """What a workflow was started with, from its history: this waits neither for a worker nor for its end."""
        async for event in self._handle(workflow).fetch_history_events(page_size=1):
            payloads = event.workflow_execution_started_event_attributes.input.payloads[:1]
            (request,) = await self.temporal.data_converter.decode(payloads, [kind])
            return cast(Result, request)
        raise Refused(f"expected a workflow {workflow}, but it has no history")

    async def first_run(self, cycle: str) -> str:
        """The id of the first run of what runs under this workflow id: a signature is valid for it only."""
        with _refused_if_missing(f"expected a cycle or a task that runs, but {cycle} does not"):
            return (await self._handle(cycle).describe()).raw_info.first_run_id

    async def _signed(self, to: To, kind: str, message: Sent) -> tuple[str, Sent]:
        """The workflow id, and the message signed for the run that the status shows, or else for the current one."""
        workflow = to if isinstance(to, str) else to.workflow_id
        key = self._key_of(message)
        if key is None:
            return workflow, message
        run_id = await self.first_run(to) if isinstance(to, str) else to.run_id
        try:
            return workflow, key.sign(message, workflow, run_id, kind)
        except ValueError as error:
            raise Refused(f"expected a message that can be signed, but {error}") from None

    def _key_of(self, message: AgentMessage) -> "AgentKey | None":
        """None where this client signs nothing, or the message is signed. Raises Refused where it has no such key."""
        if not self._keys or message.signature is not None:
            return None
        if message.agent_id not in self._keys:
            agents = ", ".join(self._keys)
            raise Refused(f"expected a message of {agents}, whose key this client has, but it is of {message.agent_id}")
        return self._keys[message.agent_id]

    def _handle(self, cycle: str) -> WorkflowHandle[Any, Any]:
        return self.temporal.get_workflow_handle(cycle)

    async def _query(self, workflow: str, name: str, kind: type[Result], expected: str) -> Result:
        with _refused_if_missing(f"expected {expected}, but there is no workflow {workflow}"):
            result: Result = await self._handle(workflow).query(name, result_type=kind)
        return result

    async def _update(self, workflow: str, name: str, message: object) -> Receipt:
        try:
            with _refused_if_missing(f"expected a cycle or a task that runs, but {workflow} does not"):
                receipt: Receipt = await self._handle(workflow).execute_update(name, message, result_type=Receipt)
        except WorkflowUpdateFailedError as error:
            cause = error.cause
            raise Refused(cause.message if isinstance(cause, ApplicationError) else str(cause)) from None
        if not receipt.accepted:
            raise Refused(receipt.reason)
        return receipt
