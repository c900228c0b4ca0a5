"""The market's books: whatever happens, in whatever order and however often, they balance and nothing is paid twice."""

from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlmodel import select

from activities.accounts import TREASURY, balance
from activities.agents import register_agent, roster
from activities.database import Database
from activities.market import MarketActivities
from activities.tasks import TaskActivities
from rules.rewards import missed_penalty
from schema.failure_kinds import FailureKind
from schema.messages.market import Award, AwardResult, Bid, Standing
from schema.messages.tasks import (
    AwardOrder,
    Settlement,
    TaskEnding,
    TaskOpening,
    TaskRequest,
    task_workflow_id,
)
from schema.tables.events import EventRow
from schema.tables.market import AwardRow, FillRow, StandingRow, TaskRow, TransferRow
from schema.tables.observatory import OutcomeRow
from tests import builders
from tests.builders import NOW
from tests.databases import NewDatabase

AGENTS = ("ann", "bea", "cyd")
steps = st.lists(
    st.tuples(
        st.sampled_from(["open", "award", "miss", "settle", "restore", "decay"]),
        st.integers(0, 4),
        st.sampled_from([*TaskEnding]),
        st.booleans(),
    ),
    max_size=40,
)


class Play:
    """Takes steps as workflows would, any of them twice, and remembers what was promised."""

    def __init__(self, database: Database) -> None:
        self.tasks = TaskActivities(database, builders.platform())
        self.market = MarketActivities(database, builders.platform())
        self.awards: dict[int, Award] = {}
        self.missed: dict[int, set[str]] = {}
        self.settled: dict[int, Settlement] = {}
        self.at = NOW

    def take(self, kind: str, number: int, ending: TaskEnding, twice: bool) -> None:
        self.at += timedelta(minutes=1)
        for _ in range(1 + twice):
            getattr(self, kind)(number, ending)

    def request(self, number: int) -> TaskRequest:
        return TaskRequest(task_id=f"t{number}", task_type="monte_carlo", requester=f"r{number % 2}")

    def open(self, number: int, _: TaskEnding) -> None:
        self.tasks.open_task(TaskOpening(request=self.request(number), run_id=f"run-{number}", at=self.at))
        self.missed.setdefault(number, set())

    def award(self, number: int, _: TaskEnding) -> None:
        left = [a for a in AGENTS if number in self.missed and a not in self.missed[number]]
        if not left or number in self.settled:
            return
        bids = tuple(Bid(message_id=a, agent_id=a, price=10 + 7 * AGENTS.index(a), eta_s=1) for a in left)
        order = AwardOrder(
            request=self.request(number), bids=bids, price=100, at=self.at, result_window_s=9, built_in=False
        )
        award = self.tasks.award_task(order)
        if award is not None:
            self.awards[number] = award

    def miss(self, number: int, _: TaskEnding) -> None:
        if number in self.settled or (award := self.awards.pop(number, None)) is None:
            return
        missed = Standing(
            cycle_id=award.cycle_id,
            agent_id=award.agent_id,
            result=AwardResult.MISSED,
            at=self.at,
            task_type="monte_carlo",
            penalty=missed_penalty(award.price),
        )
        for _again in range(2):
            self.market.record_missed_award(missed)
        self.missed[number].add(award.agent_id)

    def settle(self, number: int, ending: TaskEnding) -> None:
        if number not in self.missed:
            return
        award = self.awards.get(number)
        answered = award is not None and ending in (TaskEnding.DONE, TaskEnding.FAILED)
        if not answered and ending in (TaskEnding.DONE, TaskEnding.FAILED):
            ending = TaskEnding.NO_RESULT
        done = ending is TaskEnding.DONE
        fields: dict[str, Any] = {"failure": None if done else FailureKind.ERROR, "quality": 0.9 if done else None}
        settlement = Settlement(
            request=self.request(number),
            ending=ending,
            reason="so",
            started_at=self.at,
            at=self.at,
            agent_id=award.agent_id if award and answered else None,
            price=award.price if award and done else 0,
            **fields,
        )
        stands = self.tasks.settle_task(settlement)
        assert stands == self.settled.setdefault(number, stands)

    def restore(self, *_: object) -> None:
        self.market.restore_agents(self.at + timedelta(days=8))

    def decay(self, *_: object) -> None:
        self.market.decay_idle(self.at)


@settings(max_examples=25, deadline=None)
@given(path=steps)
def test_the_books_balance_and_nothing_is_paid_or_recorded_twice(
    new_database: NewDatabase, path: list[tuple[str, int, TaskEnding, bool]]
) -> None:
    with TemporaryDirectory() as folder, new_database(Path(folder)) as database:
        for agent in AGENTS:
            register_agent(database, agent, f"op-{agent}", NOW)
        play = Play(database)
        for step in path:
            play.take(*step)
        with database.reading() as session:
            transfers = session.exec(select(TransferRow)).all()
            accounts = {TREASURY, *AGENTS, "requester:r0", "requester:r1"}
            balances = {account: balance(session, account) for account in accounts}
            agents = {agent.agent_id: agent for agent in roster(session)}
            results = session.exec(select(StandingRow)).all()
            outcomes = session.exec(select(OutcomeRow)).all()
            announced = session.exec(select(EventRow).where(EventRow.type == "task.settled")).all()
            awarded = {award.cycle_id for award in session.exec(select(AwardRow)).all()}
            fills = session.exec(select(FillRow)).all()
            open_ = session.exec(select(TaskRow).where(TaskRow.ended_at == None)).all()  # noqa: E711

    assert sum(balances.values()) == 0
    assert all(t.amount > 0 and t.debit != t.credit for t in transfers)
    paid = sum(s.price for s in play.settled.values())
    assert -balances["requester:r0"] - balances["requester:r1"] == paid
    fines = [missed_penalty(10 + 7 * AGENTS.index(a)) for missed in play.missed.values() for a in missed]
    assert balances[TREASURY] == sum(fines)
    assert sum(a.attempts for a in agents.values()) == len(results)
    assert len(results) == len(fines) + sum(s.agent_id is not None for s in play.settled.values())
    assert len(outcomes) == sum(
        s.agent_id is not None or s.ending is TaskEnding.NO_RESULT for s in play.settled.values()
    )
    assert len(announced) == len(play.settled)
    assert {task_workflow_id(t.task_id) for t in open_}.isdisjoint(
        {task_workflow_id(f"t{number}") for number in play.settled}
    )
    nobody_bid = {
        task_workflow_id(f"t{number}") for number, s in play.settled.items() if s.ending is TaskEnding.NO_BIDS
    }
    assert sum(fill.awarded for fill in fills) == len(awarded)
    assert sum(fill.tasks for fill in fills) == len(awarded | nobody_bid)
    assert sum(a.load for a in agents.values()) == len(play.awards.keys() - play.settled.keys())
