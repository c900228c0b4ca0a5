"""Updates, signals and queries through a real Temporal server, with payloads that no client of ours would write.

They go to a running cycle and a running task. Agents have keys, so no message that is made here may be accepted but
those by which people steer, which any client of Temporal may send (SECURITY.md).
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from time import perf_counter
from typing import Any
from uuid import uuid4

from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution
from temporalio.api.enums.v1 import UpdateWorkflowExecutionLifecycleStage
from temporalio.api.failure.v1 import Failure
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.update.v1 import Input, Meta, Request, WaitPolicy
from temporalio.api.workflowservice.v1 import (
    QueryWorkflowRequest,
    SignalWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
)
from temporalio.service import RPCError

from benchmarks.fuzz import hostile, samples
from benchmarks.fuzz.stage import Stage
from benchmarks.fuzz.tally import Tally
from benchmarks.fuzz.targets import check_line
from schema import wire

# At once; a server on a busy machine answers some in a second.
SENDERS = 8
LONGEST_S = 30.0
ENCODINGS = (b"binary/plain", b"binary/null", b"json/protobuf", b"binary/protobuf", b"binary/encrypted", b"", b"\xff")
# A person's `abort` and `veto` end a cycle, which is no defect; they are sent unreadable.
PEOPLE = (wire.PAUSE, wire.RESUME, wire.EXTEND, wire.WIDEN, wire.PROMOTE)
FATAL = (wire.ABORT, wire.VETO)
UNKNOWN = ("no_such_name", "", "x" * 900, "__temporal_unknown", "\x1b[2J", "status\n", "é" * 100)
OF_THE_SDK = ("__stack_trace", "__enhanced_stack_trace", "__temporal_workflow_metadata")
QUERIES = (wire.STATUS, wire.RECEIPTS, *UNKNOWN, *OF_THE_SDK)
OVERSIZED = b'"' + b"x" * 2_500_000 + b'"'


class Sender:
    """Makes and sends messages of one kind, and counts what became of them."""

    def __init__(self, stage: Stage, name: str, dice: int) -> None:
        self.stage = stage
        self.tally = Tally(name)
        self.rng = Random(f"{name} {dice}")
        self.acts = 0

    async def send_all(
        self,
        count: int,
        send: Callable[[int], Coroutine[Any, Any, None]],
        count_outcomes: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> Tally:
        """Send so many, some at once, and count as written what they changed.

        Where no message is answered, `count_outcomes` counts afterwards what became of them.
        """
        before = await self.stage.state(), self.stage.rows()
        left = iter(range(count))

        async def sender() -> None:
            for number in left:
                await self._timed(number, send)

        await asyncio.gather(*(sender() for _ in range(SENDERS)))
        if count_outcomes is not None:
            await count_outcomes()
        if self.acts:
            await self._undo_the_acts()
        await self._compare(*before)
        return self.tally

    async def _timed(self, number: int, send: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        self.tally.sent += 1
        began = perf_counter()
        try:
            await asyncio.wait_for(send(number), LONGEST_S)
        except TimeoutError:
            self.tally.stalled += 1
            self.tally.example(f"message {number}: no answer within {LONGEST_S:g} s")
        except RPCError as error:
            self.refuse(f"{error.status.name}: {error.message}")
        self.tally.slowest_s = max(self.tally.slowest_s, round(perf_counter() - began, 3))

    def refuse(self, line: str) -> None:
        """Count a refusal, and whether it is a clear line."""
        self.tally.refused += 1
        try:
            check_line(line)
        except AssertionError as unclear:
            self.tally.unclear += 1
            self.tally.example(str(unclear))

    async def _undo_the_acts(self) -> None:
        """Let a paused cycle go on."""
        act = samples.act().model_copy(update={"message_id": str(uuid4())})
        cycle = self.stage.handle(self.stage.cycle)
        if (await self.stage.client.status(self.stage.cycle)).paused_at is not None:
            await cycle.execute_update(wire.RESUME, act)

    async def _compare(self, state: list[str], rows: dict[str, int]) -> None:
        after, now = await self.stage.state(), self.stage.rows()
        if not self.acts and after != state:
            self.tally.written += 1
            self.tally.example(f"the state has changed: {_difference(state, after)}")
        # What people did is in the ledger and in the outbox, and nothing else is anywhere.
        ours = {"ledger", "event"} if self.acts else set()
        changed = {name: now[name] - count for name, count in rows.items() if now[name] != count and name not in ours}
        if changed:
            self.tally.written += 1
            self.tally.example(f"rows have changed: {changed}")

    def message(self, names: tuple[str, ...]) -> tuple[str, list[Payload]]:
        """A name, and the payloads of a message under it: spoilt, of another kind, of no encoding, too many, none."""
        rng = self.rng
        name = rng.choice(names)
        match rng.randrange(10):
            case 0:
                return name, []
            case 1:
                return name, [self._payload(name), self._payload(name)]
            case 2:
                data = rng.choice((b"", b"\x00" * 100, b"\xff\xfe", b"{", self._json(name)))
                return name, [Payload(metadata={"encoding": rng.choice(ENCODINGS)}, data=data)]
            case 3:
                return name, [Payload(data=self._json(name))]
        return name, [self._payload(name)]

    def _payload(self, name: str) -> Payload:
        data = OVERSIZED if self.rng.randrange(200) == 0 else self._json(name)
        return Payload(metadata={"encoding": b"json/plain"}, data=data)

    def _json(self, name: str) -> bytes:
        kinds = samples.BY_KIND | dict.fromkeys((*PEOPLE, *FATAL), samples.act())
        sample: Any = kinds.get(name) or self.rng.choice(list(kinds.values()))
        document = sample.model_dump(mode="json")
        if "signature" in document and self.rng.randrange(2):
            key = samples.key_of(self.rng.choice(("mallory", "ada")))
            forged = key.sign(sample.model_copy(update={"agent_id": key.agent_id}), "cycle:other", "run", name)
            document["signature"] = forged.signature
        if name in FATAL:
            document["who"] = 7
        return hostile.written(hostile.spoilt(document, self.rng), self.rng)

    def workflow(self) -> str:
        return self.rng.choice((self.stage.cycle, self.stage.cycle, self.stage.task))


async def updates(stage: Stage, count: int, dice: int) -> Tally:
    """Hostile updates."""
    sender = Sender(stage, "update", dice)
    names = (*samples.BY_KIND, *samples.BY_KIND, *PEOPLE, *UNKNOWN)

    async def send(_: int) -> None:
        name, arguments = sender.message(names)
        workflow = sender.workflow()
        request = UpdateWorkflowExecutionRequest(
            namespace=wire.NAMESPACE,
            workflow_execution=WorkflowExecution(workflow_id=workflow),
            wait_policy=WaitPolicy(
                lifecycle_stage=UpdateWorkflowExecutionLifecycleStage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
            ),
            request=Request(
                meta=Meta(update_id=str(uuid4()), identity="fuzz"),
                input=Input(name=name, args=Payloads(payloads=arguments)),
            ),
        )
        answer = await stage.temporal.workflow_service.update_workflow_execution(request)
        while not answer.HasField("outcome"):  # the server waits for so long only; asked again, it goes on waiting
            answer = await stage.temporal.workflow_service.update_workflow_execution(request)
        if answer.outcome.HasField("failure"):
            sender.refuse(_line(answer.outcome.failure))
            return
        (receipt,) = (json.loads(payload.data) for payload in answer.outcome.success.payloads)
        if not receipt["accepted"]:
            sender.refuse(receipt["reason"])
            return
        sender.tally.accepted += 1
        if name in PEOPLE:
            sender.acts += 1
        else:
            sender.tally.written += 1
            sender.tally.example(f"{name} was accepted: {arguments[0].data[:300]!r}")

    return await sender.send_all(count, send)


async def signals(stage: Stage, count: int, dice: int) -> Tally:
    """Hostile signals. The server takes each; the workflow refuses it, and counts it."""
    sender = Sender(stage, "signal", dice)
    names = (*samples.BY_KIND, *samples.BY_KIND, *PEOPLE, *FATAL, *UNKNOWN, wire.NUDGE, wire.RELOAD_KEYS)

    async def send(_: int) -> None:
        name, arguments = sender.message(names)
        await stage.temporal.workflow_service.signal_workflow_execution(
            SignalWorkflowExecutionRequest(
                namespace=wire.NAMESPACE,
                workflow_execution=WorkflowExecution(workflow_id=sender.workflow()),
                signal_name=name,
                input=Payloads(payloads=arguments),
                identity="fuzz",
                request_id=str(uuid4()),
            )
        )
        sender.tally.accepted += 1

    before = [receipt for workflow in (stage.cycle, stage.task) for receipt in await stage.client.receipts(workflow)]

    async def count_outcomes() -> None:
        tally = sender.tally
        cycle, task = await stage.client.status(stage.cycle), await stage.client.task_status(stage.task)
        # Delivered, and refused by the workflow: what is neither nudges it or makes it read the keys.
        counted = min(tally.accepted, cycle.refused + task.refused)
        tally.accepted, tally.refused = tally.accepted - counted, tally.refused + counted
        for workflow in (stage.cycle, stage.task):
            for receipt in await stage.client.receipts(workflow):
                if receipt in before:
                    continue
                if receipt.accepted and receipt.kind in PEOPLE:
                    sender.acts += 1
                elif receipt.accepted:
                    tally.written += 1
                    tally.example(f"a signal was accepted: {receipt}")
                elif receipt.reason:
                    _check(tally, receipt.reason)

    return await sender.send_all(count, send, count_outcomes)


async def queries(stage: Stage, count: int, dice: int) -> Tally:
    """Hostile queries."""
    sender = Sender(stage, "query", dice)

    async def send(_: int) -> None:
        name, arguments = sender.message(QUERIES)
        answer = await stage.temporal.workflow_service.query_workflow(
            QueryWorkflowRequest(
                namespace=wire.NAMESPACE,
                execution=WorkflowExecution(workflow_id=sender.workflow()),
                query=WorkflowQuery(query_type=name, query_args=Payloads(payloads=arguments)),
            )
        )
        if answer.query_result.payloads:
            sender.tally.accepted += 1
        else:
            sender.refuse("expected an answer, but none came")

    return await sender.send_all(count, send)


def _line(failure: Failure) -> str:
    """All that a failure says to its receiver."""
    causes = f" caused by {_line(failure.cause)}" if failure.HasField("cause") else ""
    return f"{failure.message}{failure.stack_trace}{causes}"


def _check(tally: Tally, line: str) -> None:
    try:
        check_line(line)
    except AssertionError as unclear:
        tally.unclear += 1
        tally.example(str(unclear))


def _difference(before: list[str], after: list[str]) -> str:
    for old, new in zip(before, after, strict=True):
        fields, others = json.loads(old), json.loads(new)
        changed = {name: others[name] for name in fields if fields[name] != others[name]}
        if changed:
            return str(changed)[:300]
    return ""


async def through_temporal(stage: Stage, count: int, dice: int) -> AsyncIterator[Tally]:
    """The rows of the three doors that are Temporal's."""
    for part in (updates, signals, queries):
        yield await part(stage, count, dice)
