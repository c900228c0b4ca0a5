"""Bidding: who may bid, and who gets a task."""

from collections import Counter, deque
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules import standing
from rules.bidding import direct, rank, refusal, success_rate, upper_confidence_bound
from schema.messages.market import Agent, AwardResult, Bid, Record
from tests import builders

REWARD = 100
CYCLE = "success_rate:research_synthesis#1"


# Everybody has had its first chance, unless a test is about it.
KNOWN = {"attempts": 30, "successes": 20}
MARKET = Record(attempts=60, successes=40, rated=40, quality_sum=30, timed=60, seconds_sum=300)


def known(agent_id: str, good: float = 0, of: float = 0, **changes: Any) -> Agent:
    """An agent with `good` successes of `of` tasks of the type at hand."""
    record = Record(attempts=of, successes=good)
    return builders.agent(agent_id, **(KNOWN | {"record": record, "market": MARKET} | changes))


def winner(*offers: tuple[Agent, int]) -> str:
    agents = {agent.agent_id: agent for agent, _ in offers}
    return rank(CYCLE, [builders.bid(agent.agent_id, price) for agent, price in offers], agents, REWARD)[0].bid.agent_id


@pytest.mark.parametrize(
    ("bid", "expected"),
    [
        (builders.bid("ada", 100), None),  # the whole reward may be asked
        (builders.bid("ada", 0), None),  # and so may nothing
        (builders.bid("ada", 101), "expected a price of at most 100 credits, but 101 came"),
        (builders.bid("mallory", 10), "expected an agent that was registered when the task opened, but mallory"),
        (builders.bid("sue", 10), "expected an agent in good standing, but sue is suspended"),
    ],
)
def test_a_bid_is_refused_with_what_was_expected(bid: Bid, expected: str | None) -> None:
    agents = {"ada": builders.agent("ada"), "sue": builders.agent("sue", suspended=True)}

    reason = refusal(bid, agents, REWARD)

    assert reason == expected if expected is None else reason is not None and reason.startswith(expected)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        # The cheaper of two alike.
        ((known("ada"), 20), (known("bob"), 80)),
        # The better record on the type of two alike.
        ((known("ada", 8, 10), 50), (known("bob", 2, 10), 50)),
        # Price alone never decides: a free bid of an agent that keeps failing loses to a dear one of a proven one.
        ((known("ada", 18, 20, standing=0.9), 90), (known("bob", 1, 20, standing=0.2), 0)),
        # The idle one of two alike: a busy agent would be late.
        ((known("ada", load=0), 50), (known("bob", load=3), 50)),
        # The better standing of two alike.
        ((known("ada", standing=0.8), 50), (known("bob", standing=0.4), 50)),
        # The better work of two alike.
        (
            (known("ada", record=Record(attempts=9, successes=9, rated=9, quality_sum=8.5)), 50),
            (known("bob", record=Record(attempts=9, successes=9, rated=9, quality_sum=5)), 50),
        ),
        # The faster of two alike, by what it took and not by what it promises.
        (
            (known("ada", record=Record(timed=50, seconds_sum=50)), 50),
            (known("bob", record=Record(timed=50, seconds_sum=5_000)), 50),
        ),
        # A first chance: nobody knows how good it is.
        ((builders.agent("ada", market=MARKET), 50), (known("bob", 8, 10), 50)),
        # Little known on this type is worth a try ...
        ((known("ada", 1, 1), 50), (known("bob", 30, 40), 50)),
        # ... but two failures of two end it.
        ((known("ada", 30, 40), 50), (known("bob", 0, 2), 50)),
    ],
)
def test_the_better_offer_wins(better: tuple[Agent, int], worse: tuple[Agent, int]) -> None:
    assert winner(better, worse) == winner(worse, better) == "ada"


def test_a_rank_says_why() -> None:
    agents = {"ada": known("ada", 3, 4, load=1)}

    ranked = rank(CYCLE, [builders.bid("ada", 40)], agents, REWARD)[0]

    assert ranked.reason == (
        "record 3/4 counts 0.72, at best 0.96, quality 0.74, standing 0.50, price 40 of 100, about 5 s, load 1"
    )


def test_work_under_way_counts_so_that_tasks_awarded_together_try_several() -> None:
    newcomers = {name: builders.agent(name, market=MARKET, load=2 if name == "ada" else 0) for name in ("ada", "bob")}

    ranked = rank(CYCLE, [builders.bid("ada", 50), builders.bid("bob", 50)], newcomers, REWARD)

    assert ranked[0].bid.agent_id == "bob"


def test_a_direct_task_goes_by_standing_and_load() -> None:
    good, busy, bad = known("good", standing=0.8), known("busy", standing=0.9, load=2), known("bad", standing=0.3)

    assert [found[0].agent_id for found in [direct("t", [busy, bad, good])] if found] == ["good"]
    assert direct("t", [known("sue", suspended=True)]) is None


def test_a_meta_task_without_a_reward_can_be_bid_on() -> None:
    agents = {"ada": builders.agent("ada")}

    assert rank(CYCLE, [builders.bid("ada", 0)], agents, 0)[0].score > 0


# --- Properties -------------------------------------------------------------------------------------------------------

agents_of = st.builds(
    lambda name, record, standing, load, price: (
        known(f"a{name}", min(record), max(record), standing=standing, load=load),
        price,
    ),
    st.integers(0, 999),
    st.tuples(st.integers(0, 30), st.integers(0, 30)),
    st.floats(0, 1),
    st.integers(0, 5),
    st.integers(0, REWARD),
)
offers_of = st.lists(agents_of, min_size=1, max_size=6, unique_by=lambda offer: offer[0].agent_id)


@given(offers_of, st.randoms(use_true_random=False))
def test_the_order_of_bids_never_matters(offers, rng) -> None:  # type: ignore[no-untyped-def]
    agents = {agent.agent_id: agent for agent, _ in offers}
    bids = [builders.bid(agent.agent_id, price) for agent, price in offers]

    assert rank(CYCLE, bids, agents, REWARD) == rank(CYCLE, rng.sample(bids, len(bids)), agents, REWARD)


@given(offers_of)
def test_every_bid_is_ranked_once_by_a_bounded_score(offers: list[tuple[Agent, int]]) -> None:
    agents = {agent.agent_id: agent for agent, _ in offers}
    ranked = rank(CYCLE, [builders.bid(agent.agent_id, price) for agent, price in offers], agents, REWARD)

    assert sorted(r.bid.agent_id for r in ranked) == sorted(agents)
    assert [r.score for r in ranked] == sorted((r.score for r in ranked), reverse=True)
    assert all(0 <= r.score <= 2 for r in ranked)


@given(agents_of, st.integers(1, 20))
def test_success_raises_what_is_expected_and_failure_lowers_what_is_hoped(mine: tuple[Agent, int], more: int) -> None:
    agent, _ = mine
    grown = agent.record.attempts + more
    better = agent.record.model_copy(update={"successes": agent.record.successes + more, "attempts": grown})
    worse = agent.record.model_copy(update={"attempts": grown})

    assert success_rate(agent.model_copy(update={"record": better})) >= success_rate(agent)
    assert upper_confidence_bound(agent.model_copy(update={"record": worse})) <= upper_confidence_bound(agent)


def test_ties_favour_no_name_for_ever() -> None:
    agents = {name: builders.agent(name) for name in ("ada", "bob", "cyd")}
    bids = [builders.bid(name, 50) for name in agents]

    wins = Counter(rank(f"success_rate:x#{n}", bids, agents, REWARD)[0].bid.agent_id for n in range(300))

    # Binomial(300, 1/3): 60 is five standard deviations under the mean.
    assert min(wins.values()) > 60


# --- Simulation -------------------------------------------------------------------------------------------------------


def lived(seed: int, tasks: int = 400, at_once: int = 4) -> tuple[list[str], set[str]]:
    """Who won each task of a market of eight, and who was suspended; agents 6 and 7 fail 60% and are the cheapest."""
    rng, names = Random(seed), [f"agent-{n}" for n in range(8)]
    skill = dict(zip(names, (0.95, 0.9, 0.9, 0.9, 0.85, 0.85, 0.4, 0.4), strict=True))
    agents, log_ratio = {name: builders.agent(name) for name in names}, dict.fromkeys(names, 0.0)
    under_way: deque[tuple[str, bool]] = deque()
    won = []
    for number in range(tasks):
        market = Record(
            attempts=sum(a.record.attempts for a in agents.values()),
            successes=sum(a.record.successes for a in agents.values()),
        )
        open_ = {n: a.model_copy(update={"market": market}) for n, a in agents.items() if not a.suspended}
        bids = [builders.bid(n, 10 if skill[n] < 0.5 else rng.randint(30, 70)) for n in open_]
        ranked = [r for r in rank(f"{seed}:{number}", bids, open_, REWARD) if standing.has_room(open_[r.bid.agent_id])]
        name = ranked[0].bid.agent_id
        won.append(name)
        under_way.append((name, rng.random() < skill[name]))
        agents[name] = agents[name].model_copy(update={"load": agents[name].load + 1})
        if len(under_way) == at_once:
            name, good = under_way.popleft()
            agent, result = agents[name], AwardResult.DONE if good else AwardResult.FAILED
            others = Record(
                attempts=market.attempts - agent.record.attempts, successes=market.successes - agent.record.successes
            )
            log_ratio[name] = standing.failure_log_ratio_after(log_ratio[name], result, others)
            moved, attempts = standing.after(agent.standing, result), agent.attempts + 1
            record = Record(attempts=agent.record.attempts + 1, successes=agent.record.successes + good)
            agents[name] = agent.model_copy(
                update={
                    "standing": moved,
                    "attempts": attempts,
                    "load": agent.load - 1,
                    "record": record,
                    "suspended": agent.suspended or standing.is_suspended(moved, attempts, log_ratio[name]),
                }
            )
    return won, {name for name, agent in agents.items() if agent.suspended}


def test_who_keeps_failing_stops_winning_and_is_suspended_and_nobody_else_is() -> None:
    bad = {"agent-6", "agent-7"}
    lives = [lived(seed) for seed in range(10)]

    # After 300 tasks at most a fifth of their fair share; each of the ten markets may be unlucky once.
    assert sum(sum(name in bad for name in won[300:]) <= 5 for won, _ in lives) >= 9
    assert sum(bool(suspended & bad) and suspended <= bad for _, suspended in lives) >= 8
