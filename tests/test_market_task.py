"""Market tasks: what users ask for, from its opening to its settlement, on a real server with real parts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlmodel import select
from temporalio.client import Client, WorkflowFailureError

from activities import identity
from activities.accounts import balance
from activities.agents import register_agent, roster
from activities.database import Database
from activities.parameters import declare_parameters
from activities.task_runner import TaskRunner
from activities.task_types import installed
from schema import wire
from schema.failure_kinds import FailureKind
from schema.messages.market import Bid
from schema.messages.platform import MarketRules, Parameter, Platform, TaskTypeDeclaration
from schema.messages.schedules import JobReport, JobRequest
from schema.messages.tasks import (
    Heartbeat,
    TaskEnding,
    TaskPhase,
    TaskRequest,
    TaskStatus,
    TypeRegistration,
    WorkResult,
    task_workflow_id,
)
from schema.settings import Settings
from schema.tables.events import EventRow
from schema.tables.market import AgentRow, AwardRow, RecordRow, TaskTypeRow
from schema.tables.observatory import OutcomeRow
from starter.agents.bidder import bid_on
from starter.agents.roster import ROSTER
from starter.client import NautilusClient, Refused
from starter.keys import AgentKey
from starter.platform.database_store import DatabaseStore
from starter.platform.resolver import ParameterResolver
from starter.server import binary
from tests.patience import PATIENCE_S
from worker import task_worker, worker

MONTE_CARLO = {
    "spot": 100.0,
    "strike": 100.0,
    "rate": 0.01,
    "volatility": 0.2,
    "maturity": 1.0,
    "target_se": 50.0,
    "seed": 1,
}
QUICK = MarketRules(bid_window_s=60, award_window_s=10, result_window_s=60, heartbeat_s=60, check_share=0)


def declared(rules: MarketRules = QUICK) -> Platform:
    """One type that is bid on and one that is direct, both of few samples."""
    samples = Parameter(
        key="monte_carlo.samples",
        kind="integer",
        default=100,
        minimum=2,
        maximum=10_000,
        task_types=("monte_carlo", "physics_simulation"),
    )
    limit = Parameter(
        key="monte_carlo.timeout_s", kind="float", default=10.0, minimum=0.01, maximum=60, task_types=("monte_carlo",)
    )
    types = (
        TaskTypeDeclaration(name="monte_carlo", timeout_parameter="monte_carlo.timeout_s"),
        TaskTypeDeclaration(name="physics_simulation", direct=True),
    )
    return Platform(
        unsigned_agents=True, mode="autonomous", task_types=types, parameters=(samples, limit), market=rules
    )


@dataclass
class Market:
    client: NautilusClient
    database: Database

    async def submit(self, task_type: str = "monte_carlo", **changes: Any) -> str:
        fields = {"task_id": f"t-{uuid4()}", "task_type": task_type, "payload": MONTE_CARLO, "requester": "rita"}
        request = TaskRequest(**(fields | changes))
        assert await self.client.submit_task(request)
        return task_workflow_id(request.task_id)

    async def bid(self, task: str, agent: str, price: int = 40) -> None:
        await self.client.place_bid(task, Bid(message_id=f"b-{agent}", agent_id=agent, price=price, eta_s=5))

    async def reach(self, task: str, holds: Callable[[TaskStatus], bool]) -> TaskStatus:
        async with asyncio.timeout(PATIENCE_S):
            while not holds(status := await self.client.task_status(task)):
                await asyncio.sleep(0.05)
        return status

    async def executing(self, task: str, agent: str) -> TaskStatus:
        return await self.reach(
            task, lambda s: s.phase is TaskPhase.EXECUTING and s.award is not None and s.award.agent_id == agent
        )

    async def ended(self, task: str) -> TaskStatus:
        return await asyncio.wait_for(self.client.task_result(task), PATIENCE_S)

    def balances(self, *accounts: str) -> list[int]:
        with self.database.reading() as session:
            return [balance(session, account) for account in accounts]

    def events(self, kind: str) -> list[dict[str, Any]]:
        with self.database.reading() as session:
            return [e.data for e in session.exec(select(EventRow).where(EventRow.type == kind)).all()]

    def outcome(self, task: str) -> OutcomeRow | None:
        with self.database.reading() as session:
            return session.get(OutcomeRow, task.removeprefix("task:"))

    def registered(self, task_type: str) -> bool:
        with self.database.reading() as session:
            return session.get(TaskTypeRow, task_type) is not None

    def agent(self, agent_id: str) -> AgentRow:
        with self.database.reading() as session:
            return session.get_one(AgentRow, agent_id)


@asynccontextmanager
async def market(
    temporal: Client,
    database: Database,
    queue: str,
    home: Path,
    platform: Platform | None = None,
    built_in: bool = True,
) -> AsyncIterator[Market]:
    platform = platform or declared()
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    for agent in ("ann", "bea"):
        register_agent(database, agent, f"op-{agent}", now, built_in=built_in)
    types = {name: kind for name, kind in installed().items() if name == "monte_carlo"}
    with TaskRunner(types, home) as runner, ParameterResolver(DatabaseStore(database, platform)) as resolver:
        async with (
            worker(temporal, database, platform, Settings(), queue),
            task_worker(temporal, database, platform, runner, resolver, f"{queue}-tasks"),
        ):
            yield Market(NautilusClient(temporal, queue), database)


async def test_a_task_is_bid_on_done_in_house_and_settled(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    async with market(temporal, database, task_queue, tmp_path) as stage:
        task = await stage.submit(notify="chat:1")
        await stage.bid(task, "bea", price=80)
        await stage.bid(task, "ann", price=40)
        ended = await stage.ended(task)

    assert ended.settlement is not None
    assert (ended.settlement.ending, ended.settlement.agent_id) == (TaskEnding.DONE, "ann")
    assert "The call is worth" in ended.settlement.summary
    assert stage.balances("ann", "bea", "requester:rita") == [40, 0, -40]
    outcome = stage.outcome(task)
    assert outcome is not None
    assert (outcome.failure, outcome.agent_id, outcome.cost) == (None, "ann", 40)
    assert stage.agent("ann").standing > 0.5
    with database.reading() as session:
        record = session.get_one(RecordRow, ("ann", "monte_carlo"))
        assert (record.attempts, record.successes, record.rated) == (1, 1, 1)
        ranking = session.get_one(AwardRow, (task, "ann")).body["ranking"]
    assert [entry["agent_id"] for entry in ranking] == ["ann", "bea"]
    assert "price 40 of 100" in ranking[0]["reason"]
    settled = stage.events("task.settled")[0]
    assert settled.keys() == {
        *("task_id", "task_type", "agent_id", "success", "requester", "notify", "title", "text"),
    }
    assert (settled["success"], settled["notify"]) == (True, "chat:1")


async def test_a_task_that_is_submitted_twice_is_done_once(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    async with market(temporal, database, task_queue, tmp_path) as stage:
        task = await stage.submit(task_id="twice")
        request = (await stage.client.task_status(task)).request
        await stage.bid(task, "ann")
        await stage.bid(task, "bea")
        again = await stage.client.submit_task(request)
        await stage.ended(task)
        late = await stage.client.submit_task(request)
        # The server forgets after its retention; the market does not.
        handle = await temporal.start_workflow(wire.MARKET_TASK, request, id="other", task_queue=task_queue)
        with pytest.raises(WorkflowFailureError):
            await handle.result()

    assert (again, late) == (False, False)
    assert stage.balances("requester:rita") == [-40]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"payload": MONTE_CARLO | {"strike": 1.0}}, "another payload came"),
        ({"task_type": "research_synthesis", "price": 7}, "another task_type and another price came"),
        ({"requester": "somebody"}, "another requester came"),
    ],
)
async def test_an_id_that_another_task_has_had_is_refused(temporal: Client, other: dict[str, Any], named: str) -> None:
    client = NautilusClient(temporal, f"nobody-{uuid4()}")
    first = TaskRequest(task_id=f"twice-{uuid4()}", task_type="monte_carlo", payload=MONTE_CARLO, requester="rita")
    submitted = await client.submit_task(first)

    with pytest.raises(Refused, match=f"expected {first.task_id} as it was submitted before, .* but {named}"):
        await client.submit_task(first.model_copy(update=other))

    assert submitted
    assert not await client.submit_task(first)
    await temporal.get_workflow_handle(f"task:{first.task_id}").terminate()


async def test_a_task_is_killed_at_its_limit_and_nobody_is_paid(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    platform = declared()
    slow = [p.model_copy(update={"default": 10_000}) if p.key.endswith("samples") else p for p in platform.parameters]
    slow = [p.model_copy(update={"default": 0.01}) if p.key.endswith("timeout_s") else p for p in slow]
    slow[0] = slow[0].model_copy(update={"default": 50_000_000, "maximum": 60_000_000})
    async with market(
        temporal, database, task_queue, tmp_path, platform.model_copy(update={"parameters": tuple(slow)})
    ) as stage:
        task = await stage.submit()
        await stage.bid(task, "ann")
        await stage.bid(task, "bea", 90)
        ended = await stage.ended(task)

    assert ended.settlement is not None
    assert (ended.settlement.ending, ended.settlement.failure) == (TaskEnding.FAILED, FailureKind.TIMEOUT)
    assert "killed at its limit" in ended.settlement.reason
    assert stage.balances("ann", "requester:rita") == [0, 0]
    assert stage.agent("ann").standing < 0.5


async def test_a_direct_task_needs_no_bid(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    platform = declared()
    direct = tuple(t.model_copy(update={"direct": True}) for t in platform.task_types)
    async with market(
        temporal, database, task_queue, tmp_path, platform.model_copy(update={"task_types": direct})
    ) as stage:
        tasks = [await stage.submit() for _ in range(4)]
        ended = [await stage.ended(task) for task in tasks]
        history = await temporal.get_workflow_handle(tasks[0]).fetch_history()

    assert all(s.settlement and s.settlement.ending is TaskEnding.DONE for s in ended)
    assert {s.award.agent_id for s in ended if s.award} == {"ann", "bea"}  # by load, not all to one
    scheduled = [e for e in history.events if e.HasField("activity_task_scheduled_event_attributes")]
    assert len(scheduled) == 2
    assert sum(stage.balances("ann", "bea", "requester:rita")) == 0


async def test_silence_forfeits_and_the_next_bid_is_awarded(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    rules = QUICK.model_copy(update={"heartbeat_s": 4.0})
    async with market(temporal, database, task_queue, tmp_path, declared(rules), built_in=False) as stage:
        task = await stage.submit()
        await stage.bid(task, "ann", 40)
        await stage.bid(task, "bea", 90)
        await stage.executing(task, "ann")
        await stage.executing(task, "bea")
        for number in range(6):
            await stage.client.heartbeat(
                task, Heartbeat(message_id=f"h-{number}", agent_id="bea", progress=f"{number} of 6"), wait=False
            )
            await asyncio.sleep(1)  # all six together are longer than anybody may be silent
        for wrong, says in (
            (WorkResult(message_id="r", agent_id="ann", quality=1), "expected a message of bea, who has the award"),
        ):
            with pytest.raises(Refused, match=says):
                await stage.client.submit_result(task, wrong)
        good = WorkResult(message_id="r", agent_id="bea", quality=0.9, summary="priced", details={"price": 7.9})
        await stage.client.submit_result(task, good)
        await stage.client.submit_result(task, good)
        ended = await stage.ended(task)

    assert ended.settlement is not None
    assert (ended.settlement.ending, ended.settlement.agent_id, ended.missed) == (TaskEnding.DONE, "bea", ["ann"])
    assert ended.progress == "5 of 6"
    # The penalty is half of what was asked.
    assert stage.balances("ann", "bea", "treasury", "requester:rita") == [-20, 90, 20, -90]
    assert stage.agent("ann").standing < 0.5 < stage.agent("bea").standing


async def test_a_task_that_nobody_hands_in_is_lost_and_one_without_bids_is_no_outcome(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    rules = QUICK.model_copy(update={"heartbeat_s": 0.5, "bid_window_s": 8})
    async with market(temporal, database, task_queue, tmp_path, declared(rules), built_in=False) as stage:
        silent, unwanted = await stage.submit(), await stage.submit()
        await stage.bid(silent, "ann")
        lost, without = await stage.ended(silent), await stage.ended(unwanted)
        unknown = await stage.ended(await stage.submit("levitation"))

    endings = [s.settlement.ending for s in (lost, without, unknown) if s.settlement]
    assert endings == [TaskEnding.NO_RESULT, TaskEnding.NO_BIDS, TaskEnding.REFUSED]
    outcome = stage.outcome(silent)
    assert outcome is not None
    assert (outcome.failure, outcome.agent_id) == ("lost", "")
    assert stage.outcome(unwanted) is None
    assert [e["success"] for e in stage.events("task.settled")] == [False, False, False]


@pytest.mark.parametrize("how", ["abort", "cancel"])
async def test_a_person_ends_a_task_and_that_is_settled(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path, how: str
) -> None:
    async with market(temporal, database, task_queue, tmp_path, built_in=False) as stage:
        task = await stage.submit()
        await stage.bid(task, "ann")
        await stage.bid(task, "bea", 90)
        await stage.executing(task, "ann")
        if how == "abort":
            await stage.client.act(task, wire.ABORT, "olga", "not needed any more")
        else:
            await temporal.get_workflow_handle(task).cancel()
        ended = await stage.ended(task)

    assert ended.settlement is not None
    assert ended.settlement.ending is TaskEnding.ABORTED
    says = "olga: not needed any more" if how == "abort" else "temporal: the workflow was cancelled"
    assert ended.settlement.reason == says
    assert stage.outcome(task) is None
    assert stage.agent("ann").attempts == 0


async def test_what_is_handed_in_is_done_again_and_a_lie_is_a_failure(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    rules = QUICK.model_copy(update={"check_share": 1.0})
    async with market(temporal, database, task_queue, tmp_path, declared(rules), built_in=False) as stage:
        task = await stage.submit()
        await stage.bid(task, "ann")
        await stage.bid(task, "bea", 90)
        await stage.executing(task, "ann")
        claimed = WorkResult(message_id="r", agent_id="ann", quality=0.1, summary="with password=hunter2")
        await stage.client.submit_result(task, claimed)
        ended = await stage.ended(task)

    assert ended.settlement is not None
    assert (ended.settlement.ending, ended.settlement.failure) == (TaskEnding.FAILED, FailureKind.INVALID_RESULT)
    assert "as the platform measured it, but 0.1 was claimed" in ended.settlement.reason
    outcome = stage.outcome(task)
    assert outcome is not None
    assert (outcome.reason, outcome.detail) == ("result_refuted", ended.settlement.reason)
    assert stage.balances("ann") == [0]
    assert "hunter2" not in ended.model_dump_json()


async def test_a_failure_that_is_handed_in_says_why_and_so_does_its_outcome(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    why = {"reason": "rate_limited", "detail": "429: slow down", "attributes": {"model": "small", "tokens": 12.0}}
    failed = {"failure": FailureKind.ERROR, "summary": "it was busy"}
    outcomes = []
    async with market(temporal, database, task_queue, tmp_path, built_in=False) as stage:
        # An executor from before has a summary only.
        for winner, other, fields in (("ann", "bea", why), ("bea", "ann", {})):
            task = await stage.submit()
            await stage.bid(task, winner)
            await stage.bid(task, other, 90)
            await stage.executing(task, winner)
            result = WorkResult(message_id="r", agent_id=winner, **failed, **fields)
            await stage.client.submit_result(task, result)
            await stage.ended(task)
            outcomes.append(stage.outcome(task))

    told, silent = ({name: getattr(outcome, name) for name in why} for outcome in outcomes)
    assert told == why
    assert silent == {"reason": "", "detail": "it was busy", "attributes": {}}


async def test_who_asks_for_a_failed_task_reads_why_without_the_credentials_in_it(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    async with market(temporal, database, task_queue, tmp_path, built_in=False) as stage:
        task = await stage.submit()
        await stage.bid(task, "ann")
        await stage.bid(task, "bea", 90)
        await stage.executing(task, "ann")
        said = {"summary": "no login with password=hunter2", "detail": "GET /?token=hunter2 failed"}
        result = WorkResult(message_id="r", agent_id="ann", failure=FailureKind.ERROR, **said)
        await stage.client.submit_result(task, result)
        ended = await stage.ended(task)
        status = await stage.client.task_status(task)

    assert status.settlement is not None
    assert status.settlement.reason == "error: no login with password=[removed]"
    assert status.result is not None
    assert status.result.detail == "GET /?token=[removed] failed"
    assert "hunter2" not in ended.model_dump_json() + status.model_dump_json()


async def test_a_message_that_is_cut_does_not_end_with_half_a_key(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    keys = "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "sk_live_4eC39HqLyjW"  # pragma: allowlist secret
    # The detail is cut in the first key, the reason in the second.
    summary = ("a " * 243 + keys[0]).ljust(1_980, ".") + " " + keys[1]
    async with market(temporal, database, task_queue, tmp_path, built_in=False) as stage:
        task = await stage.submit()
        await stage.bid(task, "ann")
        await stage.bid(task, "bea", 90)
        await stage.executing(task, "ann")
        result = WorkResult(message_id="r", agent_id="ann", failure=FailureKind.ERROR, summary=summary)
        await stage.client.submit_result(task, result)
        ended = await stage.ended(task)

    shown = ended.model_dump_json()
    assert "ghp_" not in shown
    assert "sk_live" not in shown


async def test_an_agent_brings_a_task_type_and_it_is_bid_on_at_once(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    async with market(temporal, database, task_queue, tmp_path, built_in=False) as stage:
        wanted = TypeRegistration(message_id="1", agent_id="ann", name="translation", description="between languages")
        listing = await stage.client.register_type(wanted)
        for refused, says in (
            (wanted.model_copy(update={"message_id": "2", "agent_id": "bea"}), "is op-ann's"),
            (wanted.model_copy(update={"message_id": "3", "name": "monte_carlo"}), "the platform itself runs"),
            (wanted.model_copy(update={"message_id": "4", "agent_id": "zoe"}), "expected a registered agent"),
        ):
            with pytest.raises(Refused, match=says):
                await stage.client.register_type(refused)
        task = await stage.submit("translation", payload={"text": "ahoy"})
        await stage.bid(task, "ann")
        listed = await stage.client.tasks()
        status = await stage.reach(task, lambda s: bool(s.bids))
        await stage.bid(task, "bea", 90)
        await stage.executing(task, "ann")
        await stage.client.submit_result(
            task, WorkResult(message_id="r", agent_id="ann", quality=1, summary="hello"), wait=False
        )
        ended = await stage.ended(task)

    assert (listing.executor, listing.operator) == ("ann", "op-ann")
    assert (task, "translation") in {(t.workflow_id, t.task_type) for t in listed}
    assert all(bid_on(status, agent.agent_id) is None for agent in ROSTER)  # the platform cannot do it
    assert ended.settlement is not None
    assert ended.settlement.summary == "hello"


async def test_a_flood_of_junk_does_not_stop_a_task(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    async with market(temporal, database, task_queue, tmp_path, built_in=False) as stage:
        task = await stage.submit()
        handle = temporal.get_workflow_handle(task)
        for number in range(250):
            await handle.signal("place_bid" if number % 2 else "junk", args=[{"no": number}] * (number % 3))
        await stage.bid(task, "ann")
        await stage.bid(task, "bea", 90)
        await stage.executing(task, "ann")
        await stage.client.submit_result(task, WorkResult(message_id="r", agent_id="ann", quality=1))
        ended = await stage.ended(task)

    assert ended.settlement is not None
    assert ended.settlement.ending is TaskEnding.DONE
    assert ended.refused == 250


async def test_a_suspended_agent_comes_back_on_probation_and_idleness_fades(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    rules = QUICK.model_copy(update={"suspension_s": 60.0, "idle_half_life_s": 86_400.0})
    async with market(temporal, database, task_queue, tmp_path, declared(rules), built_in=False) as stage:
        with database.transaction() as session:
            sue, idle = session.get_one(AgentRow, "ann"), session.get_one(AgentRow, "bea")
            sue.suspended, sue.suspended_at, sue.standing, sue.attempts = True, now - timedelta(hours=1), 0.1, 20
            idle.standing, idle.active_at, idle.attempts = 0.9, now - timedelta(days=1), 20
            session.add_all((sue, idle, RecordRow(agent_id="bea", task_type="monte_carlo", attempts=8, successes=6)))
            session.add(RecordRow(agent_id="ann", task_type="monte_carlo", attempts=20, successes=6))
        job = JobRequest(job_id="standing_decay", budget_s=20)
        for number in range(2):
            report = await temporal.execute_workflow(
                wire.STANDING_DECAY, job, id=f"{task_queue}-{number}", task_queue=task_queue, result_type=JobReport
            )
            if number == 0:
                assert report.notes == ("restored: ann",)
        with database.reading() as session:
            agents = {a.agent_id: a for a in roster(session, "monte_carlo")}
        task = await stage.submit()
        await stage.bid(task, "ann")
        await stage.bid(task, "bea")
        # By the record that it was suspended for, it would never be awarded a task again.
        await stage.executing(task, "ann")

    assert not agents["ann"].suspended
    assert agents["ann"].standing == pytest.approx(0.25, abs=0.01)
    assert agents["bea"].standing == pytest.approx(0.7, abs=0.01)
    assert agents["bea"].record.attempts == pytest.approx(4, abs=0.01)
    assert [e["agent_id"] for e in stage.events("agent.restored")] == ["ann"]


async def test_the_documented_executor_does_what_it_is_awarded(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    spec = spec_from_file_location("executor", Path(__file__).parents[1] / "docs" / "executor.py")
    assert spec is not None
    assert spec.loader is not None
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    platform = declared().model_copy(update={"unsigned_agents": False})
    key, *others = (AgentKey(name, Ed25519PrivateKey.generate()) for name in (example.AGENT, "ann", "bea"))
    async with market(temporal, database, task_queue, tmp_path, platform, built_in=False) as stage:
        register_agent(database, example.AGENT, "op-herald", datetime.now(UTC), key.public)
        for other in others:
            identity.rotate(database, other.agent_id, other.public, "ops", "its first key", datetime.now(UTC))
        running = asyncio.create_task(example.run(NautilusClient(temporal, task_queue, key), 0.2))
        async with asyncio.timeout(PATIENCE_S):
            while not stage.registered("shout"):
                await asyncio.sleep(0.1)
        good, bad = await stage.submit("shout", payload={"text": "ahoy"}), await stage.submit("shout", payload={})
        # Dearer than the example; with its bid, all have bid.
        signing = NautilusClient(temporal, task_queue, *others)
        for other in others:
            for task in (good, bad):
                await signing.place_bid(task, Bid(message_id="b", agent_id=other.agent_id, price=90, eta_s=5))
        ended = [await stage.ended(good), await stage.ended(bad)]
        running.cancel()

    told = [(s.settlement.ending, s.settlement.summary, s.settlement.failure_reason) for s in ended if s.settlement]
    assert told == [(TaskEnding.DONE, "AHOY", ""), (TaskEnding.FAILED, "expected a text", "no_text")]


async def test_a_revocation_reaches_a_running_task(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    ann, bea = (AgentKey(name, Ed25519PrivateKey.generate()) for name in ("ann", "bea"))
    now, rules = datetime.now(UTC), QUICK.model_copy(update={"heartbeat_s": 15})
    async with market(temporal, database, task_queue, tmp_path, built_in=False, platform=declared(rules)) as stage:
        await temporal.start_workflow(wire.EVENT_BUS, "keys", id=f"bus:{task_queue}", task_queue=task_queue)
        for key in (ann, bea):
            identity.rotate(database, key.agent_id, key.public, "ops", "its first key", now)
        signing = NautilusClient(temporal, task_queue, ann, bea)
        await signing.register_type(TypeRegistration(message_id="r", agent_id="ann", name="poetry"))
        task = await stage.submit("poetry", payload={})
        for agent_id, price in (("ann", 10), ("bea", 90)):
            await signing.place_bid(task, Bid(message_id="b", agent_id=agent_id, price=price, eta_s=5))
        await stage.executing(task, "ann")
        identity.revoke(database, "ann", "olga", "stolen", now)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with pytest.raises(Refused) as refused:
                    await stage.client.heartbeat(task, Heartbeat(message_id="h", agent_id="ann"))
                if "the key of ann was revoked" in str(refused.value):
                    break
        result = WorkResult(message_id="w", agent_id="ann", summary="a forged poem", quality=1.0)
        with pytest.raises(Refused, match="the key of ann was revoked"):
            await signing.submit_result(task, result)
        await stage.executing(task, "bea")
        await signing.submit_result(task, result.model_copy(update={"agent_id": "bea", "summary": "a poem"}))
        ended = await stage.ended(task)
        await temporal.get_workflow_handle(f"bus:{task_queue}").terminate("the test is over")

    assert ended.settlement is not None
    assert (ended.missed, ended.settlement.agent_id, ended.settlement.summary) == (["ann"], "bea", "a poem")


async def command(client: Client, *about: Any) -> tuple[int | None, str]:
    """A word by the real `temporal` command: its exit code and what it printed."""
    *how, kind, task, word = about
    process = await asyncio.create_subprocess_exec(
        *(str(binary()), "workflow", *how, "--workflow-id", task, "--name", kind, "--input", word.model_dump_json()),
        *("--address", client.service_client.config.target_host, "--namespace", client.namespace),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed = (await asyncio.wait_for(process.communicate(), PATIENCE_S))[0].decode()
    return process.returncode, printed


async def test_a_task_hears_only_who_signs(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    ann, bea = (AgentKey(name, Ed25519PrivateKey.generate()) for name in ("ann", "bea"))
    async with market(temporal, database, task_queue, tmp_path, built_in=False) as stage:
        for key in (ann, bea):
            identity.rotate(database, key.agent_id, key.public, "ops", "its first key", datetime.now(UTC))
        signing = NautilusClient(temporal, task_queue, ann, bea)
        await signing.register_type(TypeRegistration(message_id="r", agent_id="ann", name="poetry"))
        with pytest.raises(Refused, match="not signed"):
            await stage.client.register_type(TypeRegistration(message_id="r2", agent_id="ann", name="prose"))
        task = await stage.submit("poetry", payload={})
        bid = Bid(message_id="b", agent_id="ann", price=10, eta_s=5)
        elsewhere = ann.sign(bid, "task:another", await signing.first_run(task), wire.PLACE_BID)
        for bad in (bid, elsewhere, bea.sign(bid.model_copy(update={"agent_id": "bea"}), task, "x", wire.PLACE_BID)):
            with pytest.raises(Refused, match=r"expected a (message|signature)"):
                await stage.client.place_bid(task, bad)
        await stage.client.signal(task, wire.PLACE_BID, bid)
        before = await stage.reach(task, lambda status: status.refused >= 1)
        await signing.place_bid(task, bid)
        await signing.place_bid(task, Bid(message_id="c", agent_id="bea", price=90, eta_s=5))
        await stage.executing(task, "ann")
        result = WorkResult(message_id="w", agent_id="ann", summary="a poem", quality=0.9)
        for kind, word in ((wire.HEARTBEAT, Heartbeat(message_id="h", agent_id="ann")), (wire.SUBMIT_RESULT, result)):
            run_id, send = await signing.first_run(task), getattr(stage.client, kind)
            good = ann.sign(word, task, run_id, kind)
            for forged in (
                word,
                good.model_copy(update={"message_id": "another"}),
                ann.sign(word, task, run_id, wire.PLACE_BID),
                ann.sign(word, task, "another run", kind),
                AgentKey("ann", bea.secret).sign(word, task, run_id, kind),
            ):
                with pytest.raises(Refused, match=r"expected a (message|signature)"):
                    await send(task, forged)
                await send(task, forged, wait=False)
                code, printed = await command(temporal, "update", "execute", kind, task, forged)
                assert code == 1
                assert "unable to update workflow: expected a" in printed
                assert (await command(temporal, "signal", kind, task, forged))[0] == 0
        await stage.reach(task, lambda status: status.refused >= before.refused + 20)
        await signing.submit_result(task, result)
        ended = await stage.ended(task)

    assert before.bids == {}
    assert ended.settlement is not None
    assert (ended.settlement.ending, ended.settlement.agent_id) == (TaskEnding.DONE, "ann")
