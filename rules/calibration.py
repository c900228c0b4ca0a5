"""Fixes, before the first task, what an experiment bets and how much those bets must win to promote.

A bet is a pair of rates; `rules.decision` multiplies their factors. Ville's threshold 1 / alpha pays for an
endless experiment. With the horizon known it is smaller: the least c with P(max over n <= N of E_n >= c) at most 95% of
alpha, at the worst of three true rates, because a calibrated threshold is exact only for the rate it was made for; the
margin keeps it honest between them. Futility is not counted on (not binding): a person may go on after it.

Importance sampling (Siegmund, "Importance sampling in the Monte Carlo study of sequential tests", 1976): E is the
likelihood ratio of Q, "rate p, arms tilted by the bets", to P, "no effect at rate p", so P(E reaches c) is the mean
under Q of 1 / E at the crossing. Q crosses often: a thousand paths are as precise as a hundred thousand under P. Seeded
and cached, so the same design always has the same threshold. No clock, no IO.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from math import log
from operator import mul
from random import Random
from typing import NamedTuple

# (weight, control rate a, treatment rate b) with a <= b; the weights of a mixture sum to 1.
Bet = tuple[float, float, float]

# A bet on certainty is ruined by one exception: bets stay a fiftieth of the way off 0 and 1, and never reach them.
CERTAINTY = 1 / 50
NEARLY_NEVER = 1e-4
# Enough effects between the smallest and the largest that no true one is far from a bet; each costs a microsecond.
EFFECTS = 12
# A design that hopes for much must still see a small harm: the smallest harm bet on is never above five points.
LARGEST_SMALL_HARM = 0.05

GOLDEN_RATIO = 0.6180339887498949
SEED = 20_261_122
MARGIN = 0.95  # of alpha: .0475 for .05, which leaves room for two standard errors of the simulation
RATE_SHIFTS = (-0.05, 0.0, 0.05)
PATHS = 1_000
# A microsecond or two a step: some five seconds cold. Long horizons get fewer paths; with too few it is 1 / alpha.
STEPS = 3_000_000
FEWEST_PATHS = 100
LONGEST_HORIZON = 100_000  # beyond it a path could take minutes, and the horizon hardly binds


@lru_cache(maxsize=1024)
def promising_bets(baseline_rate: float, predicted_rate: float, minimum_effect: float) -> tuple[Bet, ...]:
    """Half on the agent's own prediction, half spread over the effects from the smallest to the largest possible.

    A right prediction costs ln 2 of evidence against knowing the truth; a wrong one costs tasks, never validity.
    """
    effects = _geometric(minimum_effect, 1 - baseline_rate)
    return (
        _bet(0.5, baseline_rate, predicted_rate),
        *(_bet(0.5 / EFFECTS, baseline_rate, baseline_rate + effect) for effect in effects),
    )


@lru_cache(maxsize=1024)
def smallest_bet(baseline_rate: float, minimum_effect: float) -> tuple[Bet, ...]:
    """The smallest effect worth having, against no effect: a futile experiment gives up on it."""
    return (_bet(1.0, baseline_rate, baseline_rate + minimum_effect),)


@lru_cache(maxsize=1024)
def harm_bets(baseline_rate: float, margin: float) -> tuple[Bet, ...]:
    """Treatments, in the place of the worse arm, from the smallest harm to the largest possible."""
    harms = _geometric(min(margin, LARGEST_SMALL_HARM), baseline_rate)
    return tuple(_bet(1 / EFFECTS, baseline_rate - harm, baseline_rate) for harm in harms)


@lru_cache(maxsize=4096)
def log_factors(bets: tuple[Bet, ...], share: float) -> tuple[tuple[float, float, float, float], ...]:
    """ln p_arm(Y) / (share p_b(Y) + (1 - share) p_a(Y)) of each bet: treatment success, failure, control the same."""
    means = [share * b + (1 - share) * a for _, a, b in bets]
    return tuple(
        (log(b / m), log((1 - b) / (1 - m)), log(a / m), log((1 - a) / (1 - m)))
        for (_, a, b), m in zip(bets, means, strict=True)
    )


@lru_cache(maxsize=256)
def calibrated_log_threshold(bets: tuple[Bet, ...], rate: float, alpha: float, max_tasks: int) -> float:
    """Log of the least threshold for `max_tasks` at 50/50, never above ln(1 / alpha); under 15 s cold."""
    if max_tasks > LONGEST_HORIZON:
        return -log(alpha)
    true_rates = {min(max(rate + shift, 0.001), 0.999) for shift in RATE_SHIFTS}
    paths_by_rate = (_maxima(bets, true_rate, 1 / alpha, max_tasks) for true_rate in true_rates)
    worst = max(_least_threshold(paths, MARGIN * alpha) for paths in paths_by_rate)
    return log(min(worst, 1 / alpha))


def _geometric(low: float, high: float) -> list[float]:
    ratio = max(high / low, 1.0)
    return [low * ratio ** (i / (EFFECTS - 1)) for i in range(EFFECTS)]


def _bet(weight: float, a: float, b: float) -> Bet:
    a, b = (min(max(rate, NEARLY_NEVER), 1 - NEARLY_NEVER) for rate in (a, b))
    return weight, max(a, b * CERTAINTY), min(b, 1 - (1 - a) * CERTAINTY)


class _Outcomes(NamedTuple):
    """The outcomes of a task under Q: a success treated or not, a failure treated or not."""

    ends: list[list[float]]  # of each bet, where on [0, 1) the probabilities of its outcomes end, the last one at 1
    factors: list[list[float]]  # of each outcome, by which factor it multiplies each bet


def _outcomes(bets: Sequence[Bet], rate: float) -> _Outcomes:
    # Odds of the arm given the outcome, at 50/50: treatment or control after a success, the same after a failure.
    arms = [(b / (a + b), a / (a + b), (1 - b) / (2 - a - b), (1 - a) / (2 - a - b)) for _, a, b in bets]
    ends = [list(accumulate((rate * ts, rate * cs, (1 - rate) * tf))) for ts, cs, tf, _ in arms]
    # An outcome multiplies a bet by its odds over those of no effect, which are one in two.
    factors = [[2 * p for p in column] for column in zip(*arms, strict=True)]
    return _Outcomes(ends, factors)


def _maxima(bets: Sequence[Bet], rate: float, ceiling: float, max_tasks: int) -> list[list[float]]:
    """The successive maxima of E along each path under Q, up to `ceiling` or the horizon."""
    rng = Random(SEED)
    outcomes = _outcomes(bets, rate)
    weights = [weight for weight, _, _ in bets]
    weight_ends = list(accumulate(weights))
    paths: list[list[float]] = []
    steps = 0
    while len(paths) < PATHS and steps < STEPS / len(RATE_SHIFTS):
        # The golden ratio spreads any number of paths over the bets by their weights, better than rng would.
        place = len(paths) * GOLDEN_RATIO % 1.0 * weight_ends[-1]
        outcome_ends = outcomes.ends[bisect_left(weight_ends, place)]
        drawn = (outcomes.factors[bisect_right(outcome_ends, rng.random())] for _ in range(max_tasks))
        maxima, length = _path(weights, drawn, ceiling)
        paths.append(maxima)
        steps += length
    return paths if len(paths) >= FEWEST_PATHS else [[ceiling]]


def _path(weights: list[float], drawn: Iterable[Sequence[float]], ceiling: float) -> tuple[list[float], int]:
    """The successive maxima of E on the drawn factors of the bets, until it reaches `ceiling`; and how many it took."""
    wealth = weights
    maxima = [1.0]
    steps = 0
    for factor in drawn:
        wealth = list(map(mul, wealth, factor))  # the innermost step of millions: a comprehension takes twice as long
        steps += 1
        total = sum(wealth)
        if total > maxima[-1]:
            maxima.append(total)
            if total >= ceiling:
                break
    return maxima, steps


def _least_threshold(paths: Sequence[Sequence[float]], level: float) -> float:
    """The least c at which the mean of 1 / E at the first crossing of c is at most `level`."""
    low, high = 1.0, max(maxima[-1] for maxima in paths)
    for _ in range(40):
        c = (low + high) / 2
        reached = sum(_inverse_at_crossing(maxima, c) for maxima in paths)
        low, high = (c, high) if reached > level * len(paths) else (low, c)
    return high


def _inverse_at_crossing(maxima: Sequence[float], c: float) -> float:
    """1 / E where a path first reaches `c`; 0 where it never does."""
    crossing = bisect_left(maxima, c)
    return 1 / maxima[crossing] if crossing < len(maxima) else 0.0
