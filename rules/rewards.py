"""Rewards: what an ending is worth to the agent whose proposal it was."""

from schema.messages.cycle import Ending
from schema.messages.market import AwardResult


def result_of(ending: Ending) -> AwardResult | None:
    """The result that moves the proposer's standing; None where the ending says nothing about its proposal."""
    match ending:
        case Ending.PROMOTED:
            return AwardResult.PROMOTED
        case Ending.HARMFUL | Ending.ROLLED_BACK:
            return AwardResult.HARMFUL
        case Ending.REJECTED | Ending.FUTILE | Ending.INCONCLUSIVE:
            return AwardResult.USELESS
        case Ending.NO_BIDS | Ending.NO_PROPOSAL | Ending.INVALID | Ending.ABORTED | Ending.ESCALATED:
            return None
