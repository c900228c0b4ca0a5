"""Guardrails: what must not get worse, and what counts as a good task, from the baseline. Functions, no activities."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import get_args

from sqlmodel import Session

from activities.history import baseline_window
from activities.rollups import SHARES, Rollup, good, rollups, together
from activities.sketches import highest, lowest, quantile
from rules.baseline import PRIOR_TASKS
from rules.design import baseline_rate
from rules.verdict import decided_by_ratings
from schema.messages.observatory import Anomaly, Guardrail, GuardrailKind
from schema.messages.platform import Aim, ObservatoryRules

# By sketch: the quantile of the baseline beyond which no larger share of tasks may lie.
GUARDED = {"durations": 0.95, "qualities": 0.5, "costs": 0.95}
# By sketch: what must not get worse, and the bound of a bucket whose values are still good.
AIMS = {
    "durations": (GuardrailKind.FAST, highest),
    "qualities": (GuardrailKind.WELL_RATED, lowest),
    "costs": (GuardrailKind.CHEAP, highest),
}


def guardrails(
    session: Session,
    task_types: Sequence[str],
    at: datetime,
    rules: ObservatoryRules,
    aims: Mapping[str, Guardrail] | None = None,
) -> tuple[Guardrail, ...]:
    """What must not get worse, from the roll-ups of the baseline window (or, on day one, of all there is).

    There is no guardrail for what is not measured here. Bounds lie between two buckets of the sketches, so the usual
    share is counted exactly. The cycle sets the margin.

    `aims` say what a good task is, where it takes more than success. Then the share of completed tasks is a guardrail
    too; and where ratings decide, so is the share of successes that are rated.
    """
    since, end = baseline_window(at, rules)
    tracks = rollups(session, since, at, task_types)
    intervals = list(chain.from_iterable(tracks.values()))
    baseline = together(interval for interval in intervals if interval.start < end)
    usual = baseline if baseline.tasks >= PRIOR_TASKS else together(intervals)
    guards = [_guardrail(usual, field, share) for field, share in GUARDED.items()]
    if aims and usual.tasks:
        guards.append(_share_guardrail(GuardrailKind.COMPLETED, usual))
    if aims and decided_by_ratings(aims) and usual.rated:
        guards.append(_share_guardrail(GuardrailKind.RATED, usual))
    return tuple(guard for guard in guards if guard is not None)


def objectives(session: Session, anomaly: Anomaly | None, rules: ObservatoryRules) -> dict[str, Guardrail]:
    """What a good task of each type is, for an anomaly of slow, costly or poor tasks: one its metric does not count.

    By the baseline before the onset, so the answer does not depend on when this is called.
    """
    if anomaly is None or anomaly.metric not in get_args(Aim):
        return {}
    share = SHARES[anomaly.metric]
    tracks = rollups(session, *baseline_window(anomaly.onset, rules))
    aims = {name: _guardrail(together(track), share.sketch, share.quantile) for name, track in tracks.items()}
    return {name: aim for name, aim in aims.items() if aim is not None}


def _guardrail(usual: Rollup, field: str, share: float) -> Guardrail | None:
    """Tasks on the good side of a quantile of what is usual; None where nothing was measured."""
    kind, bound_of = AIMS[field]
    if (bucket := quantile(getattr(usual, field), share)) is None:
        return None
    aim = Guardrail(kind=kind, bound=bound_of(bucket), usual=0.0, margin=0.05)
    return aim.model_copy(update={"usual": baseline_rate(good(usual, aim))})


def _share_guardrail(kind: GuardrailKind, usual: Rollup) -> Guardrail:
    """A guardrail that has no bound."""
    guardrail = Guardrail(kind=kind, bound=0.0, usual=0.0, margin=0.05)
    return guardrail.model_copy(update={"usual": baseline_rate(good(usual, guardrail))})
