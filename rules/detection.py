"""When a platform has left its own normal: decides which departures are anomalies, and when they are over.

Rates with denominators are judged as such, never as bare numbers: at four tasks an hour a z score of the hourly rate
cries wolf eight times a week. Each task type runs likelihood-ratio CUSUMs (Page 1954) of its counts against its own
hour-of-week baseline; the platform runs them on the product of its types' likelihoods, so that a change of the mix is
no evidence. Beside them stand the absolute floor of the article (success under 70%), which needs no baseline, and
silence. The state is a message carried in the snapshot, so any hour can be recomputed.

Must never: read a clock, take missing tasks for good news, or report one cause twice.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from pydantic import Field

from rules.baseline import HOURS, PRIOR_TASKS, START, WEEK_S, Baseline, Span, baseline, dispersion, rate_at, total
from schema.messages.base import Instant, Message
from schema.messages.observatory import Anomaly, Counts, Interval
from schema.messages.platform import ObservatoryRules

BUDGET = 0.15  # false alarms a week, shared by all series of a platform
SLIGHT, CLEAR, OUTAGE = 0.05, 0.10, 1.0  # departures to watch for; `departed` cuts the last to an outage
# What each may spend of the budget. Together more than all of it: they see the same tasks, so that what alarms one has
# mostly alarmed another, and the clear ones spend little of theirs (benchmarks.detection counts them together).
DROPS = {SLIGHT: 0.9, CLEAR: 0.2, OUTAGE: 0.1}
KNOWN_S = 3 * 86_400  # a baseline of less takes the shape of a day for a slight departure
FLOOR = 0.0  # the key of the CUSUM that watches the absolute floor, beside those of the departures
FITTED = 2  # times p (1 - p) / n is the baseline's variance: 1 in sums of whole days, 3 (mean, sine, cosine) in an hour
DEMAND = 0.45  # the share of this week in two weeks' tasks that is still usual: a fifth fewer is demand, not a fault
CLOSING = math.log(100)  # an alarm closes at odds of 100 to 1 for health: hysteresis against its own threshold
CULPRIT = 0.75  # the share of the platform's evidence with which one type explains it
PLATFORM = "platform"


class Metric(NamedTuple):
    """What a series counts and which ways are bad. The metric with the floor also reports silence.

    What is `clustered` comes in bursts: its chance is what the baseline's days show, never less than the binomial's.
    A `volume` has no denominator: its tasks are judged as a share of its own and those of the same hour a week ago.
    """

    name: str
    signs: tuple[int, ...]
    floor: bool = False
    clustered: bool = False
    volume: bool = False


SUCCESS_RATE = Metric("success_rate", (-1,), floor=True)
SLOW_SHARE = Metric("slow_share", (1,))  # its "successes" are the tasks slower than the baseline's p95
METRICS = (  # the first to alarm on a task type explains the later ones
    SUCCESS_RATE,
    SLOW_SHARE,
    Metric("duration_share", (1,)),  # slower than the baseline's median: what becomes of mean completion time
    Metric("low_quality_share", (1,)),  # of the rated tasks, under the baseline's lower quartile
    Metric("dear_share", (1,)),  # dearer than the baseline's p95
    Metric("market_fill_rate", (-1,), clustered=True),  # awarded of opened
    Metric("active_agents", (-1,), clustered=True),  # those that did something, of those registered
    # More tasks are demand; what that harms has a metric of its own.
    Metric("throughput", (-1,), volume=True),
)


class Settings(NamedTuple):
    """What one step needs to know beside the numbers. `series_count` is how many series share the budget."""

    metric: Metric
    rules: ObservatoryRules
    series_count: int = 1


Cells = Mapping[str, tuple[Counts, Baseline | None]]  # one interval of a series: its task type, or a platform's types


class Evidence(Message):
    """One CUSUM since its last zero: a log likelihood ratio, or the successes that lack to the floor."""

    score: float = 0.0
    since: Instant | None = None
    counts: Counts = Counts()


class Alarm(Message):
    """One episode. `cause` is the CUSUM that raised it; `healthy` the rates to come back to, frozen, by task type."""

    anomaly: Anomaly
    cause: float = FLOOR
    healthy: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    recovery: dict[str, float] = Field(default_factory=dict)
    dispersion: float = 1.0


class Series(Message):
    """Where one series stands after `seen`, the start of the last interval that was judged.

    `tasks` are all that were ever judged; `episodes` are past ones, kept out of the baseline.
    """

    seen: Instant | None = None
    tasks: int = 0
    cusums: dict[float, Evidence] = Field(default_factory=dict)
    alarm: Alarm | None = None
    episodes: tuple[Span, ...] = ()


ZERO, NEW = Evidence(), Series()  # frozen: made once


class Detection(NamedTuple):
    """One look: the states to carry in the snapshot by subject, what to raise, and which anomalies are over."""

    states: dict[str, Series]
    raised: tuple[Anomaly, ...] = ()
    closed: tuple[str, ...] = ()


def log_ratio(tasks: float, successes: float, null: float, alternative: float) -> float:
    """Log likelihood ratio of `alternative` to `null` for binomial counts."""
    failures = tasks - successes
    return successes * math.log(alternative / null) + failures * math.log((1 - alternative) / (1 - null))


def departed(rate: float, delta: float) -> float:
    """The rate `delta` away, never beyond half-way to the end of the scale: a rate has no room for more."""
    return max(rate + delta, rate / 2) if delta < 0 else min(rate + delta, (1 + rate) / 2)


def threshold(information: float, settings: Settings, spend: float = 1.0) -> float:
    """How much evidence an alarm takes, from what it may spend of the budget and the information in one interval.

    A CUSUM at threshold h crosses by chance about I nu(sqrt(2 I))^2 exp(-h) times an interval, nu(x) about exp(-.583 x)
    (Siegmund 1985, (10.17)). The product peaks at I = 1.47; volume varies by the hour, so it is never taken to fall.
    """
    information = min(information, 1.47)
    crossings = WEEK_S / settings.rules.interval_s * information * math.exp(-1.166 * math.sqrt(2 * information))
    return max(math.log(crossings * settings.series_count * len(settings.metric.signs) / (BUDGET * spend)), CLOSING)


def binomial_tail(successes: int, tasks: int, rate: float) -> float:
    """Exact P(X <= successes) for X ~ Binomial(tasks, rate): summed from the largest term of the lower tail."""
    if successes >= tasks * rate:
        return 1.0  # not a tail: the callers only ask about shortfalls
    ways = math.lgamma(tasks + 1) - math.lgamma(successes + 1) - math.lgamma(tasks - successes + 1)
    term = math.exp(ways + successes * math.log(rate) + (tasks - successes) * math.log1p(-rate))
    chance, k = 0.0, successes
    while term > chance * 1e-15:
        chance += term
        term *= k * (1 - rate) / ((tasks - k + 1) * rate)
        k -= 1
    return chance


def step(name: str, state: Series, start: datetime, cells: Cells, settings: Settings) -> Series:
    """Judge one interval of a series: `alarm` before and after tells whether one was raised or is over.

    An interval without tasks changes nothing: it is no evidence of health. Of several CUSUMs that are over their
    thresholds, the furthest raises.
    """
    tasks = sum(counts.tasks for counts, _ in cells.values())
    before, state = state.cusums, state.model_copy(update={"seen": start, "tasks": state.tasks + tasks})
    if not tasks:
        return state
    if state.alarm is not None:
        return _recover(state, state.alarm, start, cells, settings)
    evidence, over = dict[float, Evidence](), list[tuple[float, float]]()

    def add(key: float, gain: float, counts: Iterable[Counts]) -> Evidence:
        old = before.get(key, ZERO)
        if old.score + gain <= 0:
            return ZERO
        evidence[key] = Evidence(score=old.score + gain, since=old.since or start, counts=total([old.counts, *counts]))
        return evidence[key]

    everyone = [(counts, normal) for counts, normal in cells.values() if normal is not None]
    grown = KNOWN_S / settings.rules.interval_s
    settled = [(c, normal) for c, normal in everyone if normal.counts.tasks >= normal.tasks_per_interval * grown]
    for delta, spend in ((sign * drop, share) for sign in settings.metric.signs for drop, share in DROPS.items()):
        known = settled if abs(delta) == SLIGHT else everyone
        if not known:
            if delta in before:
                evidence[delta] = before[delta]
            continue
        learnt_from = sum(normal.counts.tasks for _, normal in known)
        gain = information = 0.0
        for _, normal in known:
            rate = rate_at(normal.rates, start)
            away = departed(rate, delta)
            most = 2 * normal.tasks_per_interval  # most of the evidence comes in the busy hours
            information += log_ratio(most, most * away, rate, away) / normal.dispersion
        limit = threshold(information, settings, spend)
        for counts, normal in known:
            rate = rate_at(normal.rates, start)
            # The baseline is estimated. An error e thins the tail to exp(-h (1 - 2 e / delta)); on average over e of
            # variance v that is exp(2 h^2 v / delta^2) times too many alarms, and moving both rates by h v / delta
            # undoes exactly that, at the least delay.
            variance = FITTED * normal.dispersion * rate * (1 - rate) / learnt_from
            error = limit * variance / abs(departed(rate, delta) - rate)
            null = departed(rate, math.copysign(error, delta))
            gain += log_ratio(counts.tasks, counts.successes, null, departed(null, delta)) / normal.dispersion
        if (excess := add(delta, gain, (counts for counts, _ in known)).score - limit) >= 0:
            over.append((excess, delta))
    if settings.metric.floor:
        floor, window = settings.rules.success_floor, settings.rules.floor_window_tasks
        counts = total(counts for counts, _ in cells.values())
        low = add(FLOOR, floor * counts.tasks - counts.successes, [counts]).counts
        # Every window of tasks that was ever judged could have been low by chance: they share the budget.
        level = BUDGET / (settings.series_count * max(1, state.tasks // window))
        if not over and low.tasks >= window and binomial_tail(low.successes, low.tasks, floor) <= level:
            over.append((0.0, FLOOR))
    state = state.model_copy(update={"cusums": evidence})
    return _alarmed(name, state, max(over)[1], start, cells, settings) if over else state


def _alarmed(name: str, state: Series, cause: float, start: datetime, cells: Cells, settings: Settings) -> Series:
    """The series with the alarm that one of its CUSUMs raises."""
    found, floor = state.cusums[cause], settings.rules.success_floor
    known = {one: normal for one, (_, normal) in cells.items() if normal is not None}
    usual = total(normal.counts for normal in known.values()) if known else None
    if cause == FLOOR:
        # Over once the rate is credibly above the floor: half-way between the two is the turning point.
        healthy: dict[str, tuple[float, ...]] = {one: (departed(floor, SLIGHT),) for one in cells}
        why = f"{found.score:.0f} short of the floor of {floor:.0%}, beyond chance"
    else:
        healthy = {one: normal.rates for one, normal in known.items()}
        why = f"against {usual.rate if usual else 0:.1%} in the baseline; log likelihood ratio {found.score:.1f}"
    counts = found.counts
    seen = f"{counts.rate or 0:.1%} ({counts.successes} of {counts.tasks})"
    if settings.metric.volume:
        seen = f"{counts.successes} tasks"
        why = f"where {counts.tasks - counts.successes} were usual; log likelihood ratio {found.score:.1f}"
    reason = f"{settings.metric.name} {seen} since onset, {why}"
    end = start + timedelta(seconds=settings.rules.interval_s)
    anomaly = _anomaly(settings.metric.name, name, start, end, found, usual, reason)
    dispersion = max((normal.dispersion for normal in known.values()), default=1.0)
    return state.model_copy(
        update={"alarm": Alarm(anomaly=anomaly, cause=cause, healthy=healthy, dispersion=dispersion)}
    )


def _anomaly(
    metric: str, name: str, raised: datetime, at: datetime, found: Evidence, usual: Counts | None, why: str
) -> Anomaly:
    return Anomaly(
        anomaly_id=f"{metric}:{name or PLATFORM}#{raised:%Y-%m-%dT%H:%M:%SZ}",
        metric=metric,
        task_type=name if name != PLATFORM else "",
        onset=found.since or raised,
        detected_at=at,
        observed=found.counts,
        baseline=usual,
        reason=why,
    )


def _recover(state: Series, alarm: Alarm, start: datetime, cells: Cells, settings: Settings) -> Series:
    """Close the alarm when health is likelier than the departure, by enough.

    The departure is half of the one seen when it was raised, between the slight and the clear one: chance helped
    to raise it, and what is likelier than too large a departure need not be health. No type says more than that it is
    well, or half as much that it is not: once most of a platform is well again, the rest is no longer its alarm.
    """
    usual, delta = alarm.anomaly.baseline, -SLIGHT
    if alarm.cause != FLOOR and usual is not None:
        seen = abs((alarm.anomaly.observed.rate or 0.0) - (usual.rate or 0.0))
        delta = math.copysign(min(max(SLIGHT, seen / 2), CLEAR), alarm.cause)
    recovery = dict(alarm.recovery)
    for name in alarm.healthy.keys() & cells.keys():
        counts, rate = cells[name][0], rate_at(alarm.healthy[name], start)
        gain = log_ratio(counts.tasks, counts.successes, departed(rate, delta), rate) / alarm.dispersion
        recovery[name] = min(CLOSING, max(-CLOSING / 2, recovery.get(name, 0.0) + gain))
    gone = alarm.healthy and alarm.healthy.keys().isdisjoint(cells)  # nothing is left that could come back
    if sum(recovery.values()) < CLOSING and not gone:
        return state.model_copy(update={"alarm": alarm.model_copy(update={"recovery": recovery})})
    oldest = start - timedelta(seconds=settings.rules.baseline_s + settings.rules.guard_s)
    episodes = (*(e for e in state.episodes if e[1] > oldest), (alarm.anomaly.onset, start))
    return state.model_copy(update={"alarm": None, "cusums": {}, "episodes": episodes})


def detect(
    at: datetime,
    history: Mapping[str, Sequence[Interval]],
    states: Mapping[str, Series],
    rules: ObservatoryRules,
    metric: Metric = SUCCESS_RATE,
    series_count: int | None = None,
    excluded: Mapping[str, Sequence[Span]] | None = None,
) -> Detection:
    """Judge every complete interval up to `at` that no earlier look has judged, oldest first.

    `history` holds the intervals of each task type, oldest first; empty ones may be missing. `states` and the result's
    are keyed like `Anomaly.subject`. `excluded` are spans to keep out of a type's baseline: its experiments, and all
    that came before its last promotion. The first look judges the guard gap.
    """
    settings = Settings(metric, rules, series_count or len(history) + 1)
    width, recent = timedelta(seconds=rules.interval_s), timedelta(seconds=max(rules.guard_s, rules.floor_window_s))
    reach = timedelta(seconds=rules.baseline_s) + recent
    mine = [s.seen for subject, s in states.items() if s.seen and subject.startswith(f"{metric.name}:")]
    # After a pause longer than a baseline, what lies before it is history: the cost never grows with the pause.
    seen = max(max(mine, default=at - recent), at - reach)
    tracks = {
        name: [i for i in intervals[bisect_left(intervals, seen - reach, key=START) :] if i.start + width <= at]
        for name, intervals in history.items()
    }
    look = _Look(at, settings, tracks, dict(states), excluded or {})
    for start in sorted({i.start for track in tracks.values() for i in track if i.start > seen}):
        look.judge(start)
    if metric.floor:
        whole = len(tracks) > 1 and look.silent("", list(tracks))
        for name in tracks:
            if not whole or look.state(name, "no_data").alarm is not None:
                look.silent(name, [name])
    return Detection(look.states, tuple(look.raised), tuple(look.closed))


def detect_all(
    at: datetime,
    histories: Mapping[str, Mapping[str, Sequence[Interval]]],
    states: Mapping[str, Series],
    rules: ObservatoryRules,
    excluded: Mapping[str, Sequence[Span]] | None = None,
) -> Detection:
    """`detect` for every metric that has a history, by its name; all series of all metrics share the budget.

    What has no task types has one series, named "platform". One cause is one anomaly: while silence or an earlier
    metric has an open alarm on a task type, or on all of them, a later one raises none there, and does not take what
    it sees meanwhile for normal. What is still wrong afterwards is raised then.
    """
    if unknown := histories.keys() - {metric.name for metric in METRICS}:
        raise ValueError(f"expected histories of declared metrics, but {', '.join(sorted(unknown))} came")
    series_count = sum(len(history) + (len(history) > 1) for history in histories.values())
    states, raised, closed = dict(states), list[Anomaly](), list[str]()
    # Of each task type, and under the empty name of all: spans of the earlier metrics' alarms, those still open last.
    past, still = dict[str, tuple[Span, ...]](), set[str]()
    for metric in METRICS:
        history = histories.get(metric.name, {})
        by_type = history.keys() - {PLATFORM}
        spans = {name: (*(excluded or {}).get(name, ()), *past.get(name, ()), *past.get("", ())) for name in by_type}
        found = detect(at, history, states, rules, metric, series_count, spans)
        states = found.states
        hushed = set[str]()
        for anomaly in found.raised:
            if by_type and (anomaly.task_type in still or "" in still):
                hushed.add(anomaly.anomaly_id)
                states[anomaly.subject] = states[anomaly.subject].model_copy(update={"alarm": None, "cusums": {}})
        raised += [anomaly for anomaly in found.raised if anomaly.anomaly_id not in hushed]
        closed += [anomaly_id for anomaly_id in found.closed if anomaly_id not in hushed]
        for name in (*by_type, ""):
            for state in (states.get(f"{one}:{name or PLATFORM}", NEW) for one in (metric.name, "no_data")):
                since = state.alarm.anomaly.onset if state.alarm is not None else None
                still |= {name} if since and by_type else set()
                past[name] = (*past.get(name, ()), *state.episodes, *([(since, at)] if since else []))
    return Detection(states, tuple(raised), tuple(closed))


@dataclass
class _Look:
    """One look over all task types and, where there are several, the platform, whose name is empty."""

    at: datetime
    settings: Settings
    tracks: dict[str, list[Interval]]
    states: dict[str, Series]
    excluded: Mapping[str, Sequence[Span]]
    raised: list[Anomaly] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    normals: dict[str, tuple[object, Baseline | None]] = field(default_factory=dict)

    def state(self, name: str, metric: str = "") -> Series:
        return self.states.get(f"{metric or self.settings.metric.name}:{name or PLATFORM}", NEW)

    def put(self, name: str, after: Series, metric: str = "") -> None:
        """Keep a state: an alarm that is new in it is raised, one that is gone from it is over."""
        before = self.state(name, metric).alarm
        self.states[f"{metric or self.settings.metric.name}:{name or PLATFORM}"] = after
        if before is not None and after.alarm is None:
            self.closed.append(before.anomaly.anomaly_id)
        if before is None and after.alarm is not None:
            self.raised.append(after.alarm.anomaly)

    def renewed_at(self, start: datetime) -> datetime:
        """When what is normal at `start` was last learnt: every 168th of a baseline, each hour of a week's."""
        every_s = self.settings.rules.baseline_s / HOURS
        return datetime.fromtimestamp(start.timestamp() // every_s * every_s, start.tzinfo)

    def normal(self, name: str, start: datetime) -> Baseline | None:
        """The baseline of a task type, renewed with time, without its past anomalies and those of the platform."""
        spans = (*self.excluded.get(name, ()), *self.state(name).episodes, *self.state("").episodes)
        key = self.renewed_at(start), spans
        if name not in self.normals or self.normals[name][0] != key:
            metric, rules = self.settings.metric, self.settings.rules
            self.normals[name] = key, baseline(key[0], self.tracks[name], rules, spans, metric.clustered)
        return self.normals[name][1]

    def tasks(self, names: Iterable[str], first: datetime, end: datetime) -> int:
        """The tasks of some types in the intervals that start in [first, end)."""
        tracks = (self.tracks[name] for name in names)
        return sum(
            interval.counts.tasks
            for track in tracks
            for interval in track[bisect_left(track, first, key=START) : bisect_left(track, end, key=START)]
        )

    def volume(self, names: Sequence[str], start: datetime) -> tuple[Counts, Baseline | None]:
        """An interval's tasks, taken together, as a share of them and the usual ones.

        Of two Poisson counts, given their sum, each is binomial (Przyborowski & Wilenski 1940). Usual is the same
        interval a week ago, but no more than the median of that time of day: a week after a flood is no drought.
        Where a baseline is shorter than a week, nobody has read that week: nothing is usual, and nothing alarms.
        """
        rules, day = self.settings.rules, timedelta(days=1)
        width = timedelta(seconds=rules.interval_s)
        now, *before = (self.tasks(names, start - lag * day, start - lag * day + width) for lag in range(8))
        usual = min(before[6], sorted(before)[3])
        key = start.replace(minute=0, second=0, microsecond=0), tuple(names)
        if (slot := f"volume of {names}") not in self.normals or self.normals[slot][0] != key:
            first, hour = key[0] - timedelta(seconds=rules.guard_s) - 7 * day, timedelta(hours=1)
            hours = [self.tasks(names, first + h * hour, first + (h + 1) * hour) for h in range(HOURS)]
            # Five working days and two of the weekend, each with its own shape of the day.
            kinds = [(h % 24, (first + h * hour).weekday() >= 5) for h in range(HOURS)]
            means = {kind: fmean(n for k, n in zip(kinds, hours, strict=True) if k == kind) for kind in set(kinds)}
            parts = ((h // 24, hours[h] - means[kind], means[kind]) for h, kind in enumerate(kinds))
            spread = dispersion(parts, patterns=2)
            both = Counts(tasks=2 * sum(hours), successes=sum(hours))
            known = Baseline(both, (DEMAND,), both.tasks * rules.interval_s / WEEK_S, spread)
            self.normals[slot] = key, known if both.tasks >= 2 * PRIOR_TASKS else None
        return Counts(tasks=now + usual, successes=now), self.normals[slot][1]

    def together(self, names: Sequence[str], cells: Cells, start: datetime) -> Cells:
        """What the platform is judged by: its types side by side, or their volume in all, for types fall as one."""
        return {"": self.volume(names, start)} if self.settings.metric.volume else {name: cells[name] for name in names}

    def judge(self, start: datetime) -> None:
        """Judge one interval: each type by itself, and the platform by the types without an alarm of their own."""
        platform, cells = self.state(""), dict[str, tuple[Counts, Baseline | None]]()
        # Of a type without an alarm nothing is said before the platform's is over.
        free = [name for name in self.tracks if platform.alarm is None and self.state(name).alarm is None]
        for name, track in self.tracks.items():
            if self.settings.metric.volume:
                cells[name] = self.volume([name], start)
                continue
            i = bisect_left(track, start, key=START)
            counts = track[i].counts if i < len(track) and track[i].start == start else Counts()
            cells[name] = counts, self.normal(name, start) if name in free else None
        after = {
            name: step(name, self.state(name), start, {name: cell}, self.settings)
            for name, cell in cells.items()
            if name in free or self.state(name).alarm is not None
        }
        if platform.alarm is not None:
            after[""] = step("", platform, start, self.together(list(self.tracks), cells, start), self.settings)
        elif len(cells) > 1:
            whole = step("", platform, start, self.together(free, cells, start), self.settings)
            if whole.alarm is not None:
                found = whole.cusums[cause := whole.alarm.cause].score
                if max(after[name].cusums.get(cause, ZERO).score for name in free) >= CULPRIT * found:
                    # One type explains it, and is raised as soon as its own evidence is enough.
                    whole = whole.model_copy(update={"alarm": None})
            if whole.alarm is not None:
                after |= {name: after[name].model_copy(update={"alarm": None, "cusums": {}}) for name in free}
            elif any(after[name].alarm for name in free):
                # What a type explains must not be raised for the platform a little later.
                whole = whole.model_copy(update={"cusums": {}})
            after[""] = whole
        for name, state in after.items():
            self.put(name, state)

    def silent(self, name: str, types: Sequence[str]) -> bool:
        """Raise or close the silence of some types, taken together; tell whether it is an open alarm.

        It takes a silence longer than any before, with so many tasks in the same stretch a week ago (or a day, on a
        young platform) that it is beyond chance: at the same volume, all n tasks fall in the earlier one by 2^-n.
        Where less than a day is read, as at trial pace, there is nothing to compare with, and no silence is raised.
        """
        width = timedelta(seconds=self.settings.rules.interval_s)
        busy = sorted((i for one in types for i in self.tracks[one] if i.counts.tasks), key=START)
        alarm = self.state(name, "no_data").alarm
        if alarm is not None and busy and busy[-1].start >= alarm.anomaly.onset:
            self.put(name, Series(), "no_data")
            alarm = None
        if alarm is not None or not busy or (since := busy[-1].start + width) >= self.at:
            return alarm is not None
        lag = timedelta(days=7 if since - busy[0].start >= timedelta(days=7) else 1)
        usual = total(i.counts for i in busy if since <= i.start + lag < self.at)
        longest = max((b.start - a.start for a, b in pairwise(busy)), default=width) - width
        rare = math.log2(WEEK_S / width.total_seconds() * self.settings.series_count / BUDGET)
        if usual.tasks < rare or self.at - since <= longest:
            return False
        silence_h, before_h = (gap.total_seconds() / 3_600 for gap in (self.at - since, longest))
        usually = f"{usual.tasks} came {'a week' if lag.days == 7 else 'a day'} earlier"
        why = f"no task for {silence_h:.3g} h, where {usually}; the longest gap before took {before_h:.3g} h"
        anomaly = _anomaly("no_data", name, self.at, self.at, Evidence(since=since), usual, why)
        self.put(name, Series(alarm=Alarm(anomaly=anomaly)), "no_data")
        return True
