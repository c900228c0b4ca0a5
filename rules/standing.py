"""Standing: how far an agent is trusted, by its results, and when it may no longer bid.

A moving average of results between 0 and 1, as in the article's source, that drifts back to a newcomer's while an agent
is idle. An agent is suspended for a run of failures (standing), or when its results show that it succeeds half as often
as the other agents on the same tasks: a running log likelihood ratio (Wald 1945) whose credit for past successes is
limited, so that an agent which was good once is found too. One that does well at some task type may go on with it, and
stops winning the others. A suspended agent comes back on probation, after a declared time.
"""

from enum import StrEnum
from math import log

from rules.rates import smoothed
from schema.messages.market import Agent, AwardResult, Record

NEWCOMER_STANDING = 0.5
# A fifth of the way to each result: about ten results decide, and no single one.
LEARNING_RATE = 0.2
# Below five results a standing means little: neither trust nor probation follows from it.
NEWCOMER_RESULTS = 5
# An agent that returns is on probation, and one success away from its end.
RETURN_STANDING = 0.25
# Of new agents as good as the others, at most one in 20 is ever suspended before it has earned credit (Ville 1939).
SUSPENSION_LIMIT = log(20)
# A good name is worth as much again.
CREDIT_LIMIT = log(20)
# Where nearly all succeed, one failure must not weigh like proof.
USUAL_AT_MOST, USUAL_AT_LEAST = 0.85, 0.1


class Tier(StrEnum):
    TRUSTED = "trusted"
    ESTABLISHED = "established"
    NEWCOMER = "newcomer"
    PROBATION = "probation"
    SUSPENDED = "suspended"


VOTE_WEIGHT = {Tier.TRUSTED: 1.5, Tier.ESTABLISHED: 1.0, Tier.NEWCOMER: 1.0, Tier.PROBATION: 0.5, Tier.SUSPENDED: 0.0}
# How many awards at a time: a new agent cannot fail at much before its first results are in.
MOST_AWARDS = {Tier.TRUSTED: 16, Tier.ESTABLISHED: 8, Tier.NEWCOMER: 2, Tier.PROBATION: 1, Tier.SUSPENDED: 0}


def worth(result: AwardResult) -> float:
    """What a result counts, 0 to 1. An honest proposal that did not help is not a failure of the agent."""
    match result:
        case AwardResult.PROMOTED | AwardResult.DONE:
            return 1.0
        case AwardResult.USELESS:
            return 0.45
        case AwardResult.HARMFUL:
            return 0.1
        case AwardResult.FAILED:
            return 0.05
        case AwardResult.MISSED:
            return 0.0


def succeeded(result: AwardResult) -> bool:
    """Whether a result counts as a success in the agent's record."""
    return result in (AwardResult.PROMOTED, AwardResult.DONE)


def after(standing: float, result: AwardResult) -> float:
    """The standing after one more result: an exponentially weighted moving average (Roberts 1959)."""
    return standing + LEARNING_RATE * (worth(result) - standing)


def failure_log_ratio_after(failure_log_ratio: float, result: AwardResult, others: Record) -> float:
    """The evidence, in nats, that the agent does half as well as the `others` on this task type, after one more result.

    A proposal that did not help is no evidence about the agent; it is the platform that is hard to improve.
    """
    if result is AwardResult.USELESS:
        return failure_log_ratio
    usual = smoothed(others.successes, others.attempts)
    usual = min(USUAL_AT_MOST, max(USUAL_AT_LEAST, usual))
    ratio = 0.5 if succeeded(result) else (1 - usual / 2) / (1 - usual)
    return max(-CREDIT_LIMIT, failure_log_ratio + log(ratio))


def decayed(value: float, rest: float, idle_s: float, half_life_s: float) -> float:
    """What idleness leaves of a value: it moves to `rest`, half the way in each half-life."""
    return rest + (value - rest) * float(0.5 ** (idle_s / half_life_s))


def tier(agent: Agent) -> Tier:
    """The tier of an agent."""
    if agent.suspended:
        return Tier.SUSPENDED
    if agent.attempts < NEWCOMER_RESULTS:
        return Tier.NEWCOMER
    if agent.standing >= 0.7:
        return Tier.TRUSTED
    return Tier.ESTABLISHED if agent.standing >= 0.3 else Tier.PROBATION


def is_suspended(standing: float, attempts: int, failure_log_ratio: float = 0.0) -> bool:
    """Whether an agent has failed so much, over enough results, that it may not bid."""
    return attempts >= 2 * NEWCOMER_RESULTS and (standing < 0.15 or failure_log_ratio >= SUSPENSION_LIMIT)


def is_speciality(record: Record, others: Record) -> bool:
    """Whether an agent's results on a task type, where they are enough, are as good as the others'."""
    usual = smoothed(others.successes, others.attempts)
    return record.attempts >= NEWCOMER_RESULTS and record.successes >= usual * record.attempts


def has_room(agent: Agent) -> bool:
    """Whether the agent may be awarded one more task now."""
    return agent.load < MOST_AWARDS[tier(agent)]


def vote_weight(agent: Agent) -> float:
    """The weight of the agent's ballot."""
    return VOTE_WEIGHT[tier(agent)]
