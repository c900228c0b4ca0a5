"""Whether a report of a task can be true: what contradicts itself or lies in the future is no fact.

Must never: read a clock, or repair what was reported.
"""

from datetime import datetime, timedelta

from schema.messages.observatory import TaskOutcome

# Clocks of two machines differ by seconds where they are kept, and by some minutes where they are not.
CLOCK_SKEW = timedelta(minutes=5)
# A duration is measured by another clock than the two instants, which may be rounded to seconds.
ROUNDING_S, ROUNDING_SHARE = 1.0, 0.01


def contradiction(outcome: TaskOutcome, now: datetime) -> str | None:
    """Why an outcome cannot be true at `now`, or None.

    A duration may be shorter than the time between the two instants, in which a task may also have waited.
    """
    started_at, finished_at = outcome.started_at, outcome.finished_at
    for name, at in (("started_at", started_at), ("finished_at", finished_at)):
        if at > now + CLOCK_SKEW:
            return f"expected a {name} that has passed, but {at.isoformat()} came"
    if finished_at < started_at:
        return f"expected a finished_at from {started_at.isoformat()} on, but {finished_at.isoformat()} came"
    elapsed_s = (finished_at - started_at).total_seconds()
    if outcome.duration_s > elapsed_s * (1 + ROUNDING_SHARE) + ROUNDING_S:
        between = f"the {elapsed_s:g} s from started_at to finished_at"
        return f"expected a duration_s of at most {between}, but {outcome.duration_s:g} came"
    return None
