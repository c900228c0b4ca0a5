"""Cooldown: when the next attempt on a subject may start, given how the last one ended."""

from datetime import datetime, timedelta

from schema.messages.cycle import Ending
from schema.messages.platform import CycleRules


def next_attempt_at(ending: Ending, ended_at: datetime, rules: CycleRules) -> datetime | None:
    """The earliest start of the next attempt; None where only a person or the end of the alarm allows one."""
    match ending:
        case Ending.PROMOTED | Ending.ROLLED_BACK:
            # What was just changed needs its time to show.
            return ended_at + timedelta(seconds=rules.bake_window_s)
        case (
            Ending.REJECTED
            | Ending.NO_BIDS
            | Ending.NO_PROPOSAL
            | Ending.FUTILE
            | Ending.HARMFUL
            | Ending.INCONCLUSIVE
            | Ending.INVALID
        ):
            return ended_at + timedelta(seconds=rules.retry_cooldown_s)
        case Ending.ABORTED | Ending.ESCALATED:
            return None
