"""Series: the detector of one series, which is stepped with one interval after the other."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from pydantic import Field

from rules.baseline import PRIOR_TASKS, WEEK_S, Baseline, Span, rate_at
from rules.rates import smoothed
from schema.messages.base import Instant, Message
from schema.messages.observatory import Anomaly, Counts
from schema.messages.platform import ObservatoryRules

BUDGET = 0.15  # false alarms a week, shared by all series of a platform
SLIGHT, CLEAR, OUTAGE = 0.05, 0.10, 1.0  # departures to watch for; `departed` cuts the last to an outage
# What each may spend of the budget. Together more than all of it: they see the same tasks, so that what alarms one has
# mostly alarmed another, and the clear ones spend little of theirs (benchmarks.detection counts them together).
DROPS = {SLIGHT: 0.9, CLEAR: 0.2, OUTAGE: 0.1}
SLIGHT_BASELINE_S = 3 * 86_400  # a shorter baseline takes the shape of a day for a slight departure
FLOOR = 0.0  # the key of the CUSUM that watches the absolute floor, beside those of the departures
FITTED = 2  # times p (1 - p) / n is the baseline's variance: 1 in sums of whole days, 3 (mean, sine, cosine) in an hour
CLOSING = math.log(100)  # an alarm closes at odds of 100 to 1 for health: hysteresis against its own threshold
PLATFORM, SILENCE = "platform", "no_data"


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
    Metric("duration_share", (1,)),  # slower than the baseline's median: stands for the mean completion time
    Metric("low_quality_share", (1,)),  # of the rated tasks, under the baseline's lower quartile
    Metric("high_cost_share", (1,)),  # costlier than the baseline's p95
    Metric("market_fill_rate", (-1,), clustered=True),  # awarded of opened
    Metric("active_agents", (-1,), clustered=True),  # those that did something, of those registered
    # More tasks are demand; what that harms has a metric of its own.
    Metric("throughput", (-1,), volume=True),
)


class DetectorSettings(NamedTuple):
    """What one step needs to know beside the numbers. `series_count` is how many series share the budget."""

    metric: Metric
    rules: ObservatoryRules
    series_count: int = 1


Cell = tuple[Counts, Baseline | None]  # one interval of a task type
Cells = Mapping[str, Cell]  # one interval of a series: its task type, or a platform's types


class Cusum(Message):
    """One CUSUM since its last zero: a log likelihood ratio, or how many successes are missing to the floor."""

    score: float = 0.0
    since: Instant | None = None
    counts: Counts = Counts()


class Level(Message):
    """The rate that a task type has settled at during an alarm, from `counts` of so many `intervals`."""

    counts: Counts = Counts()
    intervals: int = 0


class Alarm(Message):
    """One episode. `cause` is the CUSUM that raised it; `healthy` the rates to return to, frozen, by task type.

    `levels` are what its task types have settled at since, and `better` and `worse` the CUSUMs that watch for a change
    of them: a cause that comes on top of another is an anomaly of its own.
    """

    anomaly: Anomaly
    cause: float = FLOOR
    healthy: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    recovery: dict[str, float] = Field(default_factory=dict)
    dispersion: float = 1.0
    levels: dict[str, Level] = Field(default_factory=dict)
    better: Cusum = Cusum()
    worse: Cusum = Cusum()


class Series(Message):
    """Where one series stands after `seen`, the start of the last interval that was judged.

    `tasks` are all that were ever judged; `episodes` are past ones, kept out of the baseline.
    """

    seen: Instant | None = None
    tasks: int = 0
    cusums: dict[float, Cusum] = Field(default_factory=dict)
    alarm: Alarm | None = None
    episodes: tuple[Span, ...] = ()


ZERO, NEW = Cusum(), Series()  # frozen: made once


def subject_of(metric: str, name: str) -> str:
    """The key of a series, as `Anomaly.subject`; the platform's name is empty."""
    return f"{metric}:{name or PLATFORM}"


def log_ratio(tasks: float, successes: float, null: float, alternative: float) -> float:
    """Log likelihood ratio of `alternative` to `null` for binomial counts."""
    failures = tasks - successes
    return successes * math.log(alternative / null) + failures * math.log((1 - alternative) / (1 - null))


def departed(rate: float, delta: float) -> float:
    """The rate `delta` away, never beyond half-way to the end of the scale: a rate has no room for more."""
    return max(rate + delta, rate / 2) if delta < 0 else min(rate + delta, (1 + rate) / 2)


def threshold(information: float, settings: DetectorSettings, spend: float = 1.0) -> float:
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


def step(name: str, state: Series, start: datetime, cells: Cells, settings: DetectorSettings) -> Series:
    """Judge one interval of a series: an `alarm` that is new was raised, one that is gone is over.

    An interval without tasks changes nothing: it is no evidence of health. Of several CUSUMs that are over their
    thresholds, the furthest raises.
    """
    counts = Counts.total(counts for counts, _ in cells.values())
    state = state.model_copy(update={"seen": start, "tasks": state.tasks + counts.tasks})
    if not counts.tasks:
        return state
    if state.alarm is not None:
        recovered = _recover(state, state.alarm, start, cells, settings=settings)
        return _followed(name, recovered, start, cells, settings)
    cusums, excess = _advance_departures(state.cusums, start, cells, settings)
    if settings.metric.floor:
        shortfall = settings.rules.success_floor * counts.tasks - counts.successes
        cusums[FLOOR] = _advanced(state.cusums.get(FLOOR, ZERO), shortfall, start, counts)
        if not excess and _is_below_the_floor(cusums[FLOOR].counts, state.tasks, settings):
            excess[FLOOR] = 0.0  # nothing else is over its threshold, so by how much is not asked
    above_zero = {cause: cusum for cause, cusum in cusums.items() if cusum != ZERO}
    state = state.model_copy(update={"cusums": above_zero})
    if not excess:
        return state
    cause = max(excess, key=lambda delta: (excess[delta], delta))
    return _alarmed(name, state, cause, start=start, cells=cells, settings=settings)


def _advance_departures(
    before: Mapping[float, Cusum], start: datetime, cells: Cells, settings: DetectorSettings
) -> tuple[dict[float, Cusum], dict[float, float]]:
    """The CUSUMs of all departures after one more interval, and by how much each is over its threshold, if it is."""
    cusums: dict[float, Cusum] = {}
    excess: dict[float, float] = {}
    for delta, spend in _departures(settings.metric):
        cusums[delta], over = _advance_departure(delta, spend, before.get(delta, ZERO), start, cells, settings)
        if over >= 0:
            excess[delta] = over
    return cusums, excess


def _advance_departure(
    delta: float, spend: float, cusum: Cusum, start: datetime, cells: Cells, settings: DetectorSettings
) -> tuple[Cusum, float]:
    """The CUSUM of one departure after one more interval, and by how much it is over its threshold."""
    judged = _judged(delta, cells, settings)
    if not judged:
        return cusum, -math.inf
    limit = threshold(_information(delta, judged, start), settings, spend)
    gain = _gain(delta, judged, start, limit)
    advanced = _advanced(cusum, gain, start, Counts.total(counts for counts, _ in judged))
    return advanced, advanced.score - limit


def _departures(metric: Metric) -> Iterable[tuple[float, float]]:
    """The departures to watch for, each with what it may spend of the budget."""
    for sign in metric.signs:
        for drop, spend in DROPS.items():
            yield sign * drop, spend


def _judged(delta: float, cells: Cells, settings: DetectorSettings) -> list[tuple[Counts, Baseline]]:
    """The task types that can be judged: those with a baseline, for a slight departure one that is long enough."""
    intervals = SLIGHT_BASELINE_S / settings.rules.interval_s if abs(delta) == SLIGHT else 0.0
    judged = []
    for counts, normal in cells.values():
        if normal is not None and normal.counts.tasks >= normal.tasks_per_interval * intervals:
            judged.append((counts, normal))
    return judged


def _information(delta: float, judged: Iterable[tuple[Counts, Baseline]], start: datetime) -> float:
    """The evidence that one interval gives where the departure is real."""
    information = 0.0
    for _, normal in judged:
        rate = rate_at(normal.rates, start)
        away = departed(rate, delta)
        most = 2 * normal.tasks_per_interval  # most of the evidence comes in the busy hours
        information += log_ratio(most, most * away, rate, away) / normal.dispersion
    return information


def _gain(delta: float, judged: Sequence[tuple[Counts, Baseline]], start: datetime, limit: float) -> float:
    """The log likelihood ratio of the departure to the baseline.

    The baseline is estimated. An error e thins the tail to exp(-h (1 - 2 e / delta)); on average over e of variance v
    that is exp(2 h^2 v / delta^2) times too many alarms, and moving both rates by h v / delta undoes exactly that, at
    the least delay.
    """
    learnt_from = sum(normal.counts.tasks for _, normal in judged)
    gain = 0.0
    for counts, normal in judged:
        rate = rate_at(normal.rates, start)
        variance = FITTED * normal.dispersion * rate * (1 - rate) / learnt_from
        error = limit * variance / abs(departed(rate, delta) - rate)
        null = departed(rate, math.copysign(error, delta))
        gain += log_ratio(counts.tasks, counts.successes, null, departed(null, delta)) / normal.dispersion
    return gain


def _advanced(cusum: Cusum, gain: float, start: datetime, counts: Counts) -> Cusum:
    """The CUSUM after one more interval; it begins anew where nothing is left of it (Page 1954)."""
    score = cusum.score + gain
    if score <= 0:
        return ZERO
    return Cusum(score=score, since=cusum.since or start, counts=Counts.total((cusum.counts, counts)))


def _is_below_the_floor(low: Counts, tasks: int, settings: DetectorSettings) -> bool:
    """Whether so few successes are beyond chance at the floor.

    Every window of the series' `tasks` could have been low by chance: they share the budget.
    """
    window = settings.rules.floor_window_tasks
    if low.tasks < window:
        return False
    level = BUDGET / (settings.series_count * max(1, tasks // window))
    return binomial_tail(low.successes, low.tasks, settings.rules.success_floor) <= level


def _alarmed(
    name: str, state: Series, cause: float, *, start: datetime, cells: Cells, settings: DetectorSettings
) -> Series:
    """The series with the alarm that one of its CUSUMs raises."""
    cusum = state.cusums[cause]
    baselines = {task_type: normal for task_type, (_, normal) in cells.items() if normal is not None}
    usual = Counts.total(normal.counts for normal in baselines.values()) if baselines else None
    healthy = {task_type: normal.rates for task_type, normal in baselines.items()}
    if cause == FLOOR:
        # Over once the rate is credibly above the floor: half-way between the two is the turning point.
        healthy = dict.fromkeys(cells, (departed(settings.rules.success_floor, SLIGHT),))
    reason = _reason(cause, cusum, usual, settings)
    end = start + timedelta(seconds=settings.rules.interval_s)
    anomaly = anomaly_of(
        metric=settings.metric.name, name=name, raised=start, at=end, cusum=cusum, usual=usual, reason=reason
    )
    dispersion = max((normal.dispersion for normal in baselines.values()), default=1.0)
    alarm = Alarm(anomaly=anomaly, cause=cause, healthy=healthy, dispersion=dispersion)
    return state.model_copy(update={"alarm": alarm})


def _reason(cause: float, cusum: Cusum, usual: Counts | None, settings: DetectorSettings) -> str:
    """What was observed since the onset, and against what it was judged."""
    counts = cusum.counts
    observed = f"{counts.rate or 0:.1%} ({counts.successes} of {counts.tasks})"
    evidence = f"log likelihood ratio {cusum.score:.1f}"
    if settings.metric.volume:
        observed = f"{counts.successes} tasks"
        evidence = f"where {counts.tasks - counts.successes} were usual; {evidence}"
    elif cause == FLOOR:
        evidence = f"{cusum.score:.0f} short of the floor of {settings.rules.success_floor:.0%}, beyond chance"
    else:
        evidence = f"against {usual.rate if usual else 0:.1%} in the baseline; {evidence}"
    return f"{settings.metric.name} {observed} since onset, {evidence}"


def anomaly_of(
    *, metric: str, name: str, raised: datetime, at: datetime, cusum: Cusum, usual: Counts | None, reason: str
) -> Anomaly:
    """An anomaly, named by what it is about and the instant that raised it."""
    return Anomaly(
        anomaly_id=f"{subject_of(metric, name)}#{raised:%Y-%m-%dT%H:%M:%SZ}",
        metric=metric,
        task_type=name if name != PLATFORM else "",
        onset=cusum.since or raised,
        detected_at=at,
        observed=cusum.counts,
        baseline=usual,
        reason=reason,
    )


def _recover(state: Series, alarm: Alarm, start: datetime, cells: Cells, settings: DetectorSettings) -> Series:
    """Close the alarm when health is likelier than the departure, by enough.

    The evidence of each type is bounded, that against health at half of that for it: once most of a platform is well
    again, the rest is no longer its alarm.
    """
    delta = _lasting_departure(alarm)
    recovery = dict(alarm.recovery)
    for name, (counts, _) in cells.items():
        if name not in alarm.healthy:
            continue
        rate = rate_at(alarm.healthy[name], start)
        gain = log_ratio(counts.tasks, counts.successes, departed(rate, delta), rate) / alarm.dispersion
        recovery[name] = min(CLOSING, max(-CLOSING / 2, recovery.get(name, 0.0) + gain))
    if sum(recovery.values()) < CLOSING:
        return state.model_copy(update={"alarm": alarm.model_copy(update={"recovery": recovery})})
    return healthy_again(state, alarm, start, settings.rules)


def _followed(name: str, state: Series, start: datetime, cells: Cells, settings: DetectorSettings) -> Series:
    """The series after one more interval of its alarm: raised anew where it has become clearly worse than it was.

    What it has settled at stands in for the baseline: the same CUSUM, at the same threshold. After a clear improvement
    it settles anew, so that what a fix has won can be lost again.
    """
    alarm = state.alarm
    if alarm is None or settings.metric.volume:
        return state
    settled = {task_type: (counts, _settled(alarm, task_type)) for task_type, (counts, _) in cells.items()}
    further = -CLEAR if alarm.cause == FLOOR else math.copysign(CLEAR, alarm.cause)  # the way that the alarm went
    spend = DROPS[CLEAR]
    worse, over_worse = _advance_departure(further, spend, alarm.worse, start, settled, settings)
    better, over_better = _advance_departure(-further, spend, alarm.better, start, settled, settings)
    if over_worse >= 0:
        return _raised_anew(name, state, alarm, worse, start, settings)
    levels = alarm.levels
    if over_better >= 0:
        levels = _joined({}, cells)
        better = ZERO
    elif worse == ZERO:
        levels = _joined(levels, cells)
    following = alarm.model_copy(update={"levels": levels, "worse": worse, "better": better})
    return state.model_copy(update={"alarm": following})


def _settled(alarm: Alarm, task_type: str) -> Baseline | None:
    """The level of a task type as a baseline; None where too few tasks show it."""
    level = alarm.levels.get(task_type, Level())
    if level.counts.tasks < PRIOR_TASKS:
        return None
    return Baseline(
        counts=level.counts,
        rates=(smoothed(level.counts.successes, level.counts.tasks),),
        tasks_per_interval=level.counts.tasks / level.intervals,
        dispersion=alarm.dispersion,
    )


def _joined(levels: Mapping[str, Level], cells: Cells) -> dict[str, Level]:
    """The levels with one more interval."""
    joined = dict(levels)
    for task_type, (counts, _) in cells.items():
        level = levels.get(task_type, Level())
        joined[task_type] = Level(counts=Counts.total((level.counts, counts)), intervals=level.intervals + 1)
    return joined


def _raised_anew(
    name: str, state: Series, alarm: Alarm, worse: Cusum, start: datetime, settings: DetectorSettings
) -> Series:
    """The series with another alarm in place of the one that was open: the same health, and an onset of its own."""
    settled = Counts.total(level.counts for level in alarm.levels.values())
    counts = worse.counts
    reason = (
        f"{settings.metric.name} {counts.rate or 0:.1%} ({counts.successes} of {counts.tasks}) since onset, "
        f"against {settled.rate or 0:.1%} since the alarm before it; log likelihood ratio {worse.score:.1f}"
    )
    end = start + timedelta(seconds=settings.rules.interval_s)
    metric, usual = settings.metric.name, alarm.anomaly.baseline
    anomaly = anomaly_of(metric=metric, name=name, raised=start, at=end, cusum=worse, usual=usual, reason=reason)
    anew = Alarm(anomaly=anomaly, cause=alarm.cause, healthy=alarm.healthy, dispersion=alarm.dispersion)
    without_alarm = healthy_again(state, alarm, start, settings.rules)
    return without_alarm.model_copy(update={"alarm": anew})


def _lasting_departure(alarm: Alarm) -> float:
    """Half of the departure observed when the alarm was raised, between the slight and the clear one.

    Chance helped to raise it, and what is likelier than too large a departure need not be health.
    """
    usual = alarm.anomaly.baseline
    if alarm.cause == FLOOR or usual is None:
        return -SLIGHT
    departure = abs((alarm.anomaly.observed.rate or 0.0) - (usual.rate or 0.0))
    return math.copysign(min(max(SLIGHT, departure / 2), CLEAR), alarm.cause)


def restarted(state: Series) -> Series:
    """The series without its alarm and without the evidence so far."""
    return state.model_copy(update={"alarm": None, "cusums": {}})


def healthy_again(state: Series, alarm: Alarm, end: datetime, rules: ObservatoryRules) -> Series:
    """The series without its alarm, which is over. No baseline learns from the episode."""
    oldest = end - timedelta(seconds=rules.baseline_s + rules.guard_s)
    recent = [(onset, over) for onset, over in state.episodes if over > oldest]
    return restarted(state).model_copy(update={"episodes": (*recent, (alarm.anomaly.onset, end))})


def dismiss(state: Series, at: datetime, rules: ObservatoryRules) -> Series:
    """The series after a person has closed its alarm: what is still wrong is raised anew, once the evidence is enough.

    Silence needs no evidence but its length, and would be raised at once: it stays open until tasks arrive again.
    """
    if state.alarm is None or state.alarm.anomaly.metric == SILENCE:
        return state
    return healthy_again(state, state.alarm, at, rules)
