"""Bidding: who may bid, and who gets a meta-task."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.bidding import rank, refusal
from schema.messages.market import Agent, Bid
from tests import builders

REWARD = 100
CYCLE = "success_rate:research_synthesis#1"


def winner(*offers: tuple[Agent, int]) -> str:
    agents = {agent.agent_id: agent for agent, _ in offers}
    return rank(CYCLE, [builders.bid(agent.agent_id, price) for agent, price in offers], agents, REWARD)[0].bid.agent_id


@pytest.mark.parametrize(
    ("bid", "expected"),
    [
        (builders.bid("ada", 100), None),  # the whole reward may be asked
        (builders.bid("ada", 0), None),  # and so may nothing
        (builders.bid("ada", 101), "expected a price of at most 100 credits, but 101 came"),
        (builders.bid("mallory", 10), "expected an agent that was registered when the meta-task opened, but mallory"),
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
        ((builders.agent("ada"), 20), (builders.agent("bob"), 80)),
        # The better record of two alike.
        ((builders.agent("ada", successes=8, attempts=10), 50), (builders.agent("bob", successes=2, attempts=10), 50)),
        # Price alone never decides: a free bid of an agent that keeps failing loses to a dear one of a proven one.
        (
            (builders.agent("ada", successes=18, attempts=20, standing=0.9), 90),
            (builders.agent("bob", successes=1, attempts=20, standing=0.2), 0),
        ),
        # Two of two is luck, fifty of fifty-five is a record: the raw ratio would say the opposite.
        ((builders.agent("ada", successes=50, attempts=55), 50), (builders.agent("bob", successes=2, attempts=2), 50)),
        # The idle one of two alike: a busy agent would be late.
        ((builders.agent("ada", load=0), 50), (builders.agent("bob", load=3), 50)),
        # The better standing of two alike.
        ((builders.agent("ada", standing=0.8), 50), (builders.agent("bob", standing=0.4), 50)),
    ],
)
def test_the_better_offer_wins(better: tuple[Agent, int], worse: tuple[Agent, int]) -> None:
    assert winner(better, worse) == winner(worse, better) == "ada"


def test_a_newcomer_can_beat_a_poor_record() -> None:
    poor = builders.agent("old", successes=1, attempts=9, standing=0.3)

    assert winner((builders.agent("new"), 50), (poor, 50)) == "new"


def test_a_rank_says_why() -> None:
    agents = {"ada": builders.agent("ada", successes=3, attempts=4, load=1)}

    ranked = rank(CYCLE, [builders.bid("ada", 40)], agents, REWARD)[0]

    assert ranked.reason == "track 3/4 counts 0.67, standing 0.50, price 40 of 100, load 1"
    assert ranked.score == pytest.approx(0.35 * 4 / 6 + 0.25 * 0.5 + 0.25 * 0.6 + 0.15 / 2)


def test_a_meta_task_without_a_reward_can_be_bid_on() -> None:
    agents = {"ada": builders.agent("ada")}

    assert rank(CYCLE, [builders.bid("ada", 0)], agents, 0)[0].score > 0


# --- Properties -------------------------------------------------------------------------------------------------------

agents_of = st.builds(
    lambda name, record, standing, load, price: (
        builders.agent(f"a{name}", successes=min(record), attempts=max(record), standing=standing, load=load),
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
def test_the_order_of_bids_never_matters(offers, dice) -> None:  # type: ignore[no-untyped-def]
    agents = {agent.agent_id: agent for agent, _ in offers}
    bids = [builders.bid(agent.agent_id, price) for agent, price in offers]

    assert rank(CYCLE, bids, agents, REWARD) == rank(CYCLE, dice.sample(bids, len(bids)), agents, REWARD)


@given(offers_of)
def test_every_bid_is_ranked_once_and_scored_between_nothing_and_one(offers: list[tuple[Agent, int]]) -> None:
    agents = {agent.agent_id: agent for agent, _ in offers}
    ranked = rank(CYCLE, [builders.bid(agent.agent_id, price) for agent, price in offers], agents, REWARD)

    assert sorted(r.bid.agent_id for r in ranked) == sorted(agents)
    assert [r.score for r in ranked] == sorted((r.score for r in ranked), reverse=True)
    assert all(0 <= r.score <= 1 for r in ranked)


@given(agents_of, agents_of, st.integers(1, 20))
def test_more_success_never_loses_what_was_won(mine: tuple[Agent, int], other: tuple[Agent, int], more: int) -> None:
    (agent, price), (rival, their_price) = mine, other
    if agent.agent_id == rival.agent_id:
        rival = rival.model_copy(update={"agent_id": "rival"})
    improved = agent.model_copy(update={"successes": agent.successes + more, "attempts": agent.attempts + more})

    won = winner((agent, price), (rival, their_price)) == agent.agent_id

    assert not won or winner((improved, price), (rival, their_price)) == agent.agent_id


def test_ties_favour_no_name_for_ever() -> None:
    agents = {name: builders.agent(name) for name in ("ada", "bob", "cyd")}
    bids = [builders.bid(name, 50) for name in agents]

    wins = Counter(rank(f"success_rate:x#{n}", bids, agents, REWARD)[0].bid.agent_id for n in range(300))

    # Binomial(300, 1/3): 60 is five standard deviations under the mean.
    assert min(wins.values()) > 60
