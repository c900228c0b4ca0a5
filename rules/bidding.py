"""Bidding: who gets a task, a platform's own or a user's.

Price never decides alone. A bid is scored by an upper confidence bound: the agent's record on that task type, shrunken
towards the market's and never the raw ratio of two tasks, plus some standard errors. That is optimism in the face of
uncertainty (Lai & Robbins 1985; Kaufmann, Cappe & Garivier 2012): an agent with few results is tried, one that fails is
tried ever less, and no random numbers are needed. Work in progress counts as a result to come, so that tasks awarded
together do not all try the same agent. Then quality, standing, price, speed and load, each from 0 to 1, and a head
start for an agent on trial. Ties go by a hash of task and agent, so that no name is always favoured.
"""

from collections.abc import Mapping, Sequence
from math import sqrt

import mmh3

from rules import standing
from rules.rates import smoothed
from schema.messages.market import Agent, Bid, RankedBid

TRACK_WEIGHT, QUALITY_WEIGHT, STANDING_WEIGHT = 0.60, 0.12, 0.08
PRICE_WEIGHT, SPEED_WEIGHT, LOAD_WEIGHT = 0.12, 0.04, 0.04
# How many imaginary results, as good as the market's, are added to an agent's own.
PRIOR_RESULTS = 2.0
# Standard errors of the upper confidence bound. By simulation (tests/test_bidding.py): fewer settle on the agent that
# chance favoured first.
OPTIMISM = 1.5
# The first results of an agent, on whatever tasks, are its first chance: enough to tell one that keeps failing.
# Chosen by simulation of benchmarks.market's own scenario: its promises held in 97% of 60 markets, and in 92% at 0.3.
TRIAL_RESULTS, TRIAL_HEAD_START = 18, 0.5


def membership_refusal(agent_id: str, agents: Mapping[str, Agent]) -> str | None:
    """Why an agent may not answer a task, or None."""
    agent = agents.get(agent_id)
    if agent is None:
        return f"expected an agent that was registered when the task opened, but {agent_id} came"
    if standing.tier(agent) is standing.Tier.SUSPENDED:
        return f"expected an agent in good standing, but {agent_id} is suspended"
    return None


def refusal(bid: Bid, agents: Mapping[str, Agent], reward: int) -> str | None:
    """Why a bid is refused, or None."""
    if (refused := membership_refusal(bid.agent_id, agents)) is not None:
        return refused
    if bid.price > reward:
        return f"expected a price of at most {reward} credits, but {bid.price} came"
    return None


def success_rate(agent: Agent) -> float:
    """The share of tasks of this type that the agent is expected to do well, 0 to 1."""
    usual = smoothed(agent.market.successes, agent.market.attempts)
    return (agent.record.successes + PRIOR_RESULTS * usual) / (agent.record.attempts + PRIOR_RESULTS)


def upper_confidence_bound(agent: Agent) -> float:
    """The success rate some standard errors up: the spread of a Beta posterior, narrowed by work under way."""
    rate = success_rate(agent)
    return rate + OPTIMISM * sqrt(rate * (1 - rate) / (agent.record.attempts + agent.load + PRIOR_RESULTS + 1))


def on_trial(agent: Agent) -> bool:
    """Whether the agent still has its first chance."""
    return agent.attempts + agent.load < TRIAL_RESULTS


def quality(agent: Agent) -> float:
    """The expected quality of a success, 0 to 1, shrunken like the success rate."""
    usual = smoothed(agent.market.quality_sum, agent.market.rated)
    return (agent.record.quality_sum + PRIOR_RESULTS * usual) / (agent.record.rated + PRIOR_RESULTS)


def seconds(agent: Agent, eta_s: float) -> float:
    """How long the agent is expected to take: what it promises, corrected by what it took."""
    return (agent.record.seconds_sum + PRIOR_RESULTS * eta_s) / (agent.record.timed + PRIOR_RESULTS)


def rank(task_id: str, bids: Sequence[Bid], agents: Mapping[str, Agent], reward: int) -> tuple[RankedBid, ...]:
    """Order `bids` from best to worst. `reward` is the highest price, in credits."""
    expected_s = {bid.agent_id: seconds(agents[bid.agent_id], bid.eta_s) for bid in bids}
    fastest_s = min(expected_s.values(), default=0.0)
    ranked = []
    for bid in bids:
        agent = agents[bid.agent_id]
        takes_s = expected_s[bid.agent_id]
        score = _score(bid, agent, reward=reward, takes_s=takes_s, fastest_s=fastest_s)
        ranked.append(RankedBid(bid=bid, score=score, reason=_reason(bid, agent, reward=reward, takes_s=takes_s)))
    return tuple(sorted(ranked, key=lambda r: (-r.score, _tie_break(task_id, r.bid.agent_id))))


def _score(bid: Bid, agent: Agent, *, reward: int, takes_s: float, fastest_s: float) -> float:
    """The weighted sum of the module's parts, each from 0 to 1, and the head start of an agent on trial."""
    thrift = 1 - bid.price / reward if reward else 1.0
    head_start = TRIAL_HEAD_START if on_trial(agent) else 0.0
    return (
        TRACK_WEIGHT * upper_confidence_bound(agent)
        + QUALITY_WEIGHT * quality(agent)
        + STANDING_WEIGHT * agent.standing
        + PRICE_WEIGHT * thrift
        + SPEED_WEIGHT * fastest_s / takes_s
        + LOAD_WEIGHT / (1 + agent.load)
        + head_start
    )


def _reason(bid: Bid, agent: Agent, *, reward: int, takes_s: float) -> str:
    """What the score was computed from, for people."""
    record = agent.record
    trial = ", on trial" if on_trial(agent) else ""
    return (
        f"record {record.successes:.3g}/{record.attempts:.3g} counts {success_rate(agent):.2f}, "
        f"at best {upper_confidence_bound(agent):.2f}, quality {quality(agent):.2f}, "
        f"standing {agent.standing:.2f}, price {bid.price} of {reward}, about {takes_s:.3g} s, load {agent.load}{trial}"
    )


def direct(task_id: str, agents: Sequence[Agent]) -> tuple[Agent, float] | None:
    """The agent for a task that is awarded without a window, and its score: by standing and load; None without any."""
    scores = {agent: agent.standing / (1 + agent.load) for agent in agents if not agent.suspended}
    if not scores:
        return None
    best = min(scores, key=lambda agent: (-scores[agent], _tie_break(task_id, agent.agent_id)))
    return best, scores[best]


def _tie_break(task_id: str, agent_id: str) -> int:
    return mmh3.hash(f"{task_id}:{agent_id}", signed=False)
