"""Standing: what an agent's results make of its word.

A moving average of results between 0 and 1, as in the article's source. Only results move it; agents that keep failing
lose their weight and in the end their right to bid.
"""

from enum import StrEnum

from schema.messages.market import Agent, AwardResult

NEWCOMER_STANDING = 0.5
# A fifth of the way to each result: about ten results decide, and no single one.
LEARNING_RATE = 0.2
# Below five results a standing says little: neither trust nor probation follows from it.
NEWCOMER_RESULTS = 5


class Tier(StrEnum):
    TRUSTED = "trusted"
    ESTABLISHED = "established"
    NEWCOMER = "newcomer"
    PROBATION = "probation"
    SUSPENDED = "suspended"


VOTE_WEIGHT = {
    Tier.TRUSTED: 1.5,
    Tier.ESTABLISHED: 1.0,
    Tier.NEWCOMER: 1.0,
    Tier.PROBATION: 0.5,
    Tier.SUSPENDED: 0.0,
}


def worth(result: AwardResult) -> float:
    """What a result counts, 0 to 1. An honest proposal that did not help is not a failure of the agent."""
    match result:
        case AwardResult.PROMOTED:
            return 1.0
        case AwardResult.USELESS:
            return 0.45
        case AwardResult.HARMFUL:
            return 0.1
        case AwardResult.MISSED:
            return 0.0


def after(standing: float, result: AwardResult) -> float:
    """The standing after one more result: an exponentially weighted moving average (Roberts 1959)."""
    return standing + LEARNING_RATE * (worth(result) - standing)


def tier(agent: Agent) -> Tier:
    """Where an agent stands."""
    if agent.suspended:
        return Tier.SUSPENDED
    if agent.attempts < NEWCOMER_RESULTS:
        return Tier.NEWCOMER
    if agent.standing >= 0.7:
        return Tier.TRUSTED
    return Tier.ESTABLISHED if agent.standing >= 0.3 else Tier.PROBATION


def is_suspended(standing: float, attempts: int) -> bool:
    """Whether an agent has failed so much, over enough results, that it may not bid."""
    return attempts >= 2 * NEWCOMER_RESULTS and standing < 0.15


def vote_weight(agent: Agent) -> float:
    """The weight of the agent's ballot."""
    return VOTE_WEIGHT[tier(agent)]
