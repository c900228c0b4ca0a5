"""Experience: what memory holds of a role of parameter for a symptom, as pseudo-counts of a Beta distribution.

Pure functions on what a diagnosis brings. They have no prior: with an agent's own of (a, b), the chance that a change
helps is Beta(a + successes, b + failures). Evidence decays by age, and counts the less the further away it was learned:
a power prior (Ibrahim & Chen, "Power prior distributions for regression models", 2000).
"""

import math
from collections.abc import Iterable
from datetime import datetime, timedelta

from .messages.base import Value
from .messages.memory import Pattern, Symptom

# A platform changes its work every few months; what was true two months ago is worth half.
HALF_LIFE = timedelta(days=60)
# A reason is the platform's own word for a cause, which tasks of any type may share.
SAME_REASON_ELSEWHERE = 0.7
# A kind such as "error" has many causes.
SAME_KIND = 0.3


def weight(at: datetime, now: datetime) -> float:
    """What evidence of `at` is worth `now`, 0 to 1."""
    return min(1.0, math.exp2((at - now) / HALF_LIFE))


def nearness(learned: Symptom, symptom: Symptom) -> float:
    """What evidence about one symptom is worth for another, 0 to 1.

    The same task type and reason: all of it; the same reason elsewhere: `SAME_REASON_ELSEWHERE`; only the same kind of
    failure: `SAME_KIND`; another metric: nothing. Where neither has a reason, the task type and the kind are all.
    """
    if learned.metric != symptom.metric:
        return 0.0
    is_here, is_same_reason = learned.task_type == symptom.task_type, learned.reason == symptom.reason
    if is_same_reason and symptom.reason:
        return 1.0 if is_here else SAME_REASON_ELSEWHERE
    if learned.failure != symptom.failure:
        return 0.0
    return 1.0 if is_here and is_same_reason else SAME_KIND


def posterior(
    patterns: Iterable[Pattern],
    symptom: Symptom,
    role: str,
    direction: str,
    now: datetime,
    *,
    name: str = "",
    value: Value | None = None,
) -> tuple[float, float]:
    """Successes and failures of changes of a role (`schema.parameter_roles`) in a direction: raise, lower or set.

    Weighed by age `now` and by nearness; changes of any size count alike. `name` is the parameter's, without its task
    type: what has no role is known by it. `value` counts only what was set to it. Raises ValueError for another
    direction.
    """
    if direction not in ("raise", "lower", "set"):
        raise ValueError(f"expected the direction raise, lower or set, but {direction!r} came")
    successes = failures = 0.0
    for pattern in patterns:
        change = pattern.claim.change
        if change.verb != direction or not change.concerns(role, name):
            continue
        if value is not None and value != change.value:
            continue
        # `support` and `against` are weighed up to the instant at which they were judged.
        worth = nearness(pattern.claim.symptom, symptom) * weight(pattern.judged_at or now, now)
        successes += worth * pattern.support
        failures += worth * pattern.against
    return successes, failures
