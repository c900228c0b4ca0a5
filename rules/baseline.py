"""What is normal of a series: its rate by hour of the week, from the days before a guard gap.

A finer pattern is believed as far as the hours differ by more than chance (empirical Bayes): with one rate for all,
a nightly job would alarm every night; with every hour's own, a week is too little to know them.

Must never: learn from the excluded spans, or make up a normal from too few tasks.
"""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter, mul
from typing import NamedTuple

from rules.rates import smoothed
from schema.messages.base import Instant
from schema.messages.observatory import Counts, Interval
from schema.messages.platform import ObservatoryRules

DAY_S, WEEK_S, HOURS = 86_400, 604_800, 168  # the last: hours in a week
PRIOR_TASKS = 100  # weight of the coarser level in the finer one, and the fewest tasks that make a baseline
TURN = [2 * math.pi * hour / 24 for hour in range(24)]
WAVES = ([1.0] * 24, [math.sin(t) for t in TURN], [math.cos(t) for t in TURN])
PRODUCTS = [[list(map(mul, first, second)) for second in WAVES] for first in WAVES]
START = attrgetter("start")
Span = tuple[Instant, Instant]


class Baseline(NamedTuple):
    """What is normal: the rate by hour of the week (Monday 00:00 UTC first), by hour of the day, or one for all."""

    counts: Counts
    rates: tuple[float, ...]
    tasks_per_interval: float
    dispersion: float = 1.0  # how many times more than by chance the counts vary; the evidence is divided by it


def rate_at(rates: Sequence[float], at: datetime) -> float:
    at = at.astimezone(UTC) if at.tzinfo else at
    return rates[(at.weekday() * 24 + at.hour) % len(rates)]


def baseline(
    at: datetime,
    track: Sequence[Interval],
    rules: ObservatoryRules,
    excluded: Sequence[Span] = (),
    clustered: bool = False,
) -> Baseline | None:
    """The normal of the window before the guard gap, without the excluded spans; None below PRIOR_TASKS tasks.

    With less than a week there are no hours of the week, with less than two days no pattern at all. Where all before an
    instant is excluded (a promotion), the guard gap is at most half of the time since, or nothing would be known for
    longer than the gap after each change.
    """
    busy = _busy_intervals(at, track, rules, excluded)
    tasks, successes = _by_hour_of_week(busy)
    counts = Counts(tasks=sum(tasks), successes=sum(successes))
    if counts.tasks < PRIOR_TASKS:
        return None
    span_s = (busy[-1].start - busy[0].start).total_seconds() + rules.interval_s
    rates = _rates(tasks, successes, span_s)
    normal = Baseline(counts, tuple(rates), counts.tasks * rules.interval_s / span_s)
    if not clustered:
        return normal
    return normal._replace(dispersion=_observed_dispersion(busy, rates))


def _busy_intervals(
    at: datetime, track: Sequence[Interval], rules: ObservatoryRules, excluded: Sequence[Span]
) -> list[Interval]:
    """The intervals with tasks in the window before the guard gap, without the excluded spans."""
    guard = timedelta(seconds=rules.guard_s)
    oldest = at - guard - timedelta(seconds=rules.baseline_s)
    begun_anew = [end for begin, end in excluded if begin <= oldest < end <= at]
    if begun_anew:
        guard = min(guard, (at - max(begun_anew)) / 2)
    end = at - guard
    first = bisect_left(track, end - timedelta(seconds=rules.baseline_s), key=START)
    last = bisect_right(track, end - timedelta(seconds=rules.interval_s), key=START)
    busy = [interval for interval in track[first:last] if interval.counts.tasks]
    return [interval for interval in busy if not _is_within(excluded, interval.start)]


def _by_hour_of_week(intervals: Iterable[Interval]) -> tuple[list[int], list[int]]:
    """Tasks and successes by hour of the week, Monday 00:00 UTC first."""
    tasks = [0] * HOURS
    successes = [0] * HOURS
    for interval in intervals:
        start = interval.start.astimezone(UTC)
        hour = start.weekday() * 24 + start.hour
        tasks[hour] += interval.counts.tasks
        successes[hour] += interval.counts.successes
    return tasks, successes


def _rates(tasks: Sequence[int], successes: Sequence[int], span_s: float) -> list[float]:
    """One rate, one by hour of the day, or one by hour of the week: as fine as so long a span shows."""
    # Smoothed: a perfect week must not make one failure impossible.
    rates = [smoothed(sum(successes), sum(tasks))]
    if span_s >= 2 * DAY_S:
        daily_tasks = [sum(tasks[hour::24]) for hour in range(24)]
        daily_successes = [sum(successes[hour::24]) for hour in range(24)]
        rates = _shrunk(daily_tasks, daily_successes, _daily_wave(daily_tasks, daily_successes, rates[0]))
    # Half a day less than a week will do: its first and last hours may have had no tasks.
    if span_s >= WEEK_S - DAY_S / 2:
        rates = _shrunk(tasks, successes, rates * 7)
    return rates


def _observed_dispersion(intervals: Iterable[Interval], rates: Sequence[float]) -> float:
    """How many times more than by chance the successes vary around the rates."""
    deviations = []
    for interval in intervals:
        rate = rate_at(rates, interval.start)
        expected = interval.counts.tasks * rate
        deviations.append((interval.start.toordinal(), interval.counts.successes - expected, expected * (1 - rate)))
    return dispersion(deviations)


def _is_within(spans: Iterable[Span], at: datetime) -> bool:
    return any(begin <= at < end for begin, end in spans)


def dispersion(parts: Sequence[tuple[int, float, float]], patterns: int = 1) -> float:
    """How many times more than by chance counts vary, by themselves or by the day: of (day, deviation, variance).

    Bursts that last make days differ by more than hours do: a CUSUM's tail follows the variance of long sums.
    """
    days = defaultdict[int, float](float)
    for day, deviation, _ in parts:
        days[day] += deviation
    by_itself = sum(deviation * deviation for _, deviation, _ in parts)
    by_day = sum(deviation * deviation for deviation in days.values())
    by_chance = sum(variance for _, _, variance in parts)
    fitted = len(days) / max(1, len(days) - patterns)  # patterns of the day were fitted to the same days
    return max(1.0, fitted * max(by_itself, by_day) / max(by_chance, 1e-9))


def _daily_wave(tasks: Sequence[int], successes: Sequence[int], rate: float) -> list[float]:
    """The rate as one sine of the day: ridge regression weighted by tasks, by Gauss-Seidel."""
    weights = [[sum(map(mul, tasks, products)) for products in row] for row in PRODUCTS]
    residuals = [k - n * rate for n, k in zip(tasks, successes, strict=True)]
    targets = [sum(map(mul, residuals, wave)) for wave in WAVES]
    coefficients = [0.0, 0.0, 0.0]
    for _ in range(6):  # the waves are nearly orthogonal
        for i, penalty in enumerate((1, PRIOR_TASKS, PRIOR_TASKS)):
            others = sum(weights[i][j] * coefficients[j] for j in range(3) if j != i)
            coefficients[i] = (targets[i] - others) / (weights[i][i] + penalty)
    mean, sine, cosine = coefficients
    fit = (rate + mean + sine * s + cosine * c for _, s, c in zip(*WAVES, strict=True))
    return [min(max(f, rate / 2), (1 + rate) / 2) for f in fit]


def _shrunk(tasks: Sequence[int], successes: Sequence[int], coarse: Sequence[float]) -> list[float]:
    """Each hour's own rate, as far as the hours differ from the coarser fit by more than chance (empirical Bayes)."""
    hours = list(zip(tasks, successes, coarse, strict=True))
    chi_square = sum((k - n * p) ** 2 / (n * p * (1 - p)) for n, k, p in hours if n)
    busy_hours = sum(1 for n in tasks if n)
    if chi_square <= busy_hours + 2 * math.sqrt(2 * busy_hours):
        return list(coarse)
    # E[chi_square] = busy_hours + sum(n) / weight, where weight = p (1 - p) / the variance between hours.
    weight = max(PRIOR_TASKS, sum(tasks) / (chi_square - busy_hours))
    return [(k + weight * p) / (n + weight) for n, k, p in hours]
