"""Estimators: how many tasks would succeed under another limit, read from durations that the limit cut off.

A task that ended shows its duration exactly; one that was killed shows only that it needed more (right-censored, at its
own duration, so mixed limits need no bookkeeping). What ends by an error does not depend on a limit and is taken to
stay as frequent. Kaplan & Meier's curve (1958) is read from the records; beyond them it is continued by a family of
distributions, fitted as a straight line on probability paper, or by the hazard of the last stretch. A family that does
not describe the durations gives no estimate: a poor fit must not become a forecast. Every standard error is the
jackknife's (Quenouille 1956, Tukey 1958), over groups of tasks.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist, fmean, linear_regression
from typing import NamedTuple

from schema.failure_kinds import FailureKind
from schema.messages.diagnosis import DurationSample

# Below this many finished tasks two parameters describe nothing.
FEWEST_EXACT = 8
# The last part of the observed time, in which the tail's hazard is read: from 1/sqrt(2) of the longest duration on.
TAIL_FROM = math.sqrt(0.5)
FEWEST_IN_TAIL = 3
# Groups that the jackknife leaves out in turn.
GROUPS = 20


class Estimate(NamedTuple):
    """A success rate, 0 to 1, with its standard error."""

    rate: float
    error: float

    def lower(self, errors: float) -> float:
        return self.rate - errors * self.error

    def upper(self, errors: float) -> float:
        return self.rate + errors * self.error


# The success rate under a limit in seconds.
Model = Callable[[float], Estimate]
# Makes a model of samples, newest first, or None where it cannot describe them.
Method = Callable[[Sequence[DurationSample]], Model | None]
# The share of tasks that end within a limit in seconds.
Curve = Callable[[float], float]


class Durations(NamedTuple):
    """Sorted durations in seconds, and the share of ended tasks whose result was sound."""

    exact: list[float]
    censored: list[float]
    sound: float

    @classmethod
    def of(cls, samples: Sequence[DurationSample]) -> "Durations":
        ended = [s.duration_s for s in samples if s.failure in (None, FailureKind.INVALID_RESULT) and s.duration_s > 0]
        killed = [s.duration_s for s in samples if s.failure is FailureKind.TIMEOUT and s.duration_s > 0]
        sound = [s.failure is None for s in samples if s.failure is not FailureKind.TIMEOUT]
        return cls(sorted(ended), sorted(killed), fmean(sound) if sound else 0.0)

    @property
    def longest(self) -> float:
        return max(self.exact + self.censored)

    def ended_after(self, seconds: float) -> int:
        return sum(duration > seconds for duration in self.exact)


# Continues what was seen of some durations; None where it cannot.
Shape = Callable[[Durations], Curve | None]


class Family(NamedTuple):
    """A distribution of log durations, standardised: its distribution function and the inverse."""

    share: Callable[[float], float]
    quantile: Callable[[float], float]


LOG_NORMAL = Family(NormalDist().cdf, NormalDist().inv_cdf)
LOG_LOGISTIC = Family(lambda z: 1 / (1 + math.exp(-max(z, -500.0))), lambda p: math.log(p / (1 - p)))


def kaplan_meier(exact: Sequence[float], censored: Sequence[float]) -> list[tuple[float, float]]:
    """The product-limit estimate: each duration that was seen to end, with the share of tasks that take longer."""
    at_risk, survival, steps = len(exact) + len(censored), 1.0, []
    for seconds, cut in sorted([(d, False) for d in exact] + [(d, True) for d in censored]):
        if not cut:
            survival *= 1 - 1 / at_risk
            steps.append((seconds, survival))
        at_risk -= 1
    return steps


def fit(family: Family, durations: Durations) -> Curve | None:
    """The line through the durations on the family's probability paper, at the middle of each step.

    Of log durations on quantiles: with half of the tasks cut off that is as good as maximum likelihood to a few
    percent. None where the durations are all alike.
    """
    steps = kaplan_meier(durations.exact, durations.censored)
    before = [1.0, *(survival for _, survival in steps)]
    quantiles = [family.quantile(1 - (b + s) / 2) for b, (_, s) in zip(before, steps, strict=False)]
    if len(steps) < 2 or durations.exact[-1] / durations.exact[0] < 1 + 1e-6:
        return None
    scale, location = linear_regression(quantiles, [math.log(seconds) for seconds, _ in steps])
    return lambda limit: family.share((math.log(limit) - location) / scale)


def describes(curve: Curve, durations: Durations) -> bool:
    """Whether the durations could have come from the curve, as a whole and, where it is extrapolated, at the end."""
    tasks, longest = len(durations.exact) + len(durations.censored), durations.longest
    # Kolmogorov & Smirnov at 1%, and three points that no real distribution is asked to hit.
    allowed = 1.63 / math.sqrt(tasks) + 0.03
    steps = kaplan_meier(durations.exact, durations.censored)
    if any(abs(curve(seconds) - 1 + survival) > allowed for seconds, survival in steps):
        return False
    # Tasks that hang make a long plateau that a fit bridges: fewer ended in the last stretches than it expects.
    return all(
        _poisson_at_most(durations.ended_after(start), tasks * (curve(longest) - curve(start))) > 0.05
        for start in (0.5 * longest, TAIL_FROM * longest)
    )


def _poisson_at_most(count: int, mean: float) -> float:
    if mean <= 0:
        return 1.0
    return math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))


def jackknifed(shape: Shape, samples: Sequence[DurationSample]) -> Model | None:
    """The success rate by a shape, with the standard error from leaving out each twentieth of the tasks in turn."""
    curves: list[tuple[float, Curve]] = []
    for left_out in (None, *range(GROUPS)):
        durations = Durations.of([s for n, s in enumerate(samples) if n % GROUPS != left_out])
        curve = shape(durations)
        if curve is None:
            return None
        curves.append((durations.sound, curve))

    def model(limit: float) -> Estimate:
        rate, *rates_without = [sound * curve(limit) for sound, curve in curves]
        mean = fmean(rates_without)
        squares = math.fsum((without - mean) ** 2 for without in rates_without)
        return Estimate(rate, math.sqrt((GROUPS - 1) / GROUPS * squares))

    return model


def fitted(*families: Family) -> Method:
    """The mean of the families that describe the observed durations."""

    def method(samples: Sequence[DurationSample]) -> Model | None:
        durations = Durations.of(samples)
        if len(durations.exact) < FEWEST_EXACT:
            return None
        fitted_curves = [(family, fit(family, durations)) for family in families]
        describing = [family for family, curve in fitted_curves if curve is not None and describes(curve, durations)]

        def shape(part: Durations) -> Curve | None:
            fits = [fit(family, part) for family in describing]
            curves = [curve for curve in fits if curve is not None]
            return (lambda limit: fmean(curve(limit) for curve in curves)) if curves else None

        return jackknifed(shape, samples)

    return method


def observed_tail(samples: Sequence[DurationSample]) -> Model | None:
    """No family: Kaplan-Meier as far as tasks were observed, and from there on the hazard of the last stretch.

    Where nothing ended in that stretch, what was cut off there is taken never to end.
    """
    return jackknifed(_with_last_hazard, samples)


def _with_last_hazard(part: Durations) -> Curve | None:
    if len(part.exact) < FEWEST_EXACT:
        return None
    steps = kaplan_meier(part.exact, part.censored)
    longest = part.longest
    start = TAIL_FROM * longest
    ended = part.ended_after(start)
    exposure = math.fsum(max(0.0, d - start) for d in part.exact + part.censored)
    hazard = ended / exposure if ended >= FEWEST_IN_TAIL else 0.0

    def curve(limit: float) -> float:
        survival = next((survival for seconds, survival in reversed(steps) if seconds <= limit), 1.0)
        return 1 - survival * math.exp(-hazard * max(0.0, limit - longest))

    return curve


def newest_half(method: Method) -> Method:
    """The method on the newer half of the samples, or on some forty: what has changed lately is not averaged away."""
    return lambda samples: method(samples[: max(5 * FEWEST_EXACT, len(samples) // 2)])


def first_of(*methods: Method) -> Method:
    """The first of the methods that can describe the durations."""
    return lambda samples: next((model for model in (method(samples) for method in methods) if model is not None), None)


def worst_of(*methods: Method) -> Method:
    """The lowest rate that any of the methods estimates; None where fewer than two can."""

    def worst(samples: Sequence[DurationSample]) -> Model | None:
        models = [model for model in (method(samples) for method in methods) if model is not None]
        return (lambda limit: min(model(limit) for model in models)) if len(models) > 1 else None

    return worst
