"""The cycle on a real Temporal server and a real database: every phase, every ending."""

import asyncio
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlmodel import select
from temporalio import activity
from temporalio.api.failure.v1 import Failure
from temporalio.client import Client, WorkflowQueryFailedError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from activities import ledger, reading
from activities.accounts import balance
from activities.agents import register_agent
from activities.database import Database
from activities.experiment import ExperimentActivities
from activities.parameters import declare_parameters, roll_back_by_hand
from activities.recording import record_outcomes
from schema import wire
from schema.messages.base import Value
from schema.messages.cycle import CycleRequest, CycleResult, Ending, Phase, workflow_id
from schema.messages.ledger import EntryKind
from schema.messages.platform import Mode, Parameter, ParameterKind, Platform, TaskTypeDeclaration
from schema.messages.proposals import Choice, Evidence
from schema.messages.story import Act
from schema.settings import Settings
from schema.tables.experiment import ExperimentRow, ParameterRow, TaskTypeLockRow
from schema.tables.market import AgentRow, TransferRow
from starter.client import NautilusClient, Refused
from starter.platform.database_store import DatabaseStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver
from tests import builders
from tests.conftest import stop
from tests.patience import PATIENCE_S
from worker import worker

AGENTS = ("ada", "bob", "cyd", "dee", "eve", "fay")


class Stage:
    """One cycle under test: the platform around it, and the client that agents use."""

    def __init__(self, client: NautilusClient, database: Database, platform: Platform, cycle: str) -> None:
        self.client = client
        self.database = database
        self.platform = platform
        self.cycle = cycle

    async def reach(self, phase: Phase) -> None:
        async for status in self.client.follow(self.cycle, every_s=0.02):
            if status.phase is phase:
                return
            assert status.phase is not Phase.ENDED, f"ended before {phase}: {status.ending} {status.reason}"

    async def bids(self, *agents: str) -> None:
        await self.reach(Phase.BIDDING)
        for number, agent in enumerate(agents):
            await self.client.place_bid(self.cycle, builders.bid(agent, price=10 + 10 * number))

    async def declines(self, *agents: str) -> None:
        await self.reach(Phase.BIDDING)
        for agent in agents:
            found = Evidence(claim="whatever the limit, a third fails", figures={"share": 0.33})
            await self.client.decline(self.cycle, builders.decline(agent, findings=(found,)))

    async def proposes(self, agent: str, **changes: object) -> str:
        await self.reach(Phase.PROPOSING)
        proposal = builders.proposal(agent, **changes)
        await self.client.submit_proposal(self.cycle, proposal)
        return proposal.proposal_id

    async def votes(self, proposal_id: str, **choices: Choice) -> None:
        await self.reach(Phase.VOTING)
        for agent, choice in choices.items():
            await self.client.cast_ballot(self.cycle, builders.ballot(agent, proposal_id, choice))

    async def approved(self) -> None:
        await self.bids(*AGENTS)
        proposal_id = await self.proposes("ada")
        await self.votes(proposal_id, bob=Choice.APPROVE, cyd=Choice.APPROVE, dee=Choice.REJECT, eve=Choice.APPROVE)

    async def paused_in_the_queue(self) -> None:
        """Another cycle holds the task type; this one is paused behind it, and then it is this one's turn."""
        with self.database.transaction() as session:
            session.add(TaskTypeLockRow(task_type="research_synthesis", cycle_id="another"))
        await self.approved()
        await self.reach(Phase.QUEUED)
        await self.client.act(self.cycle, wire.PAUSE, "olga", "a release is going out")
        with self.database.transaction() as session:
            session.delete(session.get_one(TaskTypeLockRow, "research_synthesis"))

    def runs_tasks(self, succeeds: Callable[[Any, random.Random], bool], until: asyncio.Event) -> Awaitable[None]:
        """A platform that runs tasks: resolves each one's parameter and records how it went."""
        (declared,) = self.platform.parameters

        def traffic() -> None:
            rng = random.Random(7)
            with (
                ParameterResolver(DatabaseStore(self.database, self.platform), refresh_s=0.05) as resolver,
                Recorder(DatabaseStore(self.database, self.platform), linger_s=0.01) as recorder,
            ):
                number = 0
                while not until.is_set():
                    number += 1
                    task_id, now = f"task-{number}", datetime.now(UTC)
                    resolution = resolver.resolve_task("research_synthesis", task_id, now)
                    recorder.assigned(resolution.assignments)
                    value = resolution.values[declared.key]
                    recorder.record(builders.outcome(task_id, succeeds(value, rng), now)).result()

        return asyncio.to_thread(traffic)

    async def result(self) -> CycleResult:
        return await asyncio.wait_for(self.client.result(self.cycle), PATIENCE_S)


@pytest.fixture
def on_stage(temporal: Client, database: Database, task_queue: str):  # type: ignore[no-untyped-def]
    @asynccontextmanager
    async def stage(
        mode: Mode = Mode.AUTONOMOUS, parameter: Parameter | None = None, **changes: object
    ) -> AsyncIterator[Stage]:
        platform = builders.platform(
            cycle=builders.rules(**changes),
            mode=mode,
            task_types=(TaskTypeDeclaration(name="research_synthesis"), TaskTypeDeclaration(name="monte_carlo")),
            parameters=(parameter or builders.parameter(),),
        )
        now = datetime.now(UTC)
        declare_parameters(database, platform, now)
        for agent in AGENTS:
            register_agent(database, agent, f"op-{agent}", now)
        with database.transaction() as session:
            history = [builders.outcome(f"old-{n}", n % 3 > 0, now - timedelta(seconds=5)) for n in range(90)]
            record_outcomes(session, history, 1)
        anomaly = builders.anomaly(now - timedelta(seconds=10))
        request = CycleRequest(request_id=f"test:{task_queue}", anomaly=anomaly)
        cycle = f"{workflow_id(anomaly.subject)}:{task_queue}"
        async with worker(temporal, database, platform, Settings(), task_queue):
            await temporal.start_workflow(wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue=task_queue)
            yield Stage(NautilusClient(temporal, task_queue), database, platform, cycle)
            await stop(temporal, cycle)

    return stage


def limited(limit: float, rng: random.Random) -> bool:
    """The article's fault, as the demo has it: the limit is too short for half of the tasks."""
    return rng.random() < (0.97 if limit >= 180 else 0.5)


async def test_the_story_ends_with_a_promotion(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage() as stage:
        await stage.approved()
        done = asyncio.Event()
        traffic = asyncio.create_task(stage.runs_tasks(limited, done))
        result = await stage.result()
        done.set()
        await traffic

    assert result.end.ending is Ending.PROMOTED, result.end.reason
    assert result.end.agent_id == "ada"
    with stage.database.reading() as session:
        parameter = session.get_one(ParameterRow, builders.TIMEOUT)
        assert (parameter.value, parameter.version) == (180.0, 2)
        earned = (result.end.reward, result.end.bonus, result.end.forecast)
        assert earned[0] == 10
        assert balance(session, "ada") == sum(earned) > 10
        assert len(session.exec(select(TransferRow)).all()) == len([part for part in earned if part])
        assert session.get_one(AgentRow, "ada").standing > 0.5
        assert session.exec(select(TaskTypeLockRow)).all() == []
    kinds = [entry.kind for entry in ledger.entries(stage.database)]
    assert kinds == [
        EntryKind.PARAMETER_DECLARED,
        EntryKind.EXPERIMENT_DESIGNED,
        EntryKind.PARAMETER_PROMOTED,
        EntryKind.CYCLE_ENDED,
    ]
    assert ledger.verify(stage.database)[2] is None


OLD_PROMPT = "You answer a question from passages.\n\n{question}\n"
NEW_PROMPT = "You answer a question from passages, and cite each of them.\n\n{question}\n```\n"
KINDS: dict[str, tuple[Parameter, Value]] = {
    "integer": (
        builders.parameter(
            key="research_synthesis.retries", kind=ParameterKind.INTEGER, default=2, minimum=0, maximum=8, unit=""
        ),
        1,
    ),
    "boolean": (builders.not_numeric(key="research_synthesis.cache", kind=ParameterKind.BOOLEAN, default=True), False),
    "choice": (
        builders.not_numeric(
            key="research_synthesis.model", kind=ParameterKind.CHOICE, default="small", choices=("small", "large")
        ),
        "large",
    ),
    "text": (builders.prompt(default=OLD_PROMPT), NEW_PROMPT),
}


@pytest.mark.parametrize(("parameter", "value"), KINDS.values(), ids=KINDS)
async def test_a_parameter_of_every_kind_is_proposed_tested_promoted_and_rolled_back(  # type: ignore[no-untyped-def]
    on_stage, parameter: Parameter, value: Value
) -> None:
    is_harmful = threading.Event()

    def succeeds(resolved: Value, rng: random.Random) -> bool:
        helps = resolved == value and not is_harmful.is_set()
        return rng.random() < (0.97 if helps else 0.5 if resolved == parameter.default else 0.02)

    async with on_stage(parameter=parameter, bake_window_s=600, holdback_share=0.5) as stage:
        await stage.bids(*AGENTS)
        proposal_id = await stage.proposes("ada", parameter=parameter.key, value=value)
        await stage.votes(proposal_id, bob=Choice.APPROVE, cyd=Choice.APPROVE, dee=Choice.APPROVE)
        done = asyncio.Event()
        traffic = asyncio.create_task(stage.runs_tasks(succeeds, done))
        await stage.reach(Phase.WATCHING)
        promoted = reading.in_force(stage.database)[parameter.key]
        is_harmful.set()
        result = await stage.result()
        done.set()
        await traffic

    assert promoted == (value, 2)
    assert type(promoted[0]) is type(value)
    assert result.end.ending is Ending.ROLLED_BACK
    assert reading.in_force(stage.database)[parameter.key] == (parameter.default, 3)
    record = [(entry.kind, entry.body.get("value")) for entry in ledger.entries(stage.database)]
    assert record == [
        (EntryKind.PARAMETER_DECLARED, parameter.default),
        (EntryKind.EXPERIMENT_DESIGNED, None),
        (EntryKind.PARAMETER_PROMOTED, value),
        (EntryKind.PARAMETER_ROLLED_BACK, parameter.default),
        (EntryKind.CYCLE_ENDED, None),
    ]


@pytest.fixture
def documented_agent() -> ModuleType:
    """`docs/agent.py`, in the name of one of the agents that are registered here."""
    spec = spec_from_file_location("agent", Path(__file__).parents[1] / "docs" / "agent.py")
    assert spec is not None
    assert spec.loader is not None
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    example.AGENT = "bob"  # type: ignore[attr-defined]
    return example


async def test_the_documented_agent_bids_and_proposes_what_the_records_tell(  # type: ignore[no-untyped-def]
    on_stage, documented_agent: ModuleType
) -> None:
    async with on_stage(bid_window_s=8) as stage:
        running = asyncio.create_task(documented_agent.run(stage.client, 0.2))
        await stage.reach(Phase.VOTING)
        status = await stage.client.status(stage.cycle)
        running.cancel()

    assert list(status.bids) == ["bob"]
    assert status.proposal is not None
    assert (status.proposal.agent_id, status.proposal.parameter) == ("bob", builders.TIMEOUT)
    assert status.proposal.value == 1.5 * 90
    assert status.proposal.evidence[0].figures["share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("value", "choice"), [(180.0, Choice.APPROVE), (100.0, Choice.REJECT)])
async def test_the_documented_agent_votes_once_by_its_own_look_at_the_records(  # type: ignore[no-untyped-def]
    on_stage, documented_agent: ModuleType, value: float, choice: Choice
) -> None:
    async with on_stage() as stage:
        await stage.bids(*AGENTS)
        await stage.proposes("ada", value=value)
        await stage.reach(Phase.VOTING)
        running = asyncio.create_task(documented_agent.run(stage.client, 0.1))
        async with asyncio.timeout(PATIENCE_S):
            while not (status := await stage.client.status(stage.cycle)).ballots:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # it looks again, and says nothing new
        running.cancel()
        status = await stage.client.status(stage.cycle)

    assert {name: ballot.choice for name, ballot in status.ballots.items()} == {"bob": choice}
    assert status.refused == 0


async def test_a_proposal_of_what_nobody_declared_is_invalid_and_says_so(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage() as stage:
        cycle = await stage.client.open_cycle(builders.proposal("ada", parameter="no.such"))
        result = await asyncio.wait_for(stage.client.result(cycle), PATIENCE_S)

    assert result.end.ending is Ending.INVALID
    assert result.end.reason == f"expected a declared parameter ({builders.TIMEOUT}), but no.such came"


async def test_one_proposal_for_a_parameter_at_a_time_is_open_and_the_next_is_told(on_stage) -> None:  # type: ignore[no-untyped-def]
    first, second = builders.proposal("ada", message_id="first"), builders.proposal("bob", message_id="second")
    async with on_stage() as stage:
        cycle = await stage.client.open_cycle(first)
        again = await stage.client.open_cycle(first)
        expected = f"expected no open cycle on proposal:{builders.TIMEOUT}, but ada:first has one; wait for its end"
        with pytest.raises(Refused, match=re.escape(expected)):
            await stage.client.open_cycle(second)
        await stage.client.temporal.get_workflow_handle(cycle).terminate(reason="enough")
        with pytest.raises(Refused, match=f"expected a cycle that comes to an end of its own, but {cycle}: enough"):
            await stage.client.result(cycle)

    assert cycle == again


async def test_who_has_no_vote_is_told_that(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage() as stage:
        await stage.bids(*AGENTS)
        proposal_id = await stage.proposes("ada")
        await stage.reach(Phase.VOTING)
        with pytest.raises(Refused, match=r"expected a voter of the electorate .* but ada came"):
            await stage.client.cast_ballot(stage.cycle, builders.ballot("ada", proposal_id))


NOTHING: dict[str, Callable[[NautilusClient], Awaitable[object]]] = {
    "bid": lambda client: client.place_bid("none", builders.bid("ada")),
    "bid by a signal": lambda client: client.place_bid("none", builders.bid("ada"), wait=False),
    "act": lambda client: client.act("none", wire.PAUSE, "olga", "why"),
    "status": lambda client: client.status("none"),
    "receipts": lambda client: client.receipts("none"),
    "result": lambda client: client.result("none"),
    "task's status": lambda client: client.task_status("none"),
    "task's result": lambda client: client.task_result("none"),
    "first run": lambda client: client.first_run("none"),
}


@pytest.mark.parametrize("ask", NOTHING.values(), ids=NOTHING)
async def test_what_is_not_there_is_refused_alike(
    temporal: Client, ask: Callable[[NautilusClient], Awaitable[object]]
) -> None:
    with pytest.raises(Refused, match=r"expected a (cycle|task).*, but .*none"):
        await ask(NautilusClient(temporal))


async def test_a_client_without_a_server_says_where_it_has_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")

    with pytest.raises(ConnectionError, match=r"expected a Temporal server at 127\.0\.0\.1:1, but none answers"):
        await NautilusClient.connect()


async def test_a_change_without_effect_is_not_promoted(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage() as stage:
        await stage.approved()
        # The traffic begins with the experiment, or it would be chance which of its tasks take part.
        await stage.reach(Phase.EXPERIMENT)
        done = asyncio.Event()
        traffic = asyncio.create_task(stage.runs_tasks(lambda limit, rng: rng.random() < 0.67, done))
        result = await stage.result()
        done.set()
        await traffic

    assert result.end.ending in (Ending.FUTILE, Ending.INCONCLUSIVE)
    with stage.database.reading() as session:
        assert session.get_one(ParameterRow, builders.TIMEOUT).version == 1
        # The forecast was wrong, and costs; there is nothing else to be paid for.
        assert balance(session, "ada") == result.end.forecast <= 0


async def test_nobody_bids(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage(bid_window_s=0.3) as stage:
        result = await stage.result()

    assert result.end.ending is Ending.NO_BIDS


async def test_the_next_bidder_is_awarded_when_the_winner_misses_its_deadline(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage(bid_window_s=8, proposal_window_s=8, voting_window_s=0.5) as stage:
        await stage.bids("ada", "bob")
        async for status in stage.client.follow(stage.cycle, every_s=0.02):
            if status.award and status.award.agent_id == "bob" and status.phase is Phase.PROPOSING:
                break
        await stage.proposes("bob")
        result = await stage.result()

    assert result.end.ending is Ending.REJECTED  # nobody voted: no quorum is not consent
    assert result.end.agent_id == "bob"
    with stage.database.reading() as session:
        assert session.get_one(AgentRow, "ada").standing < 0.5


async def test_no_proposal_from_any_bidder(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage(bid_window_s=8, proposal_window_s=0.3) as stage:
        await stage.bids("ada", "bob")
        result = await stage.result()

    assert result.end.ending is Ending.NO_PROPOSAL


async def test_a_vote_against_ends_the_cycle(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage() as stage:
        await stage.bids(*AGENTS)
        proposal_id = await stage.proposes("ada")
        await stage.votes(proposal_id, bob=Choice.REJECT, cyd=Choice.REJECT, dee=Choice.REJECT)
        result = await stage.result()

    assert result.end.ending is Ending.REJECTED
    assert result.end.tally.reject == 3


async def test_a_person_aborts_a_running_experiment(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage() as stage:
        await stage.approved()
        await stage.reach(Phase.EXPERIMENT)
        await stage.client.act(stage.cycle, wire.ABORT, "olga", "maintenance")
        result = await stage.result()

    assert result.end.ending is Ending.ABORTED
    assert "olga" in result.end.reason


async def test_temporal_cancel_ends_in_the_ledger_too(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage() as stage:
        await stage.reach(Phase.BIDDING)
        await stage.client.temporal.get_workflow_handle(stage.cycle).cancel()
        result = await stage.result()

    assert result.end.ending is Ending.ABORTED
    assert ledger.entries(stage.database)[-1].kind is EntryKind.CYCLE_ENDED


async def test_what_cannot_be_taken_is_refused_with_a_reason(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage() as stage:
        await stage.reach(Phase.BIDDING)
        with pytest.raises(Refused, match="expected an agent that was registered"):
            await stage.client.place_bid(stage.cycle, builders.bid("mallory"))
        with pytest.raises(Refused, match="phase bidding"):
            await stage.client.cast_ballot(stage.cycle, builders.ballot("bob"))
        await stage.bids(*AGENTS)
        await stage.reach(Phase.PROPOSING)
        for wrong, expected in (
            ({"value": 300.0}, "at most 120"),
            ({"value": 5.0}, "between 10 and 600"),
            ({"parameter": "monte_carlo.samples"}, "declared parameter"),
            ({"base_version": 7}, "base version 1"),
            ({"predicted_rate": 0.67}, "predicted rate of at least"),
        ):
            with pytest.raises(Refused, match=expected):
                await stage.client.submit_proposal(stage.cycle, builders.proposal("ada", **wrong))
        with pytest.raises(Refused, match="has the award"):
            await stage.client.submit_proposal(stage.cycle, builders.proposal("bob"))
        await stage.client.act(stage.cycle, wire.ABORT, "olga", "enough")
        await stage.result()


async def test_a_refusal_says_in_one_line_what_was_expected_and_nothing_of_the_worker_s_code(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage() as stage:
        await stage.reach(Phase.BIDDING)
        handle = stage.client.temporal.get_workflow_handle(stage.cycle)
        sent = {
            wire.PLACE_BID: builders.bid("mallory"),
            wire.CAST_BALLOT: "no ballot",
            wire.RESUME: Act(message_id="r", who="olga", why="go on"),
            wire.HEARTBEAT: builders.bid("ada"),
            "\x1b[2J": 1,
        }
        refusals: dict[str, Failure] = {}
        for name, message in sent.items():
            with pytest.raises(WorkflowUpdateFailedError) as refused:
                await handle.execute_update(name, message)
            assert isinstance(refused.value.cause, ApplicationError)
            assert refused.value.cause.failure is not None
            refusals[name] = refused.value.cause.failure
        with pytest.raises(WorkflowQueryFailedError) as unanswered:
            await handle.query("status\n", 7)
        await stage.client.act(stage.cycle, wire.ABORT, "olga", "enough")
        await stage.result()

    assert [refusal.stack_trace for refusal in refusals.values()] == [""] * len(sent)
    assert all(refusal.message.startswith("expected ") for refusal in refusals.values())
    known = "place_bid, submit_proposal, cast_ballot, decline, pause, resume, abort, veto, extend, promote, widen"
    assert refusals[wire.HEARTBEAT].message == f"expected {known}, but heartbeat came"
    assert refusals["\x1b[2J"].message == f"expected {known}, but \\x1b[2J came"
    assert str(unanswered.value) == "expected status or receipts, but status came"


async def test_signals_are_taken_and_leave_receipts(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage() as stage:
        good, bad = builders.bid("ada"), builders.bid("mallory")
        await stage.client.place_bid(stage.cycle, good, wait=False)
        await stage.client.place_bid(stage.cycle, bad, wait=False)
        await stage.reach(Phase.BIDDING)
        receipts = {receipt.message_id: receipt for receipt in await stage.client.receipts(stage.cycle)}
        await stage.client.act(stage.cycle, wire.ABORT, "olga", "enough")
        await stage.result()

    assert receipts[good.message_id].accepted
    assert "expected an agent" in receipts[bad.message_id].reason


async def test_a_flooded_cycle_continues_as_new_and_loses_nothing(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage() as stage:
        await stage.bids("ada", "bob")
        handle = stage.client.temporal.get_workflow_handle(stage.cycle)
        run_id = (await handle.describe()).run_id
        for _ in range(10):
            await asyncio.gather(*(handle.signal(wire.PLACE_BID, {"junk": n}) for n in range(60)))
        await stage.bids("cyd", "dee", "eve", "fay")
        proposal_id = await stage.proposes("ada")
        await stage.votes(proposal_id, bob=Choice.REJECT, cyd=Choice.REJECT, dee=Choice.REJECT)
        result = await stage.result()
        last = await handle.describe()

    assert last.run_id != run_id
    assert result.status.refused == 600
    assert set(result.status.bids) == set(AGENTS)
    assert result.end.ending is Ending.REJECTED
    assert [e.kind for e in ledger.entries(stage.database)] == [EntryKind.PARAMETER_DECLARED, EntryKind.CYCLE_ENDED]


async def test_a_paused_cycle_waits_and_its_deadline_waits_too(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage(bid_window_s=8) as stage:
        await stage.reach(Phase.BIDDING)
        await stage.client.act(stage.cycle, wire.PAUSE, "olga", "looking into it")
        before = await stage.client.status(stage.cycle)
        await asyncio.to_thread(_outlast, before.deadline)
        still = await stage.client.status(stage.cycle)
        with pytest.raises(Refused, match="it is paused"):
            await stage.client.act(stage.cycle, wire.PAUSE, "olga", "again")
        await stage.client.act(stage.cycle, wire.RESUME, "olga", "fine")
        after = await stage.client.status(stage.cycle)
        result = await stage.result()

    assert still.phase is Phase.BIDDING
    assert after.deadline > before.deadline
    assert result.end.ending is Ending.NO_BIDS
    kinds = [entry.kind for entry in ledger.entries(stage.database)]
    assert kinds == [
        EntryKind.PARAMETER_DECLARED,
        EntryKind.PERSON_ACTED,
        EntryKind.PERSON_ACTED,
        EntryKind.CYCLE_ENDED,
    ]


async def test_a_cycle_paused_in_the_queue_exposes_no_task_before_it_goes_on(on_stage) -> None:  # type: ignore[no-untyped-def]
    def exposing() -> list[bool]:
        with stage.database.reading() as session:
            return [row.exposing for row in session.exec(select(ExperimentRow))]

    async with on_stage() as stage:
        await stage.paused_in_the_queue()
        await stage.reach(Phase.EXPERIMENT)
        held = exposing()
        await stage.client.act(stage.cycle, wire.RESUME, "olga", "it is out")
        after = exposing()
        await stage.client.act(stage.cycle, wire.ABORT, "olga", "enough")
        await stage.result()

    assert (held, after) == ([False], [True])


async def test_a_cycle_resumed_while_it_is_being_held_is_not_held(on_stage, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    begun, go_on, told = threading.Event(), threading.Event(), list[bool]()
    expose = ExperimentActivities.expose

    @activity.defn(name="expose")
    def slow(self: ExperimentActivities, experiment_id: str, exposure: float, held: bool) -> None:
        told.append(held)
        begun.set()
        assert go_on.wait(20)
        expose(self, experiment_id, exposure, held)

    monkeypatch.setattr(ExperimentActivities, "expose", slow)
    async with on_stage() as stage:
        await stage.paused_in_the_queue()
        assert await asyncio.to_thread(begun.wait, 20)
        await stage.client.act(stage.cycle, wire.RESUME, "olga", "it is out")
        go_on.set()
        await stage.reach(Phase.EXPERIMENT)
        with stage.database.reading() as session:
            exposing = [row.exposing for row in session.exec(select(ExperimentRow))]
        await stage.client.act(stage.cycle, wire.ABORT, "olga", "enough")
        await stage.result()

    assert told[:2] == [True, False]
    assert exposing == [True]


def _outlast(deadline: datetime) -> None:
    while datetime.now(UTC) <= deadline + timedelta(milliseconds=100):
        time.sleep(0.05)


async def test_a_veto_ends_a_running_experiment(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage() as stage:
        await stage.reach(Phase.BIDDING)
        with pytest.raises(Refused, match="expected a cycle in phase voting or"):
            await stage.client.act(stage.cycle, wire.VETO, "olga", "no")
        await stage.approved()
        await stage.reach(Phase.EXPERIMENT)
        await stage.client.act(stage.cycle, wire.VETO, "olga", "not this week")
        result = await stage.result()

    assert result.end.ending is Ending.REJECTED
    assert result.end.reason == "vetoed by olga: not this week"


async def test_an_extended_window_closes_later(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage(bid_window_s=8) as stage:
        await stage.reach(Phase.BIDDING)
        before = await stage.client.status(stage.cycle)
        await stage.client.act(stage.cycle, wire.EXTEND, "olga", "give them time", seconds=1)
        after = await stage.client.status(stage.cycle)
        result = await stage.result()

    assert after.deadline - before.deadline == timedelta(seconds=1)
    assert result.end.at >= after.deadline


async def test_recommend_waits_for_a_person_to_promote(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage(mode=Mode.RECOMMEND) as stage:
        await stage.approved()
        done = asyncio.Event()
        traffic = asyncio.create_task(stage.runs_tasks(limited, done))
        await stage.reach(Phase.APPROVAL)
        with stage.database.reading() as session:
            assert session.get_one(ParameterRow, builders.TIMEOUT).version == 1
        await stage.client.act(stage.cycle, wire.PROMOTE, "olga", "the evidence is clear")
        result = await stage.result()
        done.set()
        await traffic

    assert result.end.ending is Ending.PROMOTED
    with stage.database.reading() as session:
        assert session.get_one(ParameterRow, builders.TIMEOUT).version == 2


async def test_a_promotion_that_a_person_takes_back_ends_the_watch_and_costs_nobody(on_stage) -> None:  # type: ignore[no-untyped-def]
    async with on_stage(bake_window_s=600) as stage:
        await stage.approved()
        done = asyncio.Event()
        traffic = asyncio.create_task(stage.runs_tasks(limited, done))
        await stage.reach(Phase.WATCHING)
        roll_back_by_hand(stage.database, builders.TIMEOUT, "olga", "users complain", datetime.now(UTC))
        result = await stage.result()
        done.set()
        await traffic

    assert result.end.ending is Ending.ROLLED_BACK
    assert result.end.reason == f"a person rolled {builders.TIMEOUT} back while it was watched"
    assert (result.end.reward, result.end.penalty) == (0, 0)
    with stage.database.reading() as session:
        assert session.get_one(ParameterRow, builders.TIMEOUT).value == 90.0
        assert session.exec(select(TaskTypeLockRow)).all() == []
