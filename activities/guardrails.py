"""Guardrails: what must not get worse, and what counts as a good task, from the baseline. Functions, no activities."""

from collections.abc import Sequence
from datetime import datetime
from typing import get_args

from sqlmodel import Session

from activities.history import baseline_window
from activities.rollups import (
    SHARES,
    Rollup,
    good,
    rollups,
    together,
)
from activities.sketches import highest, lowest, quantile
from rules.baseline import PRIOR_TASKS
from rules.design import baseline_rate
from schema.messages.observatory import (
    Anomaly,
    Counts,
    Guardrail,
    GuardrailKind,
)
from schema.messages.platform import Aim, ObservatoryRules

# Of which quantile of the baseline no more tasks may fall short.
GUARDED = {"durations": 0.95, "qualities": 0.5, "costs": 0.95}
# What a sketch is about, as what must not get worse, and the bound of a bucket that still belongs to the good.
AIMS = {
    "durations": (GuardrailKind.FAST, highest),
    "qualities": (GuardrailKind.WELL_RATED, lowest),
    "costs": (GuardrailKind.CHEAP, highest),
}


def guardrails(
    session: Session, task_types: Sequence[str], at: datetime, rules: ObservatoryRules, aims: bool = False
) -> tuple[Guardrail, ...]:
    """What must not get worse, from the roll-ups of the baseline window (or, on day one, of all there is).

    A guardrail of something that is not measured here is none. Bounds lie between two buckets of the sketches, so the
    usual share is counted exactly. The margin is the cycle's to set. Who aims at something else than success is guarded
    by it.
    """
    since, end = baseline_window(at, rules)
    tracks = rollups(session, since, at, task_types)
    everything = [one for track in tracks.values() for one in track]
    healthy = together(one for one in everything if one.start < end)
    usual = healthy if healthy.tasks >= PRIOR_TASKS else together(everything)
    found = [_guardrail(usual, field, share) for field, share in GUARDED.items()]
    if aims and usual.tasks:
        found.append(Guardrail(kind=GuardrailKind.COMPLETED, bound=0.0, usual=baseline_rate(usual.counts), margin=0.05))
    return tuple(one for one in found if one is not None)


def objectives(session: Session, anomaly: Anomaly | None, rules: ObservatoryRules) -> dict[str, Guardrail]:
    """What a good task of each type is, where an anomaly is of slow or dear ones: what its metric does not count.

    By the baseline before the onset, whenever it is asked for.
    """
    if anomaly is None or anomaly.metric not in get_args(Aim):
        return {}
    field, share, _ = SHARES[anomaly.metric]
    tracks = rollups(session, *baseline_window(anomaly.onset, rules))
    found = {name: _guardrail(together(track), field, share) for name, track in tracks.items()}
    return {name: aim for name, aim in found.items() if aim is not None}


def _guardrail(usual: Rollup, field: str, share: float) -> Guardrail | None:
    """Tasks on the good side of a quantile of what is usual; None where nothing was measured."""
    kind, bound = AIMS[field]
    if (bucket := quantile(getattr(usual, field), share)) is None:
        return None
    aim = Guardrail(kind=kind, bound=bound(bucket), usual=0.0, margin=0.05)
    counts = good(usual, aim)
    if kind is GuardrailKind.WELL_RATED:  # what is not rated says nothing of what is usual
        counts = Counts(tasks=usual.rated, successes=counts.successes)
    return aim.model_copy(update={"usual": baseline_rate(counts)})
