"""Episodes in a plain file of a user's own history: what `nautilus detect --file` tells.

Rates are judged by the platform's own CUSUMs, both ways. Values without a denominator are judged by Gaussian CUSUMs
(Page 1954) of what is new in each row against the usual value at that time of the week. In a file nobody closes alarms:
a level that outlasts the baseline's window becomes the new normal.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from operator import itemgetter
from statistics import fmean, median
from typing import NamedTuple

from rules.baseline import HOURS, WEEK_S, Baseline, baseline
from rules.detection import BUDGET, CLOSING, Metric, Series, Settings, step
from schema.messages.observatory import Counts, Interval
from schema.messages.platform import ObservatoryRules

MINIMUM_ROWS, FOUR_WEEKS = 30, timedelta(weeks=4)
# How often a week an hour of the pattern comes, how many weeks it takes to know it, and the hour of the pattern.
PATTERNS: tuple[tuple[int, float, Callable[[int], int]], ...] = (
    (7, 0.9, lambda hour: hour % 24),
    (2, 0.9, lambda hour: hour % 24 + 24 * (hour >= 120)),
    (1, 3.5, lambda hour: hour),
)
WATCHED = (-3.0, -1.0, 1.0, 3.0)  # shifts to watch for, in spreads


class Direction(StrEnum):
    DOWN = "down"
    UP = "up"


class SeriesAlarm(NamedTuple):
    """One episode: the row that raised it, when it seems to have begun, and the change since."""

    timestamp: datetime
    onset: datetime
    direction: Direction
    size: float
    reason: str


def detect_rates(rows: Iterable[tuple[datetime, int, int]]) -> list[SeriesAlarm]:
    """Episodes in rows of (timestamp, successes, total), oldest first. A row with total 0 is no data."""
    rows = list(rows)
    for at, successes, tasks in rows:
        if not 0 <= successes <= tasks:
            raise ValueError(f"expected 0 <= successes <= total, but {successes} of {tasks} came at {at.isoformat()}")
    rules = _rules_for([at for at, _, _ in rows])
    settings = Settings(Metric("rate", (-1, 1)), rules)
    track = [Interval(start=at, counts=Counts(tasks=tasks, successes=k)) for at, k, tasks in rows]
    state, found = Series(), list[SeriesAlarm]()
    normal: Baseline | None = None
    fitted: object = None
    for interval in track:
        at, open_since = interval.start, state.alarm.anomaly.onset if state.alarm else None
        if open_since and (at - open_since).total_seconds() > rules.baseline_s + rules.guard_s:
            state, open_since = Series(episodes=((track[0].start, open_since),)), None
        key = at.replace(minute=0, second=0, microsecond=0), state.episodes
        if not open_since and fitted != key:
            normal, fitted = baseline(at, track, rules, state.episodes), key
        state = step("", state, at, {"": (interval.counts, normal)}, settings)
        if not open_since and (alarm := state.alarm) is not None:
            anomaly, direction = alarm.anomaly, Direction.DOWN if alarm.cause < 0 else Direction.UP
            size = (anomaly.observed.rate or 0.0) - ((anomaly.baseline and anomaly.baseline.rate) or 0.0)
            found.append(SeriesAlarm(at, anomaly.onset, direction, size, anomaly.reason))
    return found


class _Usual(NamedTuple):
    """What is normal of a value by hour of the week, its spread, and how each row follows from the one before."""

    levels: list[float]
    spread: float
    memory: float  # correlation with the row before
    noise: float  # spread of what is new in a row, in spreads of the rows
    rows: int

    def at(self, at: datetime) -> float:
        """Between two full hours it is between their levels, or every hour would begin with a jump."""
        hour, part = at.weekday() * 24 + at.hour, (at.minute * 60 + at.second) / 3_600
        return self.levels[hour] * (1 - part) + self.levels[(hour + 1) % HOURS] * part


def _usual(rows: Sequence[tuple[datetime, float]]) -> _Usual | None:
    """Median by hour of the day, by weekday and weekend, by hour of the week: each where it foretells the rows better.

    With m values to a median, the spread about it comes out too small by sqrt((m - 1) / m): finer must win in spite of
    that. None below MINIMUM_ROWS.
    """
    if len(rows) < MINIMUM_ROWS:
        return None
    levels = [median(value for _, value in rows)] * HOURS
    residuals = [value - levels[0] for _, value in rows]
    slots = [(at.weekday() * 24 + at.hour + (at.minute >= 30)) % HOURS for at, _ in rows]
    weeks = (rows[-1][0] - rows[0][0]) / timedelta(weeks=1)
    for a_week, least, pattern in PATTERNS:
        repeats = a_week * weeks
        if weeks < least:
            break
        groups: dict[int, list[float]] = defaultdict(list)
        for slot, residual in zip(slots, residuals, strict=True):
            groups[pattern(slot)].append(residual)
        medians = {b: median(group) for b, group in groups.items()}
        honest = math.sqrt(repeats / (repeats - 1))
        finer = [honest * (r - medians[pattern(slot)]) for slot, r in zip(slots, residuals, strict=True)]
        if _spread(finer) < 0.9 * _spread(residuals):
            levels = [level + medians.get(pattern(hour), 0.0) for hour, level in enumerate(levels)]
            residuals = finer
    spread = max(_spread(residuals), abs(levels[0]) * 1e-3, 1e-12)
    near = [_clipped(r / spread, 3.0) for r in residuals]
    memory = min(0.95, max(0.0, sum(a * b for a, b in pairwise(near)) / (sum(z * z for z in near) or 1.0)))
    new = [(b - memory * a) / spread for a, b in pairwise(residuals)]
    return _Usual(levels, spread, memory, max(_spread(new), math.sqrt(1 - memory**2)), len(rows))


def _clipped(score: float, limit: float = 8.0) -> float:
    return max(-limit, min(limit, score))


def _spread(residuals: Sequence[float]) -> float:
    """1.4826 MAD is the standard deviation of normal noise; the 99.5% point guards against tails heavier than that."""
    sizes = sorted(abs(r) for r in residuals)
    return max(1.4826 * median(sizes), sizes[int(0.995 * (len(sizes) - 1))] / 2.81)


def detect_values(rows: Iterable[tuple[datetime, float]]) -> list[SeriesAlarm]:
    """Episodes in rows of (timestamp, value), oldest first; a value that is NaN or infinite is no data.

    The baseline is the four weeks before the guard gap (60 rows where they are longer), without past episodes.
    """
    rows = list(rows)
    rules = _rules_for([at for at, _ in rows])
    rows = [(at, value) for at, value in rows if math.isfinite(value)]
    guard, healthy, found = timedelta(seconds=rules.guard_s), list[tuple[datetime, float]](), list[SeriesAlarm]()
    # Four weeks of daily rows are fewer than a baseline takes.
    reach = max(FOUR_WEEKS, timedelta(seconds=2 * MINIMUM_ROWS * rules.interval_s))
    refit = timedelta(seconds=min(86_400, max(rules.guard_s, 10 * rules.interval_s)))
    # 0.2 is the peak of the crossings in `detection.threshold`.
    limit = max(math.log(WEEK_S / rules.interval_s * 0.2 * len(WATCHED) / BUDGET), CLOSING)
    sums, onsets, last = [0.0] * len(WATCHED), [0] * len(WATCHED), 0.0
    usual, fitted = None, list[datetime]()
    episode: tuple[int, float, float] | None = None  # where it began, its size in what is new, evidence of recovery
    for i, (at, value) in enumerate(rows):
        if episode and at - rows[episode[0]][0] > guard + timedelta(seconds=rules.baseline_s):
            healthy, episode, usual = rows[episode[0] : i], None, None
        if not episode:
            if usual is None or at - fitted[-1] >= refit:
                first, end = (bisect_left(healthy, t, key=itemgetter(0)) for t in (at - guard - reach, at - guard))
                usual, fitted = _usual(healthy[first:end]), [at]
            healthy.append((at, value))
        if usual is None:
            continue
        score = _clipped((value - usual.at(at)) / usual.spread)
        new, last = _clipped((score - usual.memory * last) / usual.noise), score
        if episode:
            onset, size, recovery = episode
            recovery = max(0.0, recovery - size * new + size * size / 2)
            episode = (onset, size, recovery) if recovery < CLOSING else None
            usual = usual if episode else None
            continue
        error = 1.9 / math.sqrt(usual.rows)  # one and a half standard errors of a median
        for c, shift in enumerate(WATCHED):
            onsets[c] = onsets[c] if sums[c] else i
            sums[c] = max(0.0, sums[c] + shift * new - abs(shift) * error - shift * shift / 2)
        c = max(range(len(WATCHED)), key=sums.__getitem__)
        if sums[c] < limit:
            continue
        new_rows, direction = rows[onsets[c] : i + 1], Direction.UP if WATCHED[c] > 0 else Direction.DOWN
        observed, expected = fmean(v for _, v in new_rows), fmean(usual.at(t) for t, _ in new_rows)
        change = (observed - expected) / usual.spread
        reason = (
            f"mean {observed:.4g} over {len(new_rows)} rows, against {expected:.4g} usual at that time of the week "
            f"({change:+.1f} spreads); log likelihood ratio {sums[c]:.1f}, alarm at {limit:.1f}"
        )
        found.append(SeriesAlarm(at, new_rows[0][0], direction, observed - expected, reason))
        # A lasting shift shows in what is new as this much of itself.
        lasting = min(3.0, max(1.0, abs(change))) * (1 - usual.memory) / usual.noise
        episode, sums = (onsets[c], math.copysign(lasting, WATCHED[c]), 0.0), [0.0] * len(WATCHED)
        del healthy[-len(new_rows) :]
    return found


def _rules_for(times: Sequence[datetime]) -> ObservatoryRules:
    """The width of a row is the median step; a short file gets a guard gap of an eighth of itself.

    Raises ValueError where the timestamps do not ascend.
    """
    for last, at in pairwise(times):
        if (last.tzinfo is None) != (at.tzinfo is None) or at <= last:
            came = f"{at.isoformat()} came after {last.isoformat()}"
            raise ValueError(f"expected ascending timestamps, all with or all without an offset, but {came}")
    width_s = max(1, round(median((b - a).total_seconds() for a, b in pairwise(times)))) if times[1:] else 3_600
    span_s = (times[-1] - times[0]).total_seconds() if times else 0.0
    return ObservatoryRules(interval_s=width_s, guard_s=int(min(86_400, span_s / 8)))
