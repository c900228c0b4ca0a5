"""Elevation: how often, how soon and for how long the jobs of the cron registry run, by how well the platform is.

Decides three things: when diagnostic jobs are elevated and when they go back (two thresholds, a hysteresis), what that
means for an interval and a priority, and the time budget of a job that declares none. A missing health is never good
news: it ends no elevation, and counts as no health at all where a budget asks how urgent things are.
"""

import math
from collections.abc import Sequence
from datetime import datetime

from schema.messages.observatory import Anomaly
from schema.messages.platform import ElevationRules, JobClass, ScheduleDeclaration
from schema.messages.schedules import Budget, Elevation

# Temporal's priority key: 1 goes before everything else.
FIRST = 1
# Nine runs of ten fit into a budget of this quantile; the tenth has the headroom.
QUANTILE = 0.9
HEADROOM = 2.0
# Open anomalies that depart by so much in all (30 points of a rate) are as urgent as it gets: the budget doubles.
URGENT_GAP = 0.3
# Budgets are whole steps of this, so that a snapshot does not change every schedule by a fraction of a second.
BUDGET_STEP_S = 5.0


def after(before: Elevation, health: float | None, at: datetime, rules: ElevationRules) -> Elevation:
    """The elevation after one more health score (0 to 100, or None where nothing could be measured)."""
    if health is None:
        return before
    since = f"since {at:%Y-%m-%d %H:%M} UTC: health {health:.1f}"
    if not before.elevated and health < rules.below:
        return Elevation(elevated=True, reason=f"elevated {since} is under {rules.below:g}")
    if before.elevated and health > rules.above:
        return Elevation(elevated=False, reason=f"back to normal {since} is over {rules.above:g}")
    return before


def is_elevated(declared: ScheduleDeclaration, elevation: Elevation) -> bool:
    """Whether this job is one that runs more often and first now."""
    return elevation.elevated and declared.job_class is JobClass.DIAGNOSTIC


def interval_s(declared: int, elevated: bool, rules: ElevationRules) -> int:
    """Seconds between two runs of a job that declares `declared` of them."""
    return min(declared, max(rules.least_interval_s, declared // rules.divisor)) if elevated else declared


def urgency(anomalies: Sequence[Anomaly], health: float | None) -> float:
    """0 to 1: how severe the open anomalies are, by how far they depart from the usual; or how low the health is.

    An anomaly without a baseline, such as silence, counts as the largest departure.
    """
    gap = 0.0
    for anomaly in anomalies:
        observed = anomaly.observed.rate
        usual = anomaly.baseline.rate if anomaly.baseline else None
        gap += 1.0 if observed is None or usual is None else abs(observed - usual)
    return max(min(1.0, gap / URGENT_GAP), 1 - (health or 0.0) / 100)


def budget(
    durations_s: Sequence[float], anomalies: Sequence[Anomaly], health: float | None, declared: ScheduleDeclaration
) -> Budget:
    """The time budget: declared, or by how complex the job was lately and how urgent things are now.

    A run that was stopped at its budget counts with what it took: that is less than it needed, so the budget grows
    from run to run until it suffices or meets its bound.
    """
    if declared.budget_s != "auto":
        return Budget(seconds=declared.budget_s)
    if not durations_s:
        return Budget(seconds=declared.most_budget_s, reason="auto: no run yet, so all that it may have")
    urgent = urgency(anomalies, health)
    rank = math.ceil(QUANTILE * len(durations_s))
    usual_s = sorted(durations_s)[rank - 1]
    wanted_s = usual_s * HEADROOM * (1 + urgent)
    whole_steps_s = math.ceil(wanted_s / BUDGET_STEP_S) * BUDGET_STEP_S

    runs = f"{QUANTILE:.0%} of {len(durations_s)} runs took up to {usual_s:.1f} s"
    health_now = "unknown" if health is None else f"{health:.0f}"
    open_now = f"{len(anomalies)} anomalies open, health {health_now}"
    return Budget(
        seconds=min(max(whole_steps_s, declared.least_budget_s), declared.most_budget_s),
        reason=f"auto: {runs}; urgency {urgent:.0%} ({open_now})",
    )
