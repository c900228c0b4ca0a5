"""Episodes in a plain file of a user's own history: what `nautilus detect --file` reports.

Rates are judged by the platform's own CUSUMs, both ways. Values without a denominator are judged by Gaussian CUSUMs
(Page 1954) of their ranks among the usual ones at that time of the week: a rank has the same chances whatever the
values look like, so skew and heavy tails raise no false alarms. No person closes the alarms of a file: a level that
settles, and outlasts the baseline's window, becomes the new normal.
"""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from operator import itemgetter
from statistics import NormalDist, fmean, median
from typing import NamedTuple, TypeVar

from rules.baseline import HOURS, WEEK_S, Baseline, baseline
from rules.series import BUDGET, CLOSING, SLIGHT, Alarm, DetectorSettings, Metric, Series, step
from schema.messages.observatory import Counts, Interval
from schema.messages.platform import ObservatoryRules

MINIMUM_ROWS, MOST_ROWS, FOUR_WEEKS = 30, 10_000, timedelta(weeks=4)  # of what is normal; the most is a week of minutes
SATURDAY = 120  # the hour of the week at which it begins
# How often a week an hour of the pattern recurs, how many weeks it takes to learn it, and its name by hour of the week.
PATTERNS: tuple[tuple[int, float, Sequence[tuple[bool, int]]], ...] = (
    (7, 0.9, [(False, hour % 24) for hour in range(HOURS)]),
    (2, 0.9, [(hour >= SATURDAY, hour % 24) for hour in range(HOURS)]),
    (1, 3.5, [(False, hour) for hour in range(HOURS)]),
)
FINER_SHARE = 0.9  # a finer pattern is believed where it leaves less than this share of the distances
WATCHED = (-3.0, -1.0, 1.0, 3.0)  # shifts to watch for, in standard deviations of a normal rank
BUDGET_SHARE = 0.3  # what is spent of the budget: a file's normal is estimated from less than a platform's
NORMAL = NormalDist()
AT = itemgetter(0)
Row = TypeVar("Row", tuple[datetime, float], tuple[datetime, int, int])
Watch = Callable[[Sequence[Row]], Iterable[Row]]  # shows how far the judging is


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


class Judged(NamedTuple):
    """The alarms in `rows` that hold data, of which `judged` could be judged.

    The others precede enough of what is normal. Nothing judged is not the same as no alarm.
    """

    alarms: list[SeriesAlarm]
    rows: int = 0
    judged: int = 0


def detect_rates(rows: Iterable[tuple[datetime, int, int]], watch: Watch[tuple[datetime, int, int]] = iter) -> Judged:
    """Episodes in rows of (timestamp, successes, total). A row with total 0 is no data."""
    rows = _in_order(rows)
    with_data = [at for at, _, tasks in rows if tasks > 0]
    if not with_data:
        return Judged([])
    detector = _RateDetector(rows)
    for i, _ in enumerate(watch(rows)):
        detector.step(i)
    return Judged(detector.alarms, len(with_data), detector.judged)


class _RateDetector:
    """The platform's CUSUMs of a rate, both ways; its baseline is learnt anew every `refit`, but in no episode."""

    def __init__(self, rows: Sequence[tuple[datetime, int, int]]) -> None:
        rules = _rules_for([at for at, _, _ in rows])
        self.rows = rows
        self.settings = DetectorSettings(Metric("rate", (-1, 1)), rules)
        self.track = [Interval(start=at, counts=Counts(tasks=tasks, successes=k)) for at, k, tasks in rows]
        self.window = timedelta(seconds=rules.baseline_s + rules.guard_s)
        self.refit = timedelta(hours=6)
        self.first_at = AT(rows[0])
        self.fitted_at = self.first_at
        self.checked_at = self.first_at
        self.state = Series()
        self.normal: Baseline | None = None
        self.alarms: list[SeriesAlarm] = []
        self.judged = 0

    def step(self, i: int) -> None:
        """Judge row `i`, which follows on the last one."""
        at, _, tasks = self.rows[i]
        if self.state.alarm is not None:
            self._settle(self.state.alarm, i)
        before = self.state.alarm
        if before is None:
            self._learn(at)
        if tasks and (before is not None or self.normal is not None):
            self.judged += 1
        self.state = step("", self.state, at, {"": (self.track[i].counts, self.normal)}, settings=self.settings)
        alarm = self.state.alarm
        if before is not None and alarm is None:
            self.normal = None
        if alarm is not None and (before is None or before.anomaly.anomaly_id != alarm.anomaly.anomaly_id):
            self.alarms.append(_rate_alarm(at, alarm))

    def _settle(self, alarm: Alarm, i: int) -> None:
        """A rate that stays where it is becomes the new normal, and the episode is over."""
        at = AT(self.rows[i])
        if at - max(alarm.anomaly.onset, self.checked_at - self.window) <= self.window:
            return
        self.checked_at = at + self.refit
        begin = at - self.window
        if _settled_rate(self.track[bisect_left(self.rows, begin, key=AT) : i]):
            self.state = Series(episodes=((self.first_at, begin),))
            self.normal = None

    def _learn(self, at: datetime) -> None:
        if self.normal is not None and at - self.fitted_at < self.refit:
            return
        self.normal = baseline(at, self.track, self.settings.rules, self.state.episodes)
        self.fitted_at = at


def _rate_alarm(at: datetime, alarm: Alarm) -> SeriesAlarm:
    anomaly = alarm.anomaly
    usual = anomaly.baseline.rate if anomaly.baseline else None
    direction = Direction.DOWN if alarm.cause < 0 else Direction.UP
    size = (anomaly.observed.rate or 0.0) - (usual or 0.0)
    return SeriesAlarm(timestamp=at, onset=anomaly.onset, direction=direction, size=size, reason=anomaly.reason)


class _Usual(NamedTuple):
    """What is normal of a value: its level by hour of the week, and the rows' distances from it, sorted."""

    levels: list[float]
    distances: list[float]
    autocorrelation: float = 0.0  # of a row's rank with that of the row before

    def level(self, at: datetime) -> float:
        """Between two full hours it is between their levels, or every hour would begin with a jump."""
        hour, part = at.weekday() * 24 + at.hour, (at.minute * 60 + at.second) / 3_600
        return self.levels[hour] * (1 - part) + self.levels[(hour + 1) % HOURS] * part

    def score(self, distance: float) -> float:
        """The distance's rank among the usual ones, as the normal variable of that rank (van der Waerden 1952)."""
        rows = len(self.distances)
        rank = (bisect_left(self.distances, distance) + bisect_right(self.distances, distance)) / 2
        return NORMAL.inv_cdf(min(max(rank, 0.5), rows - 0.5) / rows)

    def innovation(self, score: float, previous: float) -> float:
        """What a row's score adds to the one before; its standard deviation is 1."""
        return (score - self.autocorrelation * previous) / math.sqrt(1 - self.autocorrelation**2)


def _usual(rows: Sequence[tuple[datetime, float]]) -> _Usual | None:
    """The medians by hour of the day, by weekday and weekend, and by hour of the week, where they predict better.

    None below MINIMUM_ROWS.
    """
    if len(rows) < MINIMUM_ROWS:
        return None
    overall = median(value for _, value in rows)
    levels = [overall] * HOURS
    distances = [value - overall for _, value in rows]
    slots = [_nearest_hour(at) for at, _ in rows]
    weeks = (AT(rows[-1]) - AT(rows[0])) / timedelta(weeks=1)
    for per_week, fewest_weeks, pattern in PATTERNS:
        if weeks < fewest_weeks:
            break
        hours = [pattern[slot] for slot in slots]
        medians = _medians(hours, distances)
        # New rows will lie further from it than these: a finer pattern must win in spite of that.
        correction = _correction(repeats=per_week * weeks)
        finer = [correction * (distance - medians[hour]) for hour, distance in zip(hours, distances, strict=True)]
        if fmean(map(abs, finer)) < FINER_SHARE * fmean(map(abs, distances)):
            levels = [level + medians.get(hour, 0.0) for level, hour in zip(levels, pattern, strict=True)]
            distances = finer
    usual = _Usual(levels, sorted(distances))
    scores = [usual.score(distance) for distance in distances]
    return usual._replace(autocorrelation=_autocorrelation(scores))


def _nearest_hour(at: datetime) -> int:
    """The hour of the week that is nearest: levels are those of full hours."""
    nearest = at + timedelta(minutes=30)
    return nearest.weekday() * 24 + nearest.hour


def _medians(hours: Sequence[tuple[bool, int]], distances: Sequence[float]) -> dict[tuple[bool, int], float]:
    """The median distance at each hour of a pattern; `hours` are those of the rows."""
    groups = defaultdict[tuple[bool, int], list[float]](list)
    for hour, distance in zip(hours, distances, strict=True):
        groups[hour].append(distance)
    return {hour: median(group) for hour, group in groups.items()}


def _correction(repeats: float) -> float:
    """The factor by which new rows lie further from a median than the `repeats` rows that it was taken of."""
    return math.sqrt((repeats + 1) / (repeats - 1))


def _autocorrelation(scores: Sequence[float]) -> float:
    """Of each row's score with that of the row before; below 1, or an innovation would be divided by zero."""
    squares = sum(score * score for score in scores)
    products = sum(before * score for before, score in pairwise(scores))
    return min(0.95, max(0.0, products / (squares or 1.0)))


class _Episode(NamedTuple):
    """An alarm that is open: `size` is its lasting shift of the innovations, `recovery` the evidence against it."""

    onset: datetime
    size: float
    recovery: float = 0.0


def detect_values(rows: Iterable[tuple[datetime, float]], watch: Watch[tuple[datetime, float]] = iter) -> Judged:
    """Episodes in rows of (timestamp, value); a value that is NaN or infinite is no data.

    Normal is learnt from the four weeks before the guard gap (60 rows where they are longer), without past episodes. A
    week of them is learnt from before any row is judged, or a quarter of a shorter file: a weekend has its own levels.
    """
    rows = [(at, value) for at, value in _in_order(rows) if math.isfinite(value)]
    if not rows:
        return Judged([])
    detector = _ValueDetector(rows)
    for i, _ in enumerate(watch(rows)):
        detector.step(i)
    return Judged(detector.alarms, len(rows), detector.judged)


class _ValueDetector:
    """CUSUMs of the innovation of each row; an open episode waits for the evidence that it is over."""

    def __init__(self, rows: Sequence[tuple[datetime, float]]) -> None:
        rules = _rules_for([at for at, _ in rows])
        self.rows = rows

        # How far back a baseline reaches, and how often it is learnt anew.
        self.guard = timedelta(seconds=rules.guard_s)
        self.window = timedelta(seconds=rules.baseline_s + rules.guard_s)
        # Four weeks of daily rows are fewer than a baseline takes.
        self.lookback = max(FOUR_WEEKS, timedelta(seconds=2 * MINIMUM_ROWS * rules.interval_s))
        self.refit = timedelta(seconds=min(86_400, max(rules.guard_s, 10 * rules.interval_s)))

        # The evidence that an alarm takes. 0.2 is the peak of the crossings in `series.threshold`.
        crossings = WEEK_S / rules.interval_s * 0.2 * len(WATCHED)
        self.limit = max(math.log(crossings / (BUDGET * BUDGET_SHARE)), CLOSING)

        # Nothing is judged before `begin_at`.
        first_at = AT(rows[0])
        span = AT(rows[-1]) - first_at
        self.begin_at = first_at + min(self.window, span / 4)
        self.fitted_at = first_at
        self.checked_at = first_at

        # One CUSUM for each shift of WATCHED, with the row at which it left zero; then every row's score.
        self.sums = [0.0] * len(WATCHED)
        self.onsets = [0] * len(WATCHED)
        self.scores: list[float] = []

        # The rows outside of episodes, what they show to be usual, the open episode, and what was found.
        self.healthy: list[tuple[datetime, float]] = []
        self.usual: _Usual | None = None
        self.episode: _Episode | None = None
        self.alarms: list[SeriesAlarm] = []
        self.judged = 0

    def step(self, i: int) -> None:
        """Judge row `i`, which follows on the last one."""
        at, value = self.rows[i]
        if self.episode is not None:
            self._settle(self.episode, i)
        if self.episode is None:
            self._learn(at)
            self.healthy.append((at, value))
        self.scores.append(self.usual.score(value - self.usual.level(at)) if self.usual else 0.0)
        if self.usual is None:
            return
        self.judged += 1
        innovation = self.usual.innovation(self.scores[-1], self.scores[-2])
        if self.episode is not None:
            self._recover(self.episode, innovation)
            return
        strongest = self._advance(i, innovation, self.usual)
        if self.sums[strongest] >= self.limit:
            self._raise(i, strongest, self.usual)

    def _settle(self, episode: _Episode, i: int) -> None:
        """A level that stays where it is becomes the new normal, and the episode is over."""
        at = AT(self.rows[i])
        if at - max(episode.onset, self.checked_at - self.window) <= self.window:
            return
        self.checked_at = at + self.refit
        recent = list(self.rows[bisect_left(self.rows, at - self.window, key=AT) : i])
        if _settled([value for _, value in recent]):
            self.healthy, self.episode, self.usual = recent, None, None

    def _learn(self, at: datetime) -> None:
        if at < self.begin_at or (self.usual is not None and at - self.fitted_at < self.refit):
            return
        first = bisect_left(self.healthy, at - self.guard - self.lookback, key=AT)
        end = bisect_left(self.healthy, at - self.guard, key=AT)
        self.usual = _usual(self.healthy[max(first, end - MOST_ROWS) : end])
        self.fitted_at = at

    def _recover(self, episode: _Episode, innovation: float) -> None:
        recovery = max(0.0, episode.recovery - episode.size * innovation + episode.size**2 / 2)
        if recovery < self.limit:
            self.episode = episode._replace(recovery=recovery)
        else:
            self.episode = self.usual = None

    def _advance(self, i: int, innovation: float, usual: _Usual) -> int:
        """Advance every CUSUM by one row; returns the number of the strongest."""
        error = 1.9 / math.sqrt(len(usual.distances))  # one and a half standard errors of a median
        for c, shift in enumerate(WATCHED):
            if not self.sums[c]:
                self.onsets[c] = i
            self.sums[c] = max(0.0, self.sums[c] + shift * innovation - abs(shift) * error - shift * shift / 2)
        return max(range(len(WATCHED)), key=self.sums.__getitem__)

    def _raise(self, i: int, strongest: int, usual: _Usual) -> None:
        """Report the rows since a CUSUM's last zero, and open an episode with them."""
        first = self.onsets[strongest]
        since = self.rows[first : i + 1]
        self.alarms.append(self._alarm(since, strongest, usual))
        # Half of what a lasting shift shows in the innovations: chance helped to raise it, and must not close it.
        score = fmean(self.scores[first:])
        shift = min(1.5, max(0.5, abs(usual.innovation(score, score)) / 2))
        self.episode = _Episode(AT(since[0]), math.copysign(shift, WATCHED[strongest]))
        self.sums = [0.0] * len(WATCHED)
        del self.healthy[-len(since) :]

    def _alarm(self, since: Sequence[tuple[datetime, float]], strongest: int, usual: _Usual) -> SeriesAlarm:
        observed = fmean(value for _, value in since)
        expected = fmean(usual.level(at) for at, _ in since)
        means = f"mean {observed:.4g} over {len(since)} rows, against {expected:.4g} usual at that time of the week"
        evidence = f"log likelihood ratio {self.sums[strongest]:.1f}, alarm at {self.limit:.1f}"
        return SeriesAlarm(
            timestamp=AT(since[-1]),
            onset=AT(since[0]),
            direction=Direction.UP if WATCHED[strongest] > 0 else Direction.DOWN,
            size=observed - expected,
            reason=f"{means}; {evidence}",
        )


def _settled(values: Sequence[float]) -> bool:
    """Whether a level stays where it is: what still moves is the same episode, and no new normal."""
    first, second = values[: len(values) // 2], values[len(values) // 2 :]
    if not first:
        return False
    before, after = median(first), median(second)
    scatter = fmean([abs(value - before) for value in first] + [abs(value - after) for value in second])
    return abs(after - before) <= 0.75 * scatter


def _settled_rate(track: Sequence[Interval]) -> bool:
    """The same of a rate: its halves differ by less than the smallest departure that is watched for, or by chance."""
    half = len(track) // 2
    before = Counts.total(interval.counts for interval in track[:half])
    after = Counts.total(interval.counts for interval in track[half:])
    if before.rate is None or after.rate is None:
        return False
    rate = Counts.total([before, after]).rate or 0.0
    chance = math.sqrt(rate * (1 - rate) * (1 / before.tasks + 1 / after.tasks))
    return abs(after.rate - before.rate) <= max(SLIGHT / 2, 3 * chance)


def _in_order(rows: Iterable[Row]) -> list[Row]:
    """By time. Of rows with one timestamp the last counts: a correction follows what it corrects."""
    by_time = {AT(row): row for row in rows}
    return [by_time[at] for at in sorted(by_time)]


def _rules_for(times: Sequence[datetime]) -> ObservatoryRules:
    """The width of a row is the median step; a short file gets a guard gap of an eighth of itself."""
    steps_s = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    width_s = max(1, round(median(steps_s or [3_600])))
    span_s = (times[-1] - times[0]).total_seconds()
    return ObservatoryRules(interval_s=width_s, guard_s=int(min(86_400, span_s / 8)))
