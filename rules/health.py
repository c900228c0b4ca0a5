"""How well the platform is, in one number from 0 to 100 that explains itself.

The weights are the article's. A part that the platform is known to measure and that is missing now counts as zero, so
that losing a measurement can only lower the score: a platform that stops reporting must never look better than one that
reports trouble.
"""

from collections.abc import Collection, Mapping

from pydantic import Field

from schema.messages.base import Message

WEIGHTS = {"success": 0.35, "quality": 0.25, "market_fill": 0.20, "active_agents": 0.10, "throughput": 0.10}


class Health(Message):
    """`score` is None only where nothing at all was measured. `parts` are the shares, 0 to 1, of what was measured."""

    score: float | None
    parts: dict[str, float] = Field(default_factory=dict)
    missing: tuple[str, ...] = ()
    reason: str


def health(
    *,
    success_rate: float | None,
    mean_quality: float | None,
    market_fill_rate: float | None,
    active_agents: int | None,
    expected_agents: int,
    throughput_per_h: float | None,
    expected_throughput_per_h: float | None,
    known_parts: Collection[str] = tuple(WEIGHTS),
) -> Health:
    """Weigh the five parts; rates, quality and fill are 0 to 1, agents and throughput are shares of what is expected.

    Give rates over a trailing window that holds tasks in any ordinary hour: one quiet hour is no loss of measurement.
    More than expected counts as all of it, and any number meets an expectation of 0; a market with nothing to fill is
    measured, and 1. `known_parts` are those that this platform has ever measured: a platform that rates no quality is
    judged by the rest, but nothing leaves the set by falling silent. Raises ValueError on an impossible
    measurement, because it could be read as health, and on a part that has no weight.
    """
    unknown = set(known_parts) - WEIGHTS.keys()
    if unknown:
        raise ValueError(f"expected parts among {', '.join(WEIGHTS)}, but {', '.join(sorted(unknown))} came")
    measured = {
        "success": success_rate,
        "quality": mean_quality,
        "market_fill": market_fill_rate,
        "active_agents": _share(active_agents, expected_agents),
        "throughput": _share(throughput_per_h, expected_throughput_per_h),
    }
    parts = {name: value for name, value in measured.items() if value is not None}
    _raise_if_impossible(parts)
    counted = [name for name in WEIGHTS if name in parts or name in known_parts]
    missing = tuple(name for name in counted if name not in parts)
    if not parts:
        return Health(score=None, missing=missing, reason="nothing was measured")
    # Not the last known value: an old good one would outlive the platform. Not a reweighting of the rest either: that
    # raises the score of a platform that stops measuring what is going badly.
    counted_weight = sum(WEIGHTS[name] for name in counted)
    score = 100 * sum(WEIGHTS[name] * value for name, value in parts.items()) / counted_weight
    shown = ", ".join(f"{name} {value:.0%}" for name, value in parts.items())
    absent = f"; not measured and counted as 0: {', '.join(missing)}" if missing else ""
    return Health(score=score, parts=parts, missing=missing, reason=f"{shown}{absent}")


def _raise_if_impossible(parts: Mapping[str, float]) -> None:
    for name, value in parts.items():
        # Written so that NaN, which compares false with everything, is refused too.
        if not 0 <= value <= 1:
            raise ValueError(f"expected {name} between 0 and 1, but {value!r} came")


def _share(value: float | None, expected: float | None) -> float | None:
    if value is None or expected is None:
        return None
    return min(value / expected, 1.0) if expected > 0 else 1.0
