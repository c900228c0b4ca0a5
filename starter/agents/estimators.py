"""Estimators: how many tasks would succeed under another limit, read from durations that the limit cut off.

A task that ended shows its duration exactly; one that was killed shows only that it needed more (right-censored, at its
own duration, so mixed limits need no bookkeeping). What ends by an error says nothing about a limit and is taken to
stay as frequent. Two-parameter families are fitted by maximum likelihood in the parametrisation in which the likelihood
is concave (Olsen 1978, Burridge 1981), so Newton's method cannot stray. A family that does not describe the durations
gives no estimate: a poor fit must not become a forecast.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from schema.messages.observatory import DurationSample, FailureKind

# Below this many finished tasks two parameters describe nothing.
FEWEST_EXACT = 8
# The last part of the observed time, in which the tail's hazard is read: from 1/sqrt(2) of the longest duration on.
TAIL_FROM = math.sqrt(0.5)
FEWEST_IN_TAIL = 3


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


class Durations(NamedTuple):
    """Sorted durations in seconds, and the share of ended tasks whose result was sound."""

    exact: list[float]
    censored: list[float]
    sound: float
    sound_error: float

    @classmethod
    def of(cls, samples: Sequence[DurationSample]) -> "Durations":
        ended = [s.duration_s for s in samples if s.failure in (None, FailureKind.INVALID_RESULT) and s.duration_s > 0]
        killed = [s.duration_s for s in samples if s.failure is FailureKind.TIMEOUT and s.duration_s > 0]
        successes = sum(s.failure is None for s in samples)
        others = sum(s.failure not in (None, FailureKind.TIMEOUT) for s in samples)
        tasks = successes + others
        middle = (successes + 0.5) / (tasks + 1)
        error = math.sqrt(middle * (1 - middle) / (tasks + 1))
        return cls(sorted(ended), sorted(killed), successes / tasks if tasks else 0.0, error)

    def estimate(self, finished: float, error: float) -> Estimate:
        """The success rate where a share `finished` of the tasks ends in time."""
        return Estimate(self.sound * finished, math.hypot(self.sound * error, finished * self.sound_error))


class Term(NamedTuple):
    """A log likelihood and its first two derivatives."""

    value: float
    slope: float
    bend: float


class Family(NamedTuple):
    """A distribution of log durations, standardised: its log density and its log survival function."""

    density: Callable[[float], Term]
    survival: Callable[[float], Term]


def _normal_density(z: float) -> Term:
    return Term(-z * z / 2 - math.log(2 * math.pi) / 2, -z, -1.0)


def _normal_survival(z: float) -> Term:
    if z > 30:  # erfc underflows; Mills' ratio is 1 / z here
        return Term(_normal_density(z).value - math.log(z), -z, -1.0)
    survival = math.erfc(z / math.sqrt(2)) / 2
    hazard = math.exp(_normal_density(z).value) / survival
    return Term(math.log(survival), -hazard, -hazard * (hazard - z))


def _extreme_value_density(z: float) -> Term:
    e = math.exp(min(z, 50.0))
    return Term(z - e, 1 - e, -e)


def _extreme_value_survival(z: float) -> Term:
    e = math.exp(min(z, 50.0))
    return Term(-e, -e, -e)


def _logistic_density(z: float) -> Term:
    p = 1 / (1 + math.exp(-max(z, -500.0)))
    return Term(-abs(z) - 2 * math.log1p(math.exp(-abs(z))), 1 - 2 * p, -2 * p * (1 - p))


def _logistic_survival(z: float) -> Term:
    p = 1 / (1 + math.exp(-max(z, -500.0)))
    return Term(-max(z, 0.0) - math.log1p(math.exp(-abs(z))), -p, -p * (1 - p))


LOG_NORMAL = Family(_normal_density, _normal_survival)
WEIBULL = Family(_extreme_value_density, _extreme_value_survival)
LOG_LOGISTIC = Family(_logistic_density, _logistic_survival)


class Fit(NamedTuple):
    """z = scale * ln(seconds) - shift, with the covariance of (scale, shift)."""

    family: Family
    scale: float
    shift: float
    covariance: tuple[float, float, float]
    likelihood: float

    def share(self, seconds: float) -> float:
        """The share of tasks that end within `seconds`."""
        return -math.expm1(self.family.survival(self.scale * math.log(seconds) - self.shift).value)

    def finished(self, seconds: float) -> Estimate:
        """The same with its standard error, by the delta method."""
        x = math.log(seconds)
        z = self.scale * x - self.shift
        density = math.exp(self.family.density(z).value)
        (aa, ab, bb) = self.covariance
        return Estimate(self.share(seconds), density * math.sqrt(aa * x * x - 2 * ab * x + bb))


def fit(family: Family, exact: Sequence[float], censored: Sequence[float]) -> Fit | None:
    """The maximum likelihood fit to durations in seconds; None where they are too few or all alike."""
    ends, cuts = [math.log(d) for d in exact], [math.log(d) for d in censored]
    if len(ends) < FEWEST_EXACT:
        return None
    mean = math.fsum(ends + cuts) / len(ends + cuts)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in ends) / len(ends))
    if spread < 1e-6:
        return None
    # Kills at one limit differ by milliseconds: to a thousandth alike, they are one term with a weight.
    weighted = [(round(x, 3), family.density, 1) for x in ends]
    weighted += [(x, family.survival, n) for x, n in Counter(round(x, 3) for x in cuts).items()]

    def terms(scale: float, shift: float) -> list[tuple[float, int, Term]]:
        return [(x, n, of(scale * x - shift)) for x, of, n in weighted]

    def likelihood(scale: float, known: list[tuple[float, int, Term]]) -> float:
        return len(ends) * math.log(scale) + math.fsum(n * t.value for _, n, t in known)

    scale, shift = 1 / spread, mean / spread
    known = terms(scale, shift)
    best = likelihood(scale, known)
    for _ in range(100):
        slope_a = len(ends) / scale + math.fsum(n * x * t.slope for x, n, t in known)
        slope_b = -math.fsum(n * t.slope for _, n, t in known)
        aa = len(ends) / scale**2 - math.fsum(n * x * x * t.bend for x, n, t in known)
        ab = math.fsum(n * x * t.bend for x, n, t in known)
        bb = -math.fsum(n * t.bend for _, n, t in known)
        determinant = aa * bb - ab * ab
        if determinant <= 0:
            return None
        step_a, step_b = (bb * slope_a - ab * slope_b) / determinant, (aa * slope_b - ab * slope_a) / determinant
        if slope_a * step_a + slope_b * step_b < 1e-9:  # Newton's decrement: twice what is left to gain
            return Fit(family, scale, shift, (bb / determinant, -ab / determinant, aa / determinant), best)
        for part in (0.5**n for n in range(20)):
            wider, further = scale + part * step_a, shift + part * step_b
            if wider > 0 and likelihood(wider, tried := terms(wider, further)) >= best:
                break
        else:
            return None
        scale, shift, known = wider, further, tried
        best = likelihood(scale, known)
    return None


class Step(NamedTuple):
    """Kaplan and Meier's survival after a duration, with Greenwood's variance of its logarithm."""

    seconds: float
    survival: float
    variance: float


def kaplan_meier(exact: Sequence[float], censored: Sequence[float]) -> list[Step]:
    """The product-limit estimate (Kaplan & Meier 1958) at every duration that was seen to end."""
    at_risk, survival, variance, steps = len(exact) + len(censored), 1.0, 0.0, []
    for seconds, cut in sorted([(d, False) for d in exact] + [(d, True) for d in censored]):
        if not cut:
            survival *= 1 - 1 / at_risk
            variance += 1 / (at_risk * (at_risk - 1)) if at_risk > 1 else 0.0
            steps.append(Step(seconds, survival, variance))
        at_risk -= 1
    return steps


def describes(found: Fit, durations: Durations) -> bool:
    """Whether the durations could have come from the fit, as a whole and, where it is extrapolated, at the end."""
    everything = durations.exact + durations.censored
    # Kolmogorov & Smirnov at 1%, and three points that no real distribution is asked to hit.
    allowed = 1.63 / math.sqrt(len(everything)) + 0.03
    steps = kaplan_meier(durations.exact, durations.censored)
    if any(abs(found.share(step.seconds) - 1 + step.survival) > allowed for step in steps):
        return False
    # Tasks that hang make a long plateau that a fit bridges: fewer ended in the last stretches than it expects.
    for start in (0.5 * max(everything), TAIL_FROM * max(everything)):
        expected = len(everything) * (found.share(max(everything)) - found.share(start))
        if _poisson_at_most(sum(d > start for d in durations.exact), expected) <= 0.05:
            return False
    return True


def _poisson_at_most(count: int, mean: float) -> float:
    if mean <= 0:
        return 1.0
    return math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))


def fitted(*families: Family) -> Method:
    """The families that describe the durations seen, averaged by Akaike's weights, their disagreement in the error.

    Buckland, Burnham & Augustin 1997. All have two parameters, so the weights are the likelihoods.
    """

    def method(samples: Sequence[DurationSample]) -> Model | None:
        durations = Durations.of(samples)
        tried = [fit(family, durations.exact, durations.censored) for family in families]
        fits = [found for found in tried if found is not None and describes(found, durations)]
        if not fits:
            return None
        best = max(f.likelihood for f in fits)
        weights = [math.exp(f.likelihood - best) for f in fits]

        def model(limit: float) -> Estimate:
            each = [f.finished(limit) for f in fits]
            rate = sum(w * e.rate for w, e in zip(weights, each, strict=True)) / sum(weights)
            errors = [w * math.hypot(e.error, e.rate - rate) for w, e in zip(weights, each, strict=True)]
            return durations.estimate(rate, sum(errors) / sum(weights))

        return model

    return method


def observed_tail(samples: Sequence[DurationSample]) -> Model | None:
    """No family: Kaplan-Meier as far as tasks were seen, and from there on the hazard of the last stretch.

    Where nothing ended in that stretch, what was cut off there is taken never to end.
    """
    durations = Durations.of(samples)
    everything = durations.exact + durations.censored
    if len(durations.exact) < FEWEST_EXACT:
        return None
    steps = kaplan_meier(durations.exact, durations.censored)
    start = TAIL_FROM * max(everything)
    ended = sum(d > start for d in durations.exact)
    exposure = math.fsum(max(0.0, d - start) for d in everything)
    hazard = ended / exposure if ended >= FEWEST_IN_TAIL else 0.0

    def model(limit: float) -> Estimate:
        reached = [step for step in steps if step.seconds <= limit]
        last = reached[-1] if reached else Step(0.0, 1.0, 0.0)
        beyond = max(0.0, limit - max(everything)) * hazard
        survival = last.survival * math.exp(-beyond)
        return durations.estimate(1 - survival, survival * math.sqrt(last.variance + beyond**2 / max(1, ended)))

    return model


def newest_half(method: Method) -> Method:
    """The method on the newer half of the samples, or on some forty: what has changed lately is not averaged away."""
    return lambda samples: method(samples[: max(5 * FEWEST_EXACT, len(samples) // 2)])


def first_of(*methods: Method) -> Method:
    """The first of the methods that can describe the durations."""
    return lambda samples: next((model for make in methods if (model := make(samples)) is not None), None)


def worst_of(*methods: Method) -> Method:
    """The lowest rate that any of the methods arrives at; None where fewer than two can tell."""

    def method(samples: Sequence[DurationSample]) -> Model | None:
        models = [model for make in methods if (model := make(samples)) is not None]
        return (lambda limit: min(model(limit) for model in models)) if len(models) > 1 else None

    return method
