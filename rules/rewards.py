"""Rewards: what an ending is worth to the agent whose proposal it was, and what a broken promise costs.

Everything is in whole credits and bounded by what the operator declares. The price is paid for a promotion; the bonus
grows with the improvement that is beyond doubt; a forecast earns its logarithmic score, whatever the ending, so that
nothing pays better than an honest forecast (Good 1952).
"""

from datetime import datetime
from math import log

from rules import design as designs
from rules import dossier
from schema.messages.cycle import CycleEnd, CycleState, Ending
from schema.messages.experiment import ExperimentDesign, Reading
from schema.messages.market import AwardResult
from schema.messages.platform import CycleRules

# A rate is never held for more certain than this, so a score is bounded and its scale is fixed.
CERTAIN = 0.99
LARGEST_SCORE = log(CERTAIN / (1 - CERTAIN))


def offered(rules: CycleRules, without_bids: int) -> int:
    """What an attempt offers: the reward, doubled for every attempt before it that got no bid, within the bound."""
    if rules.highest_reward is None:
        return rules.reward
    return min(rules.highest_reward, rules.reward << without_bids)  # each shift doubles


def settle(state: CycleState, ending: Ending, reason: str, at: datetime) -> CycleEnd:
    """The ending of a cycle for the ledger, with what the proposer earns, or pays where its change did harm.

    An escalation comes with a dossier, whatever it is for.
    """
    proposal = state.proposal
    market = state.briefing.market
    price = state.award.price if state.award else state.briefing.rules.reward
    reward = bonus = penalty = 0
    if ending is Ending.PROMOTED:
        reward = price
        bonus = improvement_bonus(state.reading, market.improvement_bonus)
    elif ending is Ending.ROLLED_BACK and state.watch is not None:
        did_harm = designs.breaks_something(state.designed, state.watch)
        penalty = price if did_harm else 0
    return CycleEnd(
        cycle_id=state.briefing.cycle_id,
        subject=state.request.subject,
        ending=ending,
        reason=reason,
        at=at,
        agent_id=proposal.agent_id if proposal else None,
        result=result_of(ending) if proposal else None,
        reward=reward,
        penalty=penalty,
        proposal=proposal,
        tally=state.tally if state.voted else None,
        reading=state.reading,
        watch=state.watch,
        bonus=bonus,
        forecast=forecast_pay(state.design, state.reading, market.forecast_stake),
        dossier=dossier.of(state) if ending is Ending.ESCALATED else None,
    )


def missed_penalty(price: int) -> int:
    """What a missed deadline costs: half of what was asked, so that an offer that will not be kept has a price."""
    return price // 2


def improvement_bonus(reading: Reading | None, most: int) -> int:
    """A share of `most`: the points, in good tasks, that the experiment holds certain (its interval's lower end)."""
    if reading is None or reading.interval is None:
        return 0
    return round(most * min(1.0, max(0.0, reading.interval[0])))


def forecast_pay(design: ExperimentDesign | None, reading: Reading | None, stake: int) -> int:
    """The score of the predicted rate on the treatment's tasks against the baseline's, from -stake to stake.

    The mean log likelihood ratio of a task: best, in expectation, for a forecast of the true rate. Nothing is
    known of a forecast before both arms have finished tasks, and nothing paid.
    """
    if design is None or reading is None or not reading.treatment.tasks or not reading.control.tasks:
        return 0
    rate = reading.treatment.successes / reading.treatment.tasks
    return round(stake * forecast_score(design.predicted_rate, design.baseline_rate, rate))


def forecast_score(predicted: float, baseline: float, rate: float) -> float:
    """From -1 to 1: the mean log likelihood ratio of tasks that succeed at `rate`, on a fixed scale."""
    p, q = (min(CERTAIN, max(1 - CERTAIN, value)) for value in (predicted, baseline))
    return (rate * log(p / q) + (1 - rate) * log((1 - p) / (1 - q))) / LARGEST_SCORE


def result_of(ending: Ending) -> AwardResult | None:
    """The result that moves the proposer's standing; None where the ending is no evidence about its proposal."""
    match ending:
        case Ending.PROMOTED:
            return AwardResult.PROMOTED
        case Ending.HARMFUL | Ending.ROLLED_BACK:
            return AwardResult.HARMFUL
        case Ending.REJECTED | Ending.FUTILE | Ending.INCONCLUSIVE:
            return AwardResult.USELESS
        case Ending.NO_BIDS | Ending.NO_PROPOSAL | Ending.INVALID | Ending.ABORTED | Ending.ESCALATED:
            return None
