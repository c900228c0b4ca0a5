"""Bidding: who gets a meta-task.

Price never decides alone: a bid is scored by the agent's track record (shrunken towards a newcomer's, never the raw
ratio of two tasks), its standing, its price and its load. Ties go by a hash of task and agent, so that no name is
favoured for ever.
"""

from collections.abc import Mapping, Sequence

import mmh3

from rules import standing
from schema.messages.market import Agent, Bid, RankedBid

TRACK_WEIGHT, STANDING_WEIGHT, PRICE_WEIGHT, LOAD_WEIGHT = 0.35, 0.25, 0.25, 0.15
# Two imaginary results, one of them good: a newcomer starts in the middle and moves as results come.
PRIOR_SUCCESSES, PRIOR_ATTEMPTS = 1.0, 2.0


def refusal(bid: Bid, agents: Mapping[str, Agent], reward: int) -> str | None:
    """Say why a bid cannot stand, or None when it can."""
    agent = agents.get(bid.agent_id)
    if agent is None:
        return f"expected an agent that was registered when the meta-task opened, but {bid.agent_id} came"
    if standing.tier(agent) is standing.Tier.SUSPENDED:
        return f"expected an agent in good standing, but {bid.agent_id} is suspended"
    if bid.price > reward:
        return f"expected a price of at most {reward} credits, but {bid.price} came"
    return None


def rank(cycle_id: str, bids: Sequence[Bid], agents: Mapping[str, Agent], reward: int) -> tuple[RankedBid, ...]:
    """Order `bids` from best to worst. `reward` is the highest price, in credits."""

    def ranked(bid: Bid) -> RankedBid:
        agent = agents[bid.agent_id]
        track = (agent.successes + PRIOR_SUCCESSES) / (agent.attempts + PRIOR_ATTEMPTS)
        cheapness = 1 - bid.price / reward if reward else 1.0
        idleness = 1 / (1 + agent.load)
        score = (
            TRACK_WEIGHT * track + STANDING_WEIGHT * agent.standing + PRICE_WEIGHT * cheapness + LOAD_WEIGHT * idleness
        )
        reason = (
            f"track {agent.successes}/{agent.attempts} counts {track:.2f}, standing {agent.standing:.2f}, "
            f"price {bid.price} of {reward}, load {agent.load}"
        )
        return RankedBid(bid=bid, score=score, reason=reason)

    def order(candidate: RankedBid) -> tuple[float, int]:
        return (-candidate.score, mmh3.hash(f"{cycle_id}:{candidate.bid.agent_id}", signed=False))

    return tuple(sorted((ranked(bid) for bid in bids), key=order))
