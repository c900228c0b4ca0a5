"""When a platform has left its own normal: decides which departures are anomalies, and when they are over.

Rates with denominators are judged as such, never as bare numbers: at four tasks an hour a z score of the hourly rate
cries wolf eight times a week. Each series runs likelihood-ratio CUSUMs (Page 1954) of its counts against its own
hour-of-week baseline; the threshold follows from the false-alarm budget that all series of a platform share. Beside
them stands the absolute floor of the article (success under 70%), which needs no baseline, and silence, which is an
anomaly of its own. The state is a message carried in the snapshot, so any hour can be recomputed.

Must never: read a clock, take missing tasks for good news, or report one cause twice.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import accumulate, pairwise
from statistics import median

from schema.messages.base import Instant, Message
from schema.messages.observatory import Anomaly, Counts, Interval
from schema.messages.platform import ObservatoryRules

WEEK_S = 7 * 86_400
HOURS = 168  # in a week
BUDGET = 0.15  # false alarms a week, shared by all series of a platform (issue 5)
DELTAS = (0.05, 0.10)  # drops worth finding; a misfit of the baseline below half the smaller one never accumulates
PRIOR_TASKS = 100  # weight of the coarser level in the finer one, and the fewest tasks that make a baseline
ESTIMATION = 1.5  # standard errors of the baseline that are not held against the series (benchmarks.detection)
VALUES_BASELINE_S = 4 * WEEK_S  # a plain value has no count to weigh it by: an hour of the week needs several
MINIMUM_ROWS = 30
CLIP = 8.0
CLOSING = math.log(100)  # an alarm closes at odds of 100 to 1 for health: hysteresis against its own threshold
TURN = [2 * math.pi * hour / 24 for hour in range(24)]
WAVES = ([1.0] * 24, [math.sin(t) for t in TURN], [math.cos(t) for t in TURN])
PLATFORM = "platform"
Span = tuple[Instant, Instant]


class Direction(StrEnum):
    DOWN = "down"
    UP = "up"
    BOTH = "both"


class Kind(StrEnum):
    """What made the alarm: a departure from the baseline, the absolute floor, or silence."""

    SHIFT = "shift"
    FLOOR = "floor"
    NO_DATA = "no_data"


class Baseline(Message):
    """What is normal: rate and volume by hour of the week (Monday 00:00 UTC first), or one flat entry before a week."""

    counts: Counts
    rates: tuple[float, ...]
    tasks_per_h: tuple[float, ...]
    longest_silence_s: float = 0.0

    def rate_at(self, start: datetime) -> float:
        return self.rates[hour_of_week(start) % len(self.rates)]

    def expected_tasks(self, start: datetime, end: datetime) -> float:
        """Tasks expected between two instants; whole weeks are counted at once, so a long silence costs no more."""
        weeks, rest_s = divmod((end - start).total_seconds(), WEEK_S)
        tasks, at = weeks * HOURS * sum(self.tasks_per_h) / len(self.tasks_per_h), end - timedelta(seconds=rest_s)
        while at < end:
            until = min(end, at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1))
            tasks += self.tasks_per_h[hour_of_week(at) % len(self.tasks_per_h)] * (until - at).total_seconds() / 3_600
            at = until
        return tasks


class Evidence(Message):
    """One CUSUM: log likelihood ratio of a departure against the baseline since its last zero."""

    log_ratio: float = 0.0
    since: Instant | None = None
    counts: Counts = Counts()


class Alarm(Message):
    """One episode. `size` is the change of the rate since the onset; `part_of` names the alarm that explains it."""

    kind: Kind
    raised_at: Instant
    onset: Instant
    direction: Direction
    size: float
    observed: Counts
    baseline: Counts | None
    reason: str
    healthy: float = 1.0
    delta: float = -DELTAS[0]
    recovery: float = 0.0
    standing: bool = False
    part_of: str = ""


class Series(Message):
    """Where one series stands after `seen`, the start of the last interval that was judged.

    `frozen` is the baseline of the open episode (None on day one); `episodes` are past ones, kept out of the baseline.
    """

    seen: Instant | None = None
    evidence: tuple[Evidence, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    frozen: Baseline | None = None
    episodes: tuple[Span, ...] = ()

    def alarm(self, *kinds: Kind) -> Alarm | None:
        return next((alarm for alarm in self.alarms if alarm.kind in kinds), None)


@dataclass(frozen=True)
class Metric:
    """What a series measures and which way is bad. Only a metric with a `floor` is held to it; one reports silence."""

    name: str
    direction: Direction
    floor: bool = False
    reports_silence: bool = False


SUCCESS_RATE = Metric("success_rate", Direction.DOWN, floor=True, reports_silence=True)
SLOW_SHARE = Metric("slow_share", Direction.UP)  # share of tasks slower than the baseline's p95
LOW_QUALITY_SHARE = Metric("low_quality_share", Direction.UP)


@dataclass(frozen=True)
class Settings:
    """What one step needs to know beside the numbers. `series_count` is how many series share the budget."""

    metric: Metric
    rules: ObservatoryRules
    series_count: int = 1
    deltas: tuple[float, ...] = DELTAS


@dataclass(frozen=True)
class Track:
    """Intervals of one series as running totals, so that any window costs one subtraction."""

    starts: list[datetime]
    tasks: list[int]
    successes: list[int]

    @classmethod
    def of(cls, rows: Iterable[tuple[datetime, Counts]]) -> "Track":
        track = cls([], [0], [0])
        for start, counts in rows:
            track.starts.append(start)
            track.tasks.append(track.tasks[-1] + counts.tasks)
            track.successes.append(track.successes[-1] + counts.successes)
        return track

    def between(self, first: int, last: int) -> Counts:
        """Counts of the intervals first to last - 1."""
        return Counts(
            tasks=self.tasks[last] - self.tasks[first], successes=self.successes[last] - self.successes[first]
        )


@dataclass(frozen=True)
class Detection:
    """One look: the states to carry in the snapshot by subject, what to raise, and which anomalies are over."""

    states: dict[str, Series]
    raised: tuple[Anomaly, ...] = ()
    closed: tuple[str, ...] = ()


def hour_of_week(at: datetime) -> int:
    at = at.astimezone(UTC) if at.tzinfo else at
    return at.weekday() * 24 + at.hour


def binomial_tail(successes: int, tasks: int, rate: float) -> float:
    """Exact P(X <= successes) for X ~ Binomial(tasks, rate): summed from the largest term of the lower tail."""
    if successes >= tasks * rate:
        return 1.0  # not a tail: the callers only ask about shortfalls
    term = math.exp(
        math.lgamma(tasks + 1) - math.lgamma(successes + 1) - math.lgamma(tasks - successes + 1)
        + successes * math.log(rate) + (tasks - successes) * math.log1p(-rate)
    )  # fmt: skip
    total, k = 0.0, successes
    while term > total * 1e-15:
        total += term
        term *= k * (1 - rate) / ((tasks - k + 1) * rate)
        k -= 1
    return total


def baseline(at: datetime, track: Track, rules: ObservatoryRules, excluded: Sequence[Span] = ()) -> Baseline | None:
    """The normal of the window before the guard gap, without the excluded spans; None below PRIOR_TASKS tasks.

    Hours of the day are shrunk to the overall rate and hours of the week to those, each with the weight of PRIOR_TASKS:
    an hour of the week alone holds one hour of tasks. With less than a week there are no hours of the week, with less
    than two days no pattern at all.
    """
    end = at - timedelta(seconds=rules.guard_s)
    first = bisect_left(track.starts, end - timedelta(seconds=rules.baseline_s))
    last = bisect_left(track.starts, end - timedelta(seconds=rules.interval_s - 1))
    tasks, successes, busy = [0] * HOURS, [0] * HOURS, []
    for i in range(first, last):
        start = track.starts[i]
        if (count := track.tasks[i + 1] - track.tasks[i]) and not any(since <= start < to for since, to in excluded):
            hour = hour_of_week(start)
            tasks[hour] += count
            successes[hour] += track.successes[i + 1] - track.successes[i]
            busy.append(start)
    counts = Counts(tasks=sum(tasks), successes=sum(successes))
    if counts.tasks < PRIOR_TASKS:
        return None
    span_s = (busy[-1] - busy[0]).total_seconds() + rules.interval_s
    # Jeffreys' half success and half failure: a perfect week must not make one failure impossible.
    rates = [(counts.successes + 0.5) / (counts.tasks + 1)]
    volumes = [counts.tasks * 3_600 / span_s]
    for bins, needed_s in ((24, 2 * 86_400), (HOURS, WEEK_S - 43_200)):
        if span_s < needed_s:
            break
        n = [sum(tasks[b::bins]) for b in range(bins)]
        k = [sum(successes[b::bins]) for b in range(bins)]
        coarse = [rates[b % len(rates)] for b in range(bins)] if bins == HOURS else _daily_wave(n, k, rates[0])
        rates = _shrunk(n, k, coarse)
        volumes = [n[b] * bins * 3_600 / max(span_s, WEEK_S if bins == HOURS else 0) for b in range(bins)]
    silence_s = max(((b - a).total_seconds() for a, b in pairwise(busy)), default=0.0)
    return Baseline(counts=counts, rates=tuple(rates), tasks_per_h=tuple(volumes), longest_silence_s=silence_s)


def _daily_wave(tasks: Sequence[int], successes: Sequence[int], rate: float) -> list[float]:
    """The rate as one sine of the day: ridge regression weighted by tasks, normal equations by Gauss-Seidel."""
    pull = [sum(w * (k - n * rate) for w, n, k in zip(wave, tasks, successes, strict=True)) for wave in WAVES]
    gram = [[sum(n * a * b for n, a, b in zip(tasks, one, other, strict=True)) for other in WAVES] for one in WAVES]
    size = [0.0, 0.0, 0.0]
    for _ in range(12):  # the waves are nearly orthogonal: each round leaves about a tenth of the error
        for i, prior in enumerate((1, PRIOR_TASKS, PRIOR_TASKS)):
            rest = sum(gram[i][j] * size[j] for j in range(3) if j != i)
            size[i] = (pull[i] - rest) / (gram[i][i] + prior)
    fit = [rate + sum(a * w for a, w in zip(size, at, strict=True)) for at in zip(*WAVES, strict=True)]
    return [min(max(f, rate / 2), (1 + rate) / 2) for f in fit]


def _shrunk(tasks: Sequence[int], successes: Sequence[int], coarse: Sequence[float]) -> list[float]:
    """Each hour's own rate, as far as the hours differ from the coarser fit by more than chance (empirical Bayes)."""
    surprise = sum((k - n * p) ** 2 / (n * p * (1 - p)) for n, k, p in zip(tasks, successes, coarse, strict=True) if n)
    hours = sum(1 for n in tasks if n)
    if surprise <= hours + 2 * math.sqrt(2 * hours):
        return list(coarse)
    # E[surprise] = hours + sum(n) / weight, where weight = p (1 - p) / the variance between hours.
    weight = max(PRIOR_TASKS, sum(tasks) / (surprise - hours))
    return [(k + weight * p) / (n + weight) for n, k, p in zip(tasks, successes, coarse, strict=True)]


def log_ratio(counts: Counts, null: float, alternative: float) -> float:
    """Log likelihood ratio of `alternative` to `null` for binomial counts."""
    failures = counts.tasks - counts.successes
    return counts.successes * math.log(alternative / null) + failures * math.log((1 - alternative) / (1 - null))


def departed(rate: float, delta: float) -> float:
    """The rate `delta` away, never beyond half-way to the end of the scale: a rate has no room for more."""
    return max(rate + delta, rate / 2) if delta < 0 else min(rate + delta, (1 + rate) / 2)


def threshold(tasks_per_interval: float, null: float, alternative: float, settings: Settings, directions: int) -> float:
    """How much evidence an alarm takes, from the false-alarm budget.

    A CUSUM at threshold h crosses by chance about I nu(sqrt(2 I))^2 exp(-h) times an interval, I the information per
    interval and nu(x) about exp(-.583 x) (Siegmund 1985, (10.17); Lorden 1971 bounds it by exp(-h)). The product peaks
    at I = 1.47, and volume varies by the hour, so it is never taken to fall.
    """
    information = alternative * math.log(alternative / null) + (1 - alternative) * math.log(
        (1 - alternative) / (1 - null)
    )
    information = min(tasks_per_interval * information, 1.47)
    crossings = WEEK_S / settings.rules.interval_s * information * math.exp(-1.166 * math.sqrt(2 * information))
    share = BUDGET / (settings.series_count * directions)  # the CUSUMs of one direction cross together: they are one
    return max(math.log(crossings / share), CLOSING)


def deltas(settings: Settings) -> list[float]:
    """Signed departures to watch for. The last, 1, is an outage: half-way to the end of the scale."""
    signs = {Direction.DOWN: (-1,), Direction.UP: (1,), Direction.BOTH: (-1, 1)}[settings.metric.direction]
    return [sign * delta for sign in signs for delta in (*settings.deltas, 1.0)]


def step(
    state: Series,
    start: datetime,
    counts: Counts,
    normal: Baseline | None,
    settings: Settings,
    track: Track | None = None,
) -> tuple[Series, Alarm | None]:
    """Judge one interval; return the next state and the alarm that it raised, if any.

    `track` holds the intervals up to this one and is needed for the floor only. An interval without tasks changes
    nothing: it is no evidence of health. An open alarm closes when recovery is 100 times likelier than its departure.
    """
    if not counts.tasks:
        return state.model_copy(update={"seen": start}), None
    normal = state.frozen or normal
    rules, alarms, episodes, frozen = settings.rules, [], state.episodes, state.frozen
    for alarm in state.alarms:
        if alarm.kind is Kind.NO_DATA or (alarm.kind is Kind.SHIFT and normal is None):
            alarms.append(alarm)
            continue
        healthy = normal.rate_at(start) if alarm.kind is Kind.SHIFT and normal else alarm.healthy
        recovery = max(0.0, alarm.recovery - log_ratio(counts, healthy, departed(healthy, alarm.delta)))
        if recovery < CLOSING:
            alarms.append(alarm.model_copy(update={"recovery": recovery}))
        else:
            oldest = start - timedelta(seconds=rules.baseline_s + rules.guard_s)
            episodes = (*(e for e in episodes if e[1] > oldest), (alarm.onset, start))
    if not any(alarm.kind is Kind.SHIFT or (alarm.kind is Kind.FLOOR and not alarm.standing) for alarm in alarms):
        frozen = None
    evidence, raised = state.evidence, None
    is_open = {alarm.kind: alarm for alarm in alarms}
    standing = Kind.FLOOR in is_open and is_open[Kind.FLOOR].standing
    if len(alarms) < len(state.alarms):
        evidence = ()
    elif Kind.SHIFT not in is_open and (Kind.FLOOR not in is_open or standing) and normal is not None:
        evidence, raised = _weigh(state.evidence, start, counts, normal, settings)
    if raised is None and not is_open.keys() & {Kind.SHIFT, Kind.FLOOR} and settings.metric.floor and track is not None:
        # What an episode that is over left in the window must not raise it again.
        raised = _floor(track, start, normal, settings, episodes[-1][1] if episodes else None)
    if raised is not None:
        alarms.append(raised)
        evidence = ()
        # A baseline that is itself under the floor goes on learning: a further drop from it must still be seen.
        frozen = None if raised.standing else normal
    update = {"seen": start, "evidence": evidence, "alarms": tuple(alarms), "frozen": frozen, "episodes": episodes}
    return state.model_copy(update=update), raised


def _weigh(
    evidence: Sequence[Evidence], start: datetime, counts: Counts, normal: Baseline, settings: Settings
) -> tuple[tuple[Evidence, ...], Alarm | None]:
    """Add one interval to every CUSUM; the one that is furthest over its threshold raises."""
    watched = deltas(settings)
    rate = normal.rate_at(start)
    error = math.sqrt(rate * (1 - rate) / normal.counts.tasks)
    # Twice the mean, because most of the evidence comes in the busy hours.
    per_interval = 2 * settings.rules.interval_s / 3_600 * sum(normal.tasks_per_h) / len(normal.tasks_per_h)
    after, margin, found = [], 0.0, None
    for delta, before in zip(watched, evidence or [Evidence()] * len(watched), strict=True):
        # The baseline is estimated: its error towards the departure is not held against the series.
        null = rate + math.copysign(min(ESTIMATION * error, abs(delta) / 2, rate / 2, (1 - rate) / 2), delta)
        outage = delta if abs(delta) < 1 else math.copysign(1.0, delta)
        alternative = departed(null, outage)
        ratio = max(0.0, before.log_ratio + log_ratio(counts, null, alternative))
        if ratio == 0:
            after.append(Evidence())
            continue
        total = Counts(tasks=before.counts.tasks + counts.tasks, successes=before.counts.successes + counts.successes)
        now = Evidence(log_ratio=ratio, since=before.since or start, counts=total)
        after.append(now)
        limit = threshold(per_interval, null, alternative, settings, len({d > 0 for d in watched}))
        if ratio - limit >= margin:
            margin, found = ratio - limit, (delta, now, limit)
    if found is None:
        return tuple(after), None
    delta, worst, limit = found
    observed = worst.counts.successes / worst.counts.tasks
    reason = (
        f"{settings.metric.name} {observed:.1%} ({worst.counts.successes} of {worst.counts.tasks} tasks) since onset, "
        f"against {rate:.1%} expected for the hour from {normal.counts.tasks} tasks of the baseline; "
        f"log likelihood ratio {worst.log_ratio:.1f}, alarm at {limit:.1f}"
    )
    alarm = Alarm(
        kind=Kind.SHIFT,
        raised_at=start,
        onset=worst.since or start,
        direction=Direction.DOWN if delta < 0 else Direction.UP,
        size=observed - rate,
        observed=worst.counts,
        baseline=normal.counts,
        reason=reason,
        healthy=rate,
        delta=math.copysign(min(abs(delta), max(settings.deltas)), delta),
    )
    return tuple(after), alarm


def _floor(
    track: Track, start: datetime, normal: Baseline | None, settings: Settings, since: datetime | None
) -> Alarm | None:
    """The article's floor over the newest 50, 100, 200, ... tasks, at most `floor_window_s` back, beyond chance.

    The level is the budget over the disjoint windows of a week. On day one there has been one window, so fifty tasks
    can tell; after a week at 100 an hour there have been 336, and one that is low by chance must not count.
    """
    rules = settings.rules
    floor, last = rules.success_floor, bisect_left(track.starts, start) + 1
    first = bisect_left(track.starts, start - timedelta(seconds=rules.floor_window_s))
    first = max(first, bisect_left(track.starts, since)) if since else first
    recent = track.between(first, last)
    looked_at = max(normal.counts.tasks if normal else 0, recent.tasks)
    # Of n disjoint windows of the smallest size, n / 2 + n / 4 + ... are looked at again as parts of larger ones.
    windows = max(1, 2 * (looked_at // rules.floor_window_tasks) - 1)
    level = BUDGET / (settings.series_count * windows)
    size, chance, counts = rules.floor_window_tasks, 1.0, recent
    newest = last
    while size <= recent.tasks and chance > level:
        newest = bisect_right(track.tasks, track.tasks[last] - size) - 1
        counts = track.between(newest, last)
        chance = binomial_tail(counts.successes, counts.tasks, floor)
        size *= 2
    below = recent.tasks >= rules.floor_window_tasks and recent.successes < floor * recent.tasks
    usual = normal.counts if normal else None
    standing = usual is not None and below and binomial_tail(usual.successes, usual.tasks, floor) <= level
    if chance > level and not standing:
        return None
    # The stretch that lacks most successes to the floor: where a CUSUM with the floor as its drift was last at zero.
    onset = (
        first if standing else max(range(first, newest + 1), key=lambda i: track.successes[i] - floor * track.tasks[i])
    )
    observed = track.between(onset, last)
    rate = observed.successes / observed.tasks
    shown = (
        "the baseline itself is under it"
        if standing
        else f"{counts.successes} of the last {counts.tasks}, by chance {chance:.1g}"
    )
    return Alarm(
        kind=Kind.FLOOR,
        raised_at=start,
        onset=track.starts[onset],
        direction=Direction.DOWN,
        size=rate - (usual.successes / usual.tasks if usual else floor),
        observed=observed,
        baseline=usual,
        reason=f"{settings.metric.name} {rate:.1%} ({observed.successes} of {observed.tasks} tasks), "
        f"under the floor of {floor:.0%}: {shown}",
        # Open until the rate is credibly above the floor: half-way between the two is the turning point.
        healthy=departed(floor, DELTAS[0]),
        delta=-DELTAS[0],
        standing=standing,
    )


def _silence(at: datetime, track: Track, normal: Baseline | None, settings: Settings) -> Alarm | None:
    """No task at all for longer than ever in the baseline, where a Poisson count of zero is beyond chance."""
    if normal is None or (last := bisect_left(track.tasks, track.tasks[-1]) - 1) < 0:
        return None
    interval_s = settings.rules.interval_s
    since = track.starts[last] + timedelta(seconds=interval_s)
    silent_s = (at - since).total_seconds()
    expected = normal.expected_tasks(since, at)
    if silent_s <= normal.longest_silence_s or expected < math.log(
        WEEK_S / interval_s * settings.series_count / BUDGET
    ):
        return None
    return Alarm(
        kind=Kind.NO_DATA,
        raised_at=at,
        onset=since,
        direction=Direction.DOWN,
        size=0.0,
        observed=Counts(),
        baseline=normal.counts,
        reason=f"no task for {silent_s / 3_600:.3g} h, where {expected:.0f} were expected; "
        f"the longest silence of the baseline was {normal.longest_silence_s / 3_600:.3g} h",
    )


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
    that came before its last promotion. Of a type that was never seen, the guard gap's intervals are judged.
    """
    settings = Settings(metric, rules, series_count or len(history) + 1)
    return _Look(at, history, states, settings, excluded or {}).run()


class _Look:
    """One look over all task types and the platform as a whole."""

    def __init__(
        self,
        at: datetime,
        history: Mapping[str, Sequence[Interval]],
        states: Mapping[str, Series],
        settings: Settings,
        excluded: Mapping[str, Sequence[Span]],
    ) -> None:
        self.at, self.settings, self.rules, self.excluded = at, settings, settings.rules, excluded
        self.width = timedelta(seconds=self.rules.interval_s)
        self.states = dict(states)
        self.raised: list[Anomaly] = []
        self.closed: list[str] = []
        self.baselines: dict[tuple[object, ...], Baseline | None] = {}
        recent = timedelta(seconds=max(self.rules.guard_s, self.rules.floor_window_s))
        reach = timedelta(seconds=self.rules.baseline_s) + recent
        # After a pause longer than a baseline, what lies before it is history: the cost never grows with the pause.
        self.seen = {name: max(self.state(name).seen or at - recent, at - reach) for name in history}
        oldest = min((*self.seen.values(), at)) - reach
        self.tracks: dict[str, Track] = {}
        for name, intervals in history.items():
            first = bisect_left(intervals, oldest, key=lambda interval: interval.start)
            complete = (i for i in intervals[first:] if i.start + self.width <= at)
            self.tracks[name] = Track.of((i.start, i.counts) for i in complete)

    def run(self) -> Detection:
        starts = {s for name, t in self.tracks.items() for s in t.starts[bisect_right(t.starts, self.seen[name]) :]}
        for start in sorted(starts):
            self.judge(start)
        if self.settings.metric.reports_silence:
            self.listen()
        self.promote()
        return Detection(self.states, tuple(self.raised), tuple(self.closed))

    def state(self, name: str) -> Series:
        return self.states.get(self.subject(name), Series())

    def subject(self, name: str, kind: Kind = Kind.SHIFT) -> str:
        return f"{kind.value if kind is Kind.NO_DATA else self.settings.metric.name}:{name or PLATFORM}"

    def identify(self, name: str, alarm: Alarm) -> str:
        return f"{self.subject(name, alarm.kind)}#{alarm.raised_at:%Y-%m-%dT%H:%M:%SZ}"

    def counts(self, name: str, start: datetime) -> Counts:
        track = self.tracks[name]
        i = bisect_left(track.starts, start)
        return track.between(i, i + 1) if i < len(track.starts) and track.starts[i] == start else Counts()

    def normal(self, name: str, start: datetime) -> Baseline | None:
        """The baseline of a task type, without its past and open anomalies and those of the whole platform."""
        state, hour = self.state(name), start.replace(minute=0, second=0, microsecond=0)
        if state.frozen is not None:
            return state.frozen
        spans = [*self.excluded.get(name, ()), *state.episodes, *self.state("").episodes]
        kept_out = [
            a for s in (state, self.state("")) for a in s.alarms if a.kind is not Kind.NO_DATA and not a.standing
        ]
        spans += [(alarm.onset, start) for alarm in kept_out]
        key = (name, hour, *spans)
        if key not in self.baselines:
            self.baselines[key] = baseline(hour, self.tracks[name], self.rules, spans)
        return self.baselines[key]

    def judge(self, start: datetime) -> None:
        """Judge one interval: each type by itself, then the platform without the types whose alarm is already open."""
        # Not those that are part of the platform's alarm either: as they recover one by one, so does the platform.
        free = [n for n in self.tracks if self.state(n).alarm(Kind.SHIFT, Kind.FLOOR) is None]
        fresh: dict[str, Alarm] = {}
        for name, track in self.tracks.items():
            if start > self.seen[name]:
                counts, normal = self.counts(name, start), self.normal(name, start)
                if (alarm := self.advance(name, start, counts, normal, track)) is not None:
                    fresh[name] = alarm
        whole = self.whole(free, start) if len(self.tracks) > 1 else None
        if whole is not None and (culprit := self.explain(whole, free, start)) is not None:
            blamed = self.blame(culprit, whole, start)
            # A type is held to the floor by a whole window of its own tasks, or not yet.
            if whole.kind is Kind.SHIFT or blamed.observed.tasks >= self.rules.floor_window_tasks:
                fresh.setdefault(culprit, blamed)
            self.put("", alarms=tuple(a for a in self.state("").alarms if a != whole), frozen=None)
            whole = None
        if fresh and whole is None:
            self.put("", evidence=())  # what the types explain must not be raised for the platform a little later
        covering = self.state("").alarm(Kind.SHIFT, Kind.FLOOR)
        if whole is not None:
            self.announce("", whole)
        for name, alarm in fresh.items():
            part_of = self.identify("", covering) if covering else ""
            known = alarm.model_copy(update={"part_of": part_of})
            others = tuple(a for a in self.state(name).alarms if a.kind is not alarm.kind)
            freezes = None if alarm.standing else self.state(name).frozen or self.normal(name, start)
            self.put(name, alarms=(*others, known), evidence=(), frozen=freezes)
            if not part_of:
                self.announce(name, alarm)

    def advance(
        self, name: str, start: datetime, counts: Counts, normal: Baseline | None, track: Track
    ) -> Alarm | None:
        before = self.state(name)
        after, raised = step(before, start, counts, normal, self.settings, track)
        still = {alarm.raised_at for alarm in after.alarms}
        self.closed += [self.identify(name, a) for a in before.alarms if a.raised_at not in still and not a.part_of]
        self.states[self.subject(name)] = after
        return raised

    def whole(self, free: Sequence[str], start: datetime) -> Alarm | None:
        """Judge the platform against what its mix of types should give: a change of the mix is no anomaly."""
        state = self.state("")
        if state.seen is not None and start <= state.seen:
            return None
        known = {name: normal for name in free if (normal := self.normal(name, start)) is not None}
        counts = {name: self.counts(name, start) for name in (known or free)}
        total = Counts(tasks=sum(c.tasks for c in counts.values()), successes=sum(c.successes for c in counts.values()))
        normal = state.frozen
        if known and total.tasks:
            usual = [normal.counts for normal in known.values()]
            normal = Baseline(
                counts=Counts(tasks=sum(c.tasks for c in usual), successes=sum(c.successes for c in usual)),
                rates=(sum(counts[n].tasks * known[n].rate_at(start) for n in known) / total.tasks,),
                tasks_per_h=(sum(sum(n.tasks_per_h) / len(n.tasks_per_h) for n in known.values()),),
            )
            if state.frozen is not None:
                self.put("", frozen=normal)
        return self.advance("", start, total, normal, self.merged(free, start))

    def merged(self, names: Sequence[str], start: datetime) -> Track:
        """The newest intervals of several types as one, as far back as the floor looks, without what is over."""
        tasks: dict[datetime, int] = {}
        successes: dict[datetime, int] = {}
        for name in names:
            track, episodes = self.tracks[name], self.state(name).episodes
            first = bisect_left(track.starts, start - timedelta(seconds=self.rules.floor_window_s))
            first = max(first, bisect_left(track.starts, episodes[-1][1])) if episodes else first
            for i in range(first, bisect_right(track.starts, start)):
                at = track.starts[i]
                tasks[at] = tasks.get(at, 0) + track.tasks[i + 1] - track.tasks[i]
                successes[at] = successes.get(at, 0) + track.successes[i + 1] - track.successes[i]
        starts = sorted(tasks)
        n = accumulate((tasks[at] for at in starts), initial=0)
        return Track(starts, list(n), list(accumulate((successes[at] for at in starts), initial=0)))

    def explain(self, whole: Alarm, names: Sequence[str], start: datetime) -> str | None:
        """The one type without which the rest has not moved: its odds of having moved are under 3 to 1."""
        evidence = dict.fromkeys(names, 0.0)
        for name in names:
            track, normal = self.tracks[name], self.normal(name, start)
            if whole.kind is Kind.SHIFT and normal is None:
                continue  # it was no part of what the platform was judged by
            for i in range(bisect_left(track.starts, whole.onset), bisect_right(track.starts, start)):
                usual = (
                    self.rules.success_floor
                    if whole.kind is Kind.FLOOR or normal is None
                    else normal.rate_at(track.starts[i])
                )
                evidence[name] += log_ratio(track.between(i, i + 1), usual, departed(usual, whole.delta))
        suspect = max(names, key=lambda name: evidence[name])
        return suspect if sum(evidence.values()) - evidence[suspect] < math.log(3) else None

    def blame(self, name: str, whole: Alarm, start: datetime) -> Alarm:
        """The platform's alarm as one of the type that explains it."""
        track, normal = self.tracks[name], self.normal(name, start)
        observed = track.between(bisect_left(track.starts, whole.onset), bisect_right(track.starts, start))
        usual = normal.rate_at(start) if normal else self.rules.success_floor
        return whole.model_copy(
            update={
                "observed": observed,
                "baseline": normal.counts if normal else None,
                "size": (observed.rate or 0.0) - usual,
                "reason": f"{name} explains it, the rest has not moved: {whole.reason}",
            }
        )

    def listen(self) -> None:
        """Raise and close silence, for the whole platform where every type that has a baseline is silent."""
        last = self.at - 2 * self.width
        if not any(s.alarm(Kind.NO_DATA) for s in self.states.values()) and all(
            track.tasks[-1] > track.tasks[bisect_right(track.starts, last)] for track in self.tracks.values()
        ):
            return  # every type had tasks in the newest interval: no baseline is needed to hear that
        # On the grid of intervals, so that the same silence has the same name whenever it is looked at.
        at = self.at - (self.at - datetime(1970, 1, 1, tzinfo=self.at.tzinfo)) % self.width
        silent: dict[str, Alarm] = {}
        for name, track in self.tracks.items():
            state, normal = self.state(name), self.normal(name, self.at)
            if (known := state.alarm(Kind.NO_DATA)) is not None:
                i = bisect_left(track.starts, known.onset)
                if track.tasks[-1] > track.tasks[i]:
                    self.put(name, alarms=tuple(a for a in state.alarms if a is not known))
                    self.closed += [] if known.part_of else [self.identify(name, known)]
                else:
                    silent[name] = known
            elif (alarm := _silence(at, track, normal, self.settings)) is not None:
                silent[name] = alarm
        listening = [n for n in self.tracks if n in silent or self.normal(n, self.at) is not None]
        whole = self.state("").alarm(Kind.NO_DATA)
        if whole is not None and len(silent) < len(listening):
            self.put("", alarms=tuple(a for a in self.state("").alarms if a is not whole))
            self.closed.append(self.identify("", whole))
            whole = None
        new = {name: alarm for name, alarm in silent.items() if self.state(name).alarm(Kind.NO_DATA) is None}
        if whole is None and new and len(silent) == len(listening) > 1:
            whole = max(new.values(), key=lambda alarm: alarm.onset)
            self.put("", alarms=(*self.state("").alarms, whole))
            self.announce("", whole)
        for name, alarm in new.items():
            part_of = self.identify("", whole) if whole else ""
            self.put(name, alarms=(*self.state(name).alarms, alarm.model_copy(update={"part_of": part_of})))
            if not part_of:
                self.announce(name, alarm)

    def promote(self) -> None:
        """What is still wrong with a type when the platform's alarm is over is raised now, or it would be lost."""
        whole = {self.identify("", alarm) for alarm in self.state("").alarms}
        for name in self.tracks:
            for alarm in self.state(name).alarms:
                if alarm.part_of and alarm.part_of not in whole:
                    own = alarm.model_copy(update={"part_of": ""})
                    self.put(name, alarms=tuple(own if a is alarm else a for a in self.state(name).alarms))
                    self.announce(name, own)

    def put(self, name: str, **update: object) -> None:
        self.states[self.subject(name)] = self.state(name).model_copy(update=update)

    def announce(self, name: str, alarm: Alarm) -> None:
        silence = alarm.kind is Kind.NO_DATA
        self.raised.append(
            Anomaly(
                anomaly_id=self.identify(name, alarm),
                metric=alarm.kind.value if silence else self.settings.metric.name,
                task_type=name,
                onset=alarm.onset,
                detected_at=alarm.raised_at if silence else alarm.raised_at + self.width,
                observed=alarm.observed,
                baseline=alarm.baseline,
                reason=alarm.reason[:2_000],
            )
        )


@dataclass(frozen=True)
class SeriesAlarm:
    """One episode of a file's series: the row that raised it, when it seems to have begun, and by how much."""

    timestamp: datetime
    onset: datetime
    direction: Direction
    size: float
    reason: str


def detect_rates(rows: Iterable[tuple[datetime, int, int]]) -> list[SeriesAlarm]:
    """Episodes in rows of (timestamp, successes, total), oldest first, both ways. A row with total 0 is no data.

    A level that lasts longer than the baseline's window becomes the new normal: in a file nobody closes alarms.
    """
    rows = list(rows)
    for at, successes, total in rows:
        if not 0 <= successes <= total:
            raise ValueError(f"expected 0 <= successes <= total, but {successes} of {total} came at {at.isoformat()}")
    rules = _rules_for([at for at, _, _ in rows])
    settings = Settings(Metric("rate", Direction.BOTH), rules)
    track = Track.of((at, Counts(tasks=total, successes=successes)) for at, successes, total in rows)
    state, found = Series(), list[SeriesAlarm]()
    normal: Baseline | None = None
    fitted: tuple[datetime, int] | None = None
    past: tuple[Span, ...] = ()
    for i, at in enumerate(track.starts):
        alarm = state.alarm(Kind.SHIFT)
        if alarm is not None and (at - alarm.onset).total_seconds() > rules.baseline_s + rules.guard_s:
            past = ((track.starts[0], alarm.onset),)
            state, alarm = Series(), None
        now = (at.replace(minute=0, second=0, microsecond=0), len(state.episodes))
        if alarm is None and fitted != now:
            normal, fitted = baseline(at, track, rules, (*past, *state.episodes)), now
        state, raised = step(state, at, track.between(i, i + 1), normal, settings)
        if raised is not None:
            found.append(SeriesAlarm(at, raised.onset, raised.direction, raised.size, raised.reason))
    return found


@dataclass(frozen=True)
class _Level:
    """What is normal of a value by hour of the week, its spread, and how slowly it moves."""

    levels: list[float]
    phase_s: float  # where in the hour its rows are in the mean
    scale: float
    rows: int
    memory: float  # correlation of a row with the one before
    noise: float  # spread of what is new in a row, in spreads of the rows

    @classmethod
    def of(cls, rows: Sequence[tuple[datetime, float]]) -> "_Level | None":
        """Median by hour of the day, by weekday or weekend, by hour of the week: as far as each foretells the rows.

        A finer level is kept where it lowers the spread of the rows that were left out of its medians. The spread is
        that of left-out rows, too: in its own rows a median of seven looks better than it is.
        """
        if len(rows) < MINIMUM_ROWS:
            return None
        levels = [median(value for _, value in rows)] * HOURS
        # One value an hour, because rows of one hour resemble each other: leaving out a row would not leave it out.
        hours: list[tuple[datetime, list[float]]] = []
        for at, value in rows:
            hour = at.replace(minute=0, second=0, microsecond=0)
            if not hours or hours[-1][0] != hour:
                hours.append((hour, []))
            hours[-1][1].append(value)
        middle = [median(values) for _, values in hours]
        slots = [hour_of_week(at) for at, _ in hours]
        residuals = [value - levels[slot] for slot, value in zip(slots, middle, strict=True)]
        if (rows[-1][0] - rows[0][0]).total_seconds() >= WEEK_S - 43_200:
            for bins in (
                [h % 24 for h in range(HOURS)],
                [h % 24 + 24 * (h >= 120) for h in range(HOURS)],
                range(HOURS),
            ):
                groups: list[list[tuple[float, int]]] = [[] for _ in range(HOURS)]
                for i, slot in enumerate(slots):
                    groups[bins[slot]].append((middle[i] - levels[slot], i))
                medians, left_out = [0.0] * HOURS, list(residuals)
                for b, group in enumerate(groups):
                    group.sort()
                    medians[b] = _median_without(group, len(group))
                    for position, (value, i) in enumerate(group):
                        left_out[i] = value - _median_without(group, position)
                if _spread(left_out) < 0.95 * _spread(residuals):
                    levels = [level + medians[bins[slot]] for slot, level in enumerate(levels)]
                    residuals = left_out
        honest = [v - middle[i] + residuals[i] for i, (_, values) in enumerate(hours) for v in values]
        scale = max(_spread(honest), abs(levels[0]) * 1e-3, 1e-12)
        phase_s = median(at.minute * 60 + at.second for at, _ in rows)
        # The rows left out once more: how each row follows from the one before, and what is new in it.
        near = [max(-CLIP, min(CLIP, value / scale)) for value in honest[-1_000:]]
        power = sum(min(z * z, 9.0) for z in near) or 1.0
        memory = min(0.95, max(0.0, sum(max(-9.0, min(9.0, a * b)) for a, b in pairwise(near)) / power))
        noise = max(_spread([b - memory * a for a, b in pairwise(near)]), math.sqrt(1 - memory**2))
        return cls(levels, phase_s, scale, len(rows), memory, noise)

    def usual(self, at: datetime) -> float:
        """The level at an instant: between two hours it is between their levels, or every full hour would be a jump."""
        hour = hour_of_week(at)
        part = (at.minute * 60 + at.second - self.phase_s) / 3_600
        return self.levels[hour] * (1 - abs(part)) + self.levels[(hour + (1 if part > 0 else -1)) % HOURS] * abs(part)

    def score(self, at: datetime, value: float) -> float:
        """Spreads from normal, clipped so that one wild row says no more than a bad one."""
        return max(-CLIP, min(CLIP, (value - self.usual(at)) / self.scale))


def _median_without(group: Sequence[tuple[float, int]], position: int) -> float:
    """Median of sorted values but the one at `position` (none is left out at the end); 0 where nothing remains."""
    size = len(group) - (position < len(group))
    if not size:
        return 0.0
    low, high = (size - 1) // 2, size // 2
    return (group[low + (low >= position)][0] + group[high + (high >= position)][0]) / 2


def _spread(residuals: Sequence[float]) -> float:
    """1.4826 MAD is the standard deviation of normal noise; the 99.5% point guards against tails heavier than that."""
    sizes = sorted(abs(r) for r in residuals)
    return max(1.4826 * median(sizes), sizes[int(0.995 * (len(sizes) - 1))] / 2.81)


class _Values:
    """Gaussian CUSUMs (Page 1954) both ways: of what is new in each row, for shifts of one spread and of three."""

    def __init__(self, rows: Sequence[tuple[datetime, float]], rules: ObservatoryRules) -> None:
        self.rows, self.times, self.rules = rows, [at for at, _ in rows], rules
        # 0.2 is the peak of the crossings in `threshold`; two directions with two CUSUMs each.
        self.limit = max(math.log(WEEK_S / rules.interval_s * 0.2 * 4 / BUDGET), CLOSING)
        self.kept_out: list[tuple[int, int]] = []
        self.first = 0

    def level(self, i: int) -> _Level | None:
        end = self.times[i] - timedelta(seconds=self.rules.guard_s)
        first = max(self.first, bisect_left(self.times, end - timedelta(seconds=VALUES_BASELINE_S)))
        within = range(first, bisect_left(self.times, end))
        return _Level.of([self.rows[j] for j in within if not any(a <= j < b for a, b in self.kept_out)])

    def run(self) -> list[SeriesAlarm]:
        found: list[SeriesAlarm] = []
        watched = [(sign, shift) for sign in (-1.0, 1.0) for shift in (1.0, 3.0)]
        sums, onsets = [0.0] * 4, [0] * 4
        level: _Level | None = None
        fitted: datetime | None = None
        opened: tuple[int, float] | None = None  # where the open episode began, and its signed size in innovations
        recovery, last = 0.0, 0.0
        refit_s = min(86_400, max(self.rules.guard_s, 10 * self.rules.interval_s))
        for i, (at, value) in enumerate(self.rows):
            if opened and (at - self.times[opened[0]]).total_seconds() > self.rules.baseline_s + self.rules.guard_s:
                self.first, opened, fitted = opened[0], None, None
            if not opened and (fitted is None or (at - fitted).total_seconds() >= refit_s):
                level, fitted = self.level(i), at
            if level is None:
                fitted = None
                continue
            # Rows remember the one before: only what is new in a row is evidence (a first-order autoregression).
            score = level.score(at, value)
            news = max(-CLIP, min(CLIP, (score - level.memory * last) / level.noise))
            last = score
            if opened:
                recovery = max(0.0, recovery - opened[1] * news + opened[1] ** 2 / 2)
                if recovery >= CLOSING:
                    self.kept_out.append((opened[0], i + 1))
                    opened, fitted = None, None
                continue
            error = ESTIMATION * 1.25 / math.sqrt(level.rows)  # of a median
            steps = [shift * (sign * news - error) - shift * shift / 2 for sign, shift in watched]
            for c, gain in enumerate(steps):
                onsets[c] = onsets[c] if sums[c] else i
                sums[c] = max(0.0, sums[c] + gain)
            c = max(range(4), key=lambda c: sums[c])
            if sums[c] >= self.limit:
                found.append(self.alarm(onsets[c], i, watched[c][0], sums[c], level))
                # A lasting shift shows in the innovations as this much of itself.
                lasting = (1 - level.memory) / level.noise
                size = min(3.0, max(1.0, abs(found[-1].size) / level.scale)) * lasting
                opened, recovery, sums = (onsets[c], math.copysign(size, watched[c][0])), 0.0, [0.0] * 4
        return found

    def alarm(self, onset: int, last: int, sign: float, evidence: float, level: _Level) -> SeriesAlarm:
        new = [value for _, value in self.rows[onset : last + 1]]
        usual = [level.usual(at) for at in self.times[onset : last + 1]]
        observed, expected = sum(new) / len(new), sum(usual) / len(new)
        reason = (
            f"mean {observed:.4g} over {len(new)} rows, against {expected:.4g} usual at that time of the week "
            f"({(observed - expected) / level.scale:+.1f} spreads); "
            f"log likelihood ratio {evidence:.1f}, alarm at {self.limit:.1f}"
        )
        direction = Direction.DOWN if sign < 0 else Direction.UP
        return SeriesAlarm(self.times[last], self.times[onset], direction, observed - expected, reason)


def detect_values(rows: Iterable[tuple[datetime, float]]) -> list[SeriesAlarm]:
    """Episodes in rows of (timestamp, value), oldest first, both ways; a value that is NaN or infinite is no data.

    The baseline is the median by time of the week over at most four weeks before the guard gap; with less than a week
    there is none of a day. A level that lasts longer than a week and the gap becomes the new normal.
    """
    rows = list(rows)
    rules = _rules_for([at for at, _ in rows])
    return _Values([(at, value) for at, value in rows if math.isfinite(value)], rules).run()


def _rules_for(times: Sequence[datetime]) -> ObservatoryRules:
    """The width of a row is the median step; a short file gets a guard gap of an eighth of itself.

    Raises ValueError where the timestamps do not ascend.
    """
    for before, at in pairwise(times):
        if (before.tzinfo is None) != (at.tzinfo is None) or at <= before:
            raise ValueError(
                "expected ascending timestamps, all with or all without an offset, "
                f"but {at.isoformat()} came after {before.isoformat()}"
            )
    steps = [(b - a).total_seconds() for a, b in pairwise(times)]
    width = max(1, round(median(steps))) if steps else 3_600
    span_s = (times[-1] - times[0]).total_seconds() if times else 0.0
    return ObservatoryRules(interval_s=width, guard_s=int(min(86_400, span_s / 8)))
