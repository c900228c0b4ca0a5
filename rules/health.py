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
    """Weigh the five parts of health into one score.

    Rates, quality and fill are given as 0 to 1 (a market with nothing to fill: 1). Agents and throughput are given with
    what is expected: more than expected counts as all of it, and any number meets an expectation of 0. Give rates over
    a trailing window that holds tasks in any ordinary hour: one quiet hour is no loss of measurement.

    `known_parts` are those that this platform has ever measured: one that is missing now counts as 0. A part that was
    never measured, as on a platform that rates no quality, takes no part in the score.

    Raises ValueError on an impossible measurement, because it could be read as health, and on a part without a weight.
    """
    unknown = set(known_parts) - WEIGHTS.keys()
    if unknown:
        raise ValueError(f"expected parts among {', '.join(WEIGHTS)}, but {', '.join(sorted(unknown))} came")

    shares = {
        "success": success_rate,
        "quality": mean_quality,
        "market_fill": market_fill_rate,
        "active_agents": _share(active_agents, expected_agents),
        "throughput": _share(throughput_per_h, expected_throughput_per_h),
    }
    measured = {name: share for name, share in shares.items() if share is not None}
    _raise_if_impossible(measured)

    counted = [name for name in WEIGHTS if name in measured or name in known_parts]
    missing = tuple(name for name in counted if name not in measured)
    if not measured:
        return Health(score=None, missing=missing, reason="nothing was measured")

    # A missing part counts as 0. Its last known value would outlive the platform; weighing only the rest would raise
    # the score of a platform that stops measuring what goes badly.
    counted_weight = sum(WEIGHTS[name] for name in counted)
    score = 100 * sum(WEIGHTS[name] * share for name, share in measured.items()) / counted_weight
    shown = ", ".join(f"{name} {share:.0%}" for name, share in measured.items())
    absent = f"; not measured and counted as 0: {', '.join(missing)}" if missing else ""
    return Health(score=score, parts=measured, missing=missing, reason=f"{shown}{absent}")


def _raise_if_impossible(parts: Mapping[str, float]) -> None:
    for name, value in parts.items():
        # Written so that NaN, which compares false with everything, is refused too.
        if not 0 <= value <= 1:
            raise ValueError(f"expected {name} between 0 and 1, but {value!r} came")


def _share(value: float | None, expected: float | None) -> float | None:
    if value is None or expected is None:
        return None
    return min(value / expected, 1.0) if expected > 0 else 1.0
