"""What anybody may send to a cycle: taken, or refused with a line that says what was expected; nothing stops the cycle.

Sent with the `temporal` command and with the client, against cycles that run on a real server.
"""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.failure.v1 import Failure
from temporalio.api.update.v1 import Input, Meta, Request
from temporalio.api.workflowservice.v1 import UpdateWorkflowExecutionRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.agents import register_agent
from activities.database import Database
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from schema import wire
from schema.messages.cycle import CycleRequest, CycleState, Ending, Phase
from schema.messages.market import Bid
from schema.messages.platform import MarketRules
from schema.messages.proposals import Ballot, Choice, Proposal
from schema.messages.story import Receipt
from schema.messages.tasks import TaskPhase, TaskRequest, TaskState, task_workflow_id
from schema.settings import Settings
from starter.client import NautilusClient, Refused
from starter.server import binary
from tests import builders
from tests.conftest import stop
from tests.databases import NewDatabase
from tests.patience import PATIENCE_S
from tests.test_improvement_cycle import AGENTS, Stage, limited, on_stage  # noqa: F401  (a fixture)
from worker import worker
from workflows.improvement_cycle import ImprovementCycle
from workflows.market_task import MarketTask
from workflows.plugin import OneLineFailures

Word = Bid | Proposal | Ballot
NAMES = {Bid: wire.PLACE_BID, Proposal: wire.SUBMIT_PROPOSAL, Ballot: wire.CAST_BALLOT}
PROPOSAL = builders.proposal("ada").proposal_id


async def command(client: Client, *arguments: str) -> str:
    """Run the real `temporal` command against the test's server, which takes it; what it printed."""
    code, printed = await attempt(client, *arguments)
    assert code == 0, printed
    return printed


async def attempt(client: Client, *arguments: str) -> tuple[int | None, str]:
    """Run the real `temporal` command against the test's server; its exit code and what it printed."""
    address = client.service_client.config.target_host
    process = await asyncio.create_subprocess_exec(
        str(binary()),
        *(*arguments, "--address", address, "--namespace", client.namespace),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed = (await process.communicate())[0].decode()
    return process.returncode, printed


async def signal(stage: Stage, name: str, *arguments: str) -> None:
    await command(stage.client.temporal, "workflow", "signal", "--workflow-id", stage.cycle, "--name", name, *arguments)


async def say(stage: Stage, word: Word) -> None:
    """A message as somebody without our client sends it."""
    await signal(stage, NAMES[type(word)], "--input", word.model_dump_json(exclude_none=True))


async def ask(stage: Stage, word: Word) -> Receipt:
    match word:
        case Bid():
            receipt = await stage.client.place_bid(stage.cycle, word)
        case Proposal():
            receipt = await stage.client.submit_proposal(stage.cycle, word)
        case Ballot():
            receipt = await stage.client.cast_ballot(stage.cycle, word)
    assert receipt is not None
    return receipt


async def receipt_of(stage: Stage, word: Word) -> Receipt:
    return next(r for r in await stage.client.receipts(stage.cycle) if r.message_id == word.message_id)


def ready(database: Database, **windows: float) -> tuple[Any, CycleRequest]:
    """A platform with agents and failing tasks, and the request for a cycle about it."""
    # The task's window stays open as long as the cycle's: on a busy machine these tests take minutes.
    market = MarketRules(bid_window_s=windows["bid_window_s"])
    platform = builders.platform(cycle=builders.rules(**windows), market=market)
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    for agent in AGENTS:
        register_agent(database, agent, f"op-{agent}", now)
    with database.transaction() as session:
        old = [builders.outcome(f"old-{n}", n % 3 > 0, now - timedelta(seconds=5)) for n in range(90)]
        record_outcomes(session, old, 1)
    anomaly = builders.anomaly(now - timedelta(seconds=10))
    return platform, CycleRequest(request_id="test:messages", anomaly=anomaly)


@pytest.fixture(scope="module")
async def stage(
    temporal: Client, new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    """One cycle for all the tests that send it something bad: they find it running and leave it so."""
    with new_database(tmp_path_factory.mktemp("messages")) as database:
        async with staged(temporal, database) as stage:
            yield stage


@asynccontextmanager
async def staged(temporal: Client, database: Database) -> AsyncIterator[Stage]:
    platform, request = ready(database, bid_window_s=3_600, proposal_window_s=3_600, voting_window_s=3_600)
    async with worker(temporal, database, platform, Settings(), "messages"):
        cycle = "cycle:messages"
        await temporal.start_workflow(wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue="messages")
        stage = Stage(NautilusClient(temporal, "messages"), database, platform, cycle)
        await stage.reach(Phase.BIDDING)
        await stage.client.place_bid(cycle, builders.bid("ada", price=1))
        yield stage
        await stop(temporal, cycle)


async def at(stage: Stage, phase: Phase) -> None:
    """Bring the cycle on to a phase, by messages that are taken."""
    if (await stage.client.status(stage.cycle)).phase is Phase.BIDDING and phase is not Phase.BIDDING:
        await stage.bids(*AGENTS[1:])
        await stage.reach(Phase.PROPOSING)
    if (await stage.client.status(stage.cycle)).phase is Phase.PROPOSING and phase is Phase.VOTING:
        await stage.proposes("ada")
        await stage.reach(Phase.VOTING)
        await stage.client.cast_ballot(stage.cycle, builders.ballot("bob", PROPOSAL, Choice.REJECT))


BID = builders.bid("bob").model_dump(mode="json", exclude_none=True)

UNREADABLE = {
    # the table of what a bad signal does: fails validation
    "a misspelt field": ((json.dumps(BID | {"agnet_id": "bob"}),), "agnet_id"),
    "a missing field": ((json.dumps({"message_id": "m", "agent_id": "bob"}),), "price"),
    "a wrong type": ((json.dumps(BID | {"price": "cheap"}),), "price"),
    "a negative price": ((json.dumps(BID | {"price": -1}),), "price"),
    "a hostile id": ((json.dumps(BID | {"agent_id": "../../bob\n"}),), "agent_id"),
    "not an object": (("42",), "Bid"),
    "null": (("null",), "Bid"),
    "a list": ((json.dumps([BID]),), "Bid"),
    "nested too deep": (("[" * 300 + "]" * 300,), "recursion limit"),
    # wrong number of arguments: by default poison for ever
    "no argument": ((), "place_bid"),
    "two arguments": ((json.dumps(BID), json.dumps(BID)), "place_bid"),
}


@pytest.mark.parametrize(("inputs", "says"), UNREADABLE.values(), ids=UNREADABLE)
async def test_a_signal_that_cannot_be_read_is_refused_and_counted(
    stage: Stage, inputs: tuple[str, ...], says: str
) -> None:
    before = await stage.client.status(stage.cycle)

    await signal(stage, wire.PLACE_BID, *(part for text in inputs for part in ("--input", text)))

    after = await stage.client.status(stage.cycle)
    assert after.refused == before.refused + 1
    assert says in after.unread
    assert after.bids == before.bids


@pytest.mark.parametrize("encoding", ["binary/plain", "binary/null", "binary/encrypted", "json/protobuf"])
async def test_a_signal_in_another_encoding_is_refused_and_counted(stage: Stage, encoding: str) -> None:
    before = await stage.client.status(stage.cycle)

    await signal(stage, wire.PLACE_BID, "--input", json.dumps(BID), "--input-meta", f"encoding={encoding}")

    after = await stage.client.status(stage.cycle)
    assert after.refused == before.refused + 1
    assert after.unread.startswith("place_bid: ")


NOT_TAKEN = {
    "an unknown agent's bid": (Phase.BIDDING, builders.bid("mallory"), "expected an agent that was registered"),
    "a second bid": (Phase.BIDDING, builders.bid("ada", 2), "expected one bid of ada"),
    "a price out of bounds": (Phase.BIDDING, builders.bid("bob", 101), "expected a price of at most 100"),
    "an early proposal": (Phase.BIDDING, builders.proposal("ada"), "expected a cycle in phase proposing"),
    "an early ballot": (Phase.BIDDING, builders.ballot("bob"), "expected a cycle in phase voting"),
    "a late bid": (Phase.PROPOSING, builders.bid("ada"), "expected a cycle in phase bidding"),
    "a proposal of who has no award": (Phase.PROPOSING, builders.proposal("bob"), "expected a proposal of ada"),
    "a value out of bounds": (Phase.PROPOSING, builders.proposal(value=9.0), "expected a value between 10 and 600"),
    "a change too large": (Phase.PROPOSING, builders.proposal(value=300.0), "by at most 120"),
    "no change": (Phase.PROPOSING, builders.proposal(value=90.0), "expected a change"),
    "a value of another kind": (Phase.PROPOSING, builders.proposal(value="180"), "expected a number"),
    "a parameter that nobody declared": (
        Phase.PROPOSING,
        builders.proposal(parameter="cycle.alpha"),
        "expected a declared parameter",
    ),
    "a version of yesterday": (Phase.PROPOSING, builders.proposal(base_version=7), "expected base version 1"),
    "too little promised": (Phase.PROPOSING, builders.proposal(predicted_rate=0.67), "expected a predicted rate"),
    "a late proposal": (Phase.VOTING, builders.proposal("ada", value=170.0), "expected a cycle in phase proposing"),
    "a ballot of a stranger": (Phase.VOTING, builders.ballot("mallory", PROPOSAL), "expected a voter"),
    "a ballot of the proposer": (Phase.VOTING, builders.ballot("ada", PROPOSAL), "expected a voter"),
    "a second ballot": (Phase.VOTING, builders.ballot("bob", PROPOSAL), "expected one ballot of bob"),
    "a ballot on something else": (Phase.VOTING, builders.ballot("cyd", "other"), "expected a ballot on proposal"),
}  # fmt: skip


@pytest.mark.parametrize(("phase", "word", "says"), NOT_TAKEN.values(), ids=NOT_TAKEN)
async def test_what_is_not_taken_is_refused_with_a_reason(stage: Stage, phase: Phase, word: Word, says: str) -> None:
    await at(stage, phase)
    handle = stage.client.temporal.get_workflow_handle(stage.cycle)
    before, events = await stage.client.status(stage.cycle), (await handle.describe()).history_length

    with pytest.raises(Refused, match=says):
        await ask(stage, word)
    assert (await handle.describe()).history_length == events  # an update is refused before anything enters history
    await say(stage, word)

    after, receipt = await stage.client.status(stage.cycle), await receipt_of(stage, word)
    assert after.refused == before.refused + 1
    assert not receipt.accepted
    assert says in receipt.reason
    assert after.model_copy(update={"refused": before.refused}) == before


TWICE = builders.ballot("fay", PROPOSAL, Choice.REJECT)


async def test_a_message_that_comes_twice_is_taken_once(stage: Stage) -> None:
    await at(stage, Phase.VOTING)
    before = await stage.client.status(stage.cycle)

    await say(stage, TWICE)
    await say(stage, TWICE)
    again = await ask(stage, TWICE)

    after = await stage.client.status(stage.cycle)
    assert again.accepted
    assert after.refused == before.refused
    assert after.ballots == before.ballots | {TWICE.agent_id: TWICE}


BALLOT = builders.ballot("bob", PROPOSAL).model_dump(mode="json", exclude_none=True)
ACT = {"message_id": "m", "who": "olga", "why": "because"}
BEAT = {"message_id": "m", "agent_id": "bob"}
REGISTRATION = {"message_id": "m", "agent_id": "bob", "name": "poetry"}
CYCLE_UPDATES = {
    wire.PLACE_BID: ("Bid", BID),
    wire.SUBMIT_PROPOSAL: ("Proposal", builders.proposal("ada").model_dump(mode="json", exclude_none=True)),
    wire.CAST_BALLOT: ("Ballot", BALLOT),
    wire.DECLINE: ("Decline", {"message_id": "m", "agent_id": "bob", "reason": "nothing helps"}),
    **dict.fromkeys(
        (wire.PAUSE, wire.RESUME, wire.ABORT, wire.VETO, wire.EXTEND, wire.PROMOTE, wire.WIDEN), ("Act", ACT)
    ),
}
TASK_UPDATES = {
    wire.PLACE_BID: ("Bid", BID),
    wire.HEARTBEAT: ("Heartbeat", BEAT),
    wire.SUBMIT_RESULT: ("WorkResult", BEAT),
    wire.ABORT: ("Act", ACT),
}
STARTS = {wire.TYPE_REGISTRATION: ("TypeRegistration", REGISTRATION)}
MESSAGES = [
    (where, name, kind, good)
    for where, names in (("cycle", CYCLE_UPDATES), ("task", TASK_UPDATES), ("start", STARTS))
    for name, (kind, good) in names.items()
]
# What came, as JSON with the good message in place of `good`, and the line that its sender reads.
MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], list[Any]], str]] = {
    "text": (lambda _good: ["text"], "expected a JSON object ({kind}), but 'text' came"),
    "a number": (lambda _good: [42], "expected a JSON object ({kind}), but 42 came"),
    "nothing in it": (lambda _good: [None], "expected a JSON object ({kind}), but None came"),
    "a list": (lambda _good: [["x"]], "expected a JSON object ({kind}), but ['x'] came"),
    "a wrong type": (lambda good: [good | {"message_id": 7}], "message_id: expected a valid string, but 7 came"),
    "too long": (
        lambda good: [good | {"message_id": "m" * 300}],
        "message_id: expected a string of at most 200 characters, but '" + "m" * 56 + "... came",
    ),
    "several mistakes": (
        lambda good: [good | {"message_id": 7, "misspelt": "x"}],
        "message_id: expected a valid string, but 7 came; misspelt: expected no such field, but 'x' came",
    ),
    "a field is missing": (
        lambda good: [{name: value for name, value in good.items() if name != "message_id"}],
        "message_id: expected a value, but none came",
    ),
    "no argument": (lambda _good: [], "expected one argument, a JSON object, but 0 came"),
    "two arguments": (lambda good: [good, good], "expected one argument, a JSON object, but 2 came"),
}


@pytest.fixture(scope="module")
async def task(stage: Stage) -> str:
    """A user's task that waits for bids."""
    request = TaskRequest(task_id="messages", task_type="research_synthesis", payload={}, requester="olga")
    await stage.client.submit_task(request)
    workflow_id = task_workflow_id("messages")
    # Its history stands still once it waits.
    while (await stage.client.task_status(workflow_id)).phase is not TaskPhase.BIDDING:
        await asyncio.sleep(0.05)
    return workflow_id


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize(("where", "name", "kind", "good"), MESSAGES, ids=[f"{m[0]}-{m[1]}" for m in MESSAGES])
async def test_a_message_that_cannot_be_read_comes_back_as_one_line(
    stage: Stage, task: str, where: str, name: str, kind: str, good: dict[str, Any], mistake: str
) -> None:
    make, line = MISTAKES[mistake]
    arguments, line = make(good), line.format(kind=kind)
    inputs = [part for argument in arguments for part in ("--input", json.dumps(argument))]

    if where == "start":
        start = ("workflow", "execute", "--type", name, "--task-queue", "messages", "--workflow-id", "bad-start")
        _, printed = await attempt(stage.client.temporal, *start, *inputs)
        assert f"    Message: {line}\n" in printed
        return
    handle = stage.client.temporal.get_workflow_handle(stage.cycle if where == "cycle" else task)
    events = (await handle.describe()).history_length
    _, printed = await attempt(
        stage.client.temporal, "workflow", "update", "execute", "--workflow-id", handle.id, "--name", name, *inputs
    )
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await asyncio.wait_for(handle.execute_update(name, args=arguments), PATIENCE_S)

    (said,) = printed.splitlines()[:-1] if printed.endswith("\n\n") else printed.splitlines()
    assert said.startswith(f"Error: unable to update workflow: {line} (type: ")
    assert isinstance(refused.value.cause, ApplicationError)
    assert refused.value.cause.message == line.replace("None came", "nothing came")
    assert (await handle.describe()).history_length == events  # refused before anything enters history


OPENINGS: dict[str, tuple[str, list[Any], str]] = {
    "a task as text": (wire.MARKET_TASK, ["text"], "expected a JSON object (TaskRequest), but 'text' came"),
    "a task of nothing": (wire.MARKET_TASK, [None], "expected a JSON object (TaskRequest), but None came"),
    "a task with a wrong type": (
        wire.MARKET_TASK,
        [{"task_id": "t", "task_type": 7}],
        "task_type: expected a valid string, but 7 came",
    ),
    "a task with a field missing": (
        wire.MARKET_TASK,
        [{"task_id": "t", "task_typ": "monte_carlo"}],
        "task_type: expected a value, but none came",
    ),
    "a cycle about nothing": (
        wire.IMPROVEMENT_CYCLE,
        [{"request_id": "r"}],
        "expected exactly one of anomaly and proposal",
    ),
}


@pytest.mark.parametrize(("workflow", "arguments", "line"), OPENINGS.values(), ids=OPENINGS)
async def test_a_start_that_cannot_be_read_comes_back_as_one_line(
    stage: Stage, workflow: str, arguments: list[Any], line: str
) -> None:
    inputs = [part for argument in arguments for part in ("--input", json.dumps(argument))]

    execute = ("workflow", "execute", "--type", workflow, "--task-queue", "messages", "--workflow-id", "bad-opening")
    code, printed = await attempt(stage.client.temporal, *execute, *inputs)

    assert code != 0
    assert f"    Message: {line}\n" in printed
    assert "StackTrace" not in printed


@pytest.mark.parametrize("story", [ImprovementCycle, MarketTask])
@pytest.mark.parametrize("arguments", [(), (1, 2, 3)])
def test_a_start_with_no_or_many_arguments_comes_back_as_one_line(story: type, arguments: tuple[Any, ...]) -> None:
    failure = Failure()

    with pytest.raises(TypeError) as raised:
        story(*arguments)
    OneLineFailures().to_failure(raised.value, pydantic_data_converter.payload_converter, failure)

    assert failure.message == f"expected one argument, a JSON object, but {len(arguments)} came"
    assert failure.stack_trace == ""


@pytest.mark.parametrize("workflow", [wire.IMPROVEMENT_CYCLE, wire.MARKET_TASK])
async def test_nobody_can_start_a_story_in_its_middle(stage: Stage, workflow: str) -> None:
    """A state is carried from run to run; a forged one would be voted on, tested or paid already."""
    if workflow == wire.IMPROVEMENT_CYCLE:
        request: BaseModel = CycleRequest(request_id="forged", anomaly=builders.anomaly())
        state: BaseModel = CycleState(request=request, phase=Phase.PROMOTING)
    else:
        asked = TaskRequest(task_id="forged", task_type="research_synthesis")
        request, state = asked, TaskState(request=asked, phase=TaskPhase.SETTLING)

    handle = await stage.client.temporal.start_workflow(
        workflow, args=[request, state], id=f"forged-{workflow}", task_queue="messages"
    )

    with pytest.raises(WorkflowFailureError) as failed:
        await asyncio.wait_for(handle.result(), PATIENCE_S)
    assert isinstance(failed.value.cause, ApplicationError)
    assert failed.value.cause.message == "expected one argument, a JSON object, but 2 came"


async def test_text_that_is_not_json_is_refused_by_the_command_itself(stage: Stage) -> None:
    update = ("workflow", "update", "execute", "--workflow-id", stage.cycle, "--name", wire.PLACE_BID)

    assert await attempt(stage.client.temporal, *update, "--input", "not json") == (
        1,
        "Error: input #1 is not valid JSON\n",
    )


async def test_an_update_in_another_encoding_says_which_are_read(stage: Stage) -> None:
    update = ("workflow", "update", "execute", "--workflow-id", stage.cycle, "--name", wire.PLACE_BID)
    meta = ("--input", json.dumps(BID), "--input-meta", "encoding=binary/encrypted")

    _, printed = await attempt(stage.client.temporal, *update, *meta)

    assert "json/plain, but binary/encrypted came (type: " in printed


async def test_an_unknown_update_says_which_are_known(stage: Stage) -> None:
    handle = stage.client.temporal.get_workflow_handle(stage.cycle)

    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await handle.execute_update("cast_balot", BID)

    assert isinstance(refused.value.cause, ApplicationError)
    assert "cast_ballot" in refused.value.cause.message
    assert "\n" not in refused.value.cause.message


async def test_an_update_that_fits_into_no_payload_is_refused_and_holds_nothing_up(stage: Stage) -> None:
    handle = stage.client.temporal.get_workflow_handle(stage.cycle)
    large = Payload(metadata={"encoding": b"json/plain"}, data=b'"' + b"x" * 2_500_000 + b'"')
    request = UpdateWorkflowExecutionRequest(
        namespace=wire.NAMESPACE,
        workflow_execution=WorkflowExecution(workflow_id=stage.cycle),
        request=Request(
            meta=Meta(update_id="large", identity="test"),
            input=Input(name=wire.PLACE_BID, args=Payloads(payloads=[large])),
        ),
    )

    with pytest.raises(RPCError, match="limit on total payload size") as refused:
        await stage.client.temporal.workflow_service.update_workflow_execution(request)
    with pytest.raises(WorkflowUpdateFailedError):  # the next one is answered
        await handle.execute_update(wire.PLACE_BID, {"message_id": "small"})
    events = [event.event_type async for event in handle.fetch_history_events()]

    assert refused.value.status is RPCStatusCode.RESOURCE_EXHAUSTED
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED not in events


async def test_the_client_is_refused_with_the_same_line(stage: Stage) -> None:
    bid = Bid.model_construct(**BID | {"price": "x"})  # as an untyped program would

    with pytest.raises(Refused, match=r"^price: expected a valid integer, but 'x' came$"):
        await stage.client.place_bid(stage.cycle, bid)
    with pytest.raises(Refused, match=r"^seconds: expected greater than 0, but -1.0 came$"):
        await stage.client.act(stage.cycle, wire.EXTEND, "olga", "because", -1.0)
    with pytest.raises(Refused, match=r"^who: expected text like .*, but 'two words' came$"):
        await stage.client.act(stage.cycle, wire.PAUSE, "two words", "because")


async def test_a_signal_that_cannot_be_read_leaves_a_receipt_with_the_same_line(stage: Stage) -> None:
    before = (await stage.client.status(stage.cycle)).refused

    await signal(stage, wire.PLACE_BID, "--input", json.dumps(BID | {"message_id": "unreadable", "price": "x"}))

    receipt = next(r for r in await stage.client.receipts(stage.cycle) if r.message_id == "unreadable")
    assert (receipt.kind, receipt.accepted, receipt.sender) == (wire.PLACE_BID, False, "")
    assert receipt.reason == "price: expected a valid integer, but 'x' came"
    assert (await stage.client.status(stage.cycle)).refused == before + 1


BAD_ACTS = {
    "nothing to resume": (wire.RESUME, None, "expected a paused cycle"),
    "nothing to promote": (wire.PROMOTE, None, "expected a cycle in phase approval"),
    "an extension by nothing": (wire.EXTEND, None, "expected how many seconds"),
}


@pytest.mark.parametrize(("kind", "seconds", "says"), BAD_ACTS.values(), ids=BAD_ACTS)
async def test_an_act_that_cannot_be_done_now_is_refused(
    stage: Stage, kind: str, seconds: float | None, says: str
) -> None:
    with pytest.raises(Refused, match=says):
        await stage.client.act(stage.cycle, kind, "olga", "because", seconds)


async def test_after_all_of_it_the_cycle_ends_properly(stage: Stage) -> None:
    await at(stage, Phase.VOTING)

    await ask(stage, TWICE)
    await stage.votes(PROPOSAL, cyd=Choice.REJECT)
    result = await stage.result()

    assert result.end is not None
    assert result.end.ending is Ending.REJECTED
    with pytest.raises(Refused, match="expected a cycle or a task that runs"):
        await ask(stage, builders.ballot("fay", PROPOSAL))
    with pytest.raises(Refused, match="expected a cycle or a task that runs"):
        await stage.client.act(stage.cycle, wire.ABORT, "olga", "too late")


async def hear(stage: Stage, word: Word) -> None:
    await stage.client.signal(stage.cycle, NAMES[type(word)], word)


@pytest.mark.parametrize("send", [say, hear], ids=["by temporal workflow signal", "by client.signal"])
async def test_the_story_is_told_by_signals_only(
    on_stage: Any,  # noqa: F811
    send: Callable[[Stage, Word], Awaitable[None]],
) -> None:
    done = asyncio.Event()
    async with on_stage() as stage:
        bids = [builders.bid(agent, 10 + 10 * number) for number, agent in enumerate(AGENTS)]
        await asyncio.gather(*(send(stage, bid) for bid in bids))
        await stage.reach(Phase.PROPOSING)
        proposal = builders.proposal("ada")
        await send(stage, proposal)
        await stage.reach(Phase.VOTING)
        choices = {"bob": Choice.APPROVE, "cyd": Choice.REJECT, "dee": Choice.APPROVE, "eve": Choice.APPROVE}
        ballots = [builders.ballot(agent, proposal.proposal_id, choice) for agent, choice in choices.items()]
        # The vote closes with the third approval: what is against it must be there by then.
        await send(stage, ballots[1])
        await asyncio.gather(*(send(stage, ballot) for ballot in ballots if ballot is not ballots[1]))
        traffic = asyncio.create_task(stage.runs_tasks(limited, done))
        result = await stage.result()
        done.set()
        await traffic
        receipts = {receipt.message_id for receipt in await stage.client.receipts(stage.cycle) if receipt.accepted}

    assert result.end.ending is Ending.PROMOTED, result.end.reason
    assert receipts == {word.message_id for word in (*bids, proposal, *ballots)}
    assert result.status.refused == 0


async def test_signals_wait_for_a_worker(temporal: Client, database: Database, task_queue: str) -> None:
    platform, request = ready(database, bid_window_s=60)
    cycle = f"cycle:{task_queue}"
    await temporal.start_workflow(wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue=task_queue)
    stage = Stage(NautilusClient(temporal, task_queue), database, platform, cycle)
    bid, junk = builders.bid("ada"), json.dumps({"junk": 1})

    await say(stage, bid)
    await signal(stage, wire.PLACE_BID, "--input", junk)
    async with worker(temporal, database, platform, Settings(), task_queue):
        await stage.reach(Phase.BIDDING)
        status, receipt = await stage.client.status(cycle), await receipt_of(stage, bid)
        await stage.client.act(cycle, wire.ABORT, "olga", "enough")
        await stage.result()

    assert receipt.accepted
    assert status.bids == {bid.agent_id: bid}
    assert status.refused == 1


BAD_INPUTS = {
    "nonsense": ('{"nonsense": 1}',),
    "not an object": ("42",),
    "neither anomaly nor proposal": ('{"request_id": "r"}',),
    "nothing": (),
    "a state that nobody carried": ('{"request_id": "r"}', '{"phase": "promoting"}'),
}


# The SDK makes the coroutine of `run` before it finds that the workflow cannot be constructed, and then drops it.
@pytest.mark.filterwarnings("ignore:coroutine .*run_workflow. was never awaited:RuntimeWarning")
@pytest.mark.parametrize("inputs", BAD_INPUTS.values(), ids=BAD_INPUTS)
async def test_a_cycle_with_bad_input_fails_at_once(stage: Stage, inputs: tuple[str, ...], task_queue: str) -> None:
    client = stage.client.temporal
    arguments = [part for text in inputs for part in ("--input", text)]

    start = ("workflow", "start", "--type", wire.IMPROVEMENT_CYCLE, "--task-queue", "messages")
    await command(client, *start, "--workflow-id", task_queue, *arguments)
    handle = client.get_workflow_handle(task_queue)
    with pytest.raises(WorkflowFailureError):
        await asyncio.wait_for(handle.result(), PATIENCE_S)

    described = await handle.describe()
    assert described.status is WorkflowExecutionStatus.FAILED
    assert described.history_length <= 5
    await asyncio.to_thread(gc.collect)
