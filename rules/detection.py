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
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain, pairwise, product
from statistics import fmean, median
from typing import NamedTuple

from rules.baseline import HOURS, PRIOR_TASKS, START, WEEK_S, Baseline, Span, baseline, dispersion
from rules.series import (
    BUDGET,
    METRICS,
    NEW,
    PLATFORM,
    SILENCE,
    SUCCESS_RATE,
    ZERO,
    Alarm,
    Cell,
    Cells,
    Cusum,
    DetectorSettings,
    Metric,
    Series,
    anomaly_of,
    healthy_again,
    restarted,
    step,
    subject_of,
)
from schema.messages.observatory import Anomaly, Counts, Interval
from schema.messages.platform import ObservatoryRules

DEMAND = 0.45  # the share of this week in two weeks' tasks that is still usual: a fifth fewer is demand, not a fault
CULPRIT = 0.75  # the share of the platform's evidence with which one type explains it
DAY, WEEK = timedelta(days=1), timedelta(days=7)


class Closing(NamedTuple):
    """An anomaly that is over, and why: to be well again and to be gone are not the same."""

    anomaly_id: str
    reason: str


class Detection(NamedTuple):
    """One evaluation: the states to carry in the snapshot by subject, what to raise, and which anomalies are over."""

    states: dict[str, Series]
    raised: tuple[Anomaly, ...] = ()
    closed: tuple[Closing, ...] = ()


def detect(
    at: datetime,
    history: Mapping[str, Sequence[Interval]],
    states: Mapping[str, Series],
    rules: ObservatoryRules,
    metric: Metric = SUCCESS_RATE,
    series_count: int | None = None,
    excluded: Mapping[str, Sequence[Span]] | None = None,
    explained: Collection[str] = (),
) -> Detection:
    """Judge every complete interval up to `at` that no earlier evaluation has judged, oldest first.

    `history` holds the intervals of each task type, oldest first; empty ones may be missing. `states` and the result's
    are keyed like `Anomaly.subject`. `excluded` are spans to keep out of a type's baseline: its experiments, and all
    that came before its last promotion. What is wrong with the `explained` types has been raised elsewhere: it is no
    evidence that something is wrong with the platform.

    The first evaluation judges the guard gap: the latest stretch, which no baseline learns from, so that a fault that
    has just begun is not taken for normal.
    """
    # What a baseline must not learn from yet, or the window of the floor where that is longer: it is judged first.
    recent = timedelta(seconds=max(rules.guard_s, rules.floor_window_s))
    lookback = timedelta(seconds=rules.baseline_s) + recent
    last_judged = _last_judged(metric, states, default=at - recent, earliest=at - lookback)
    last_complete = at - timedelta(seconds=rules.interval_s)
    tracks = _complete_tracks(history, first=last_judged - lookback, last=last_complete)
    own_series = len(history) + 1  # each task type, and the platform
    evaluation = _Evaluation(
        at=at,
        settings=DetectorSettings(metric, rules, series_count or own_series),
        tracks=tracks,
        states=dict(states),
        excluded=excluded or {},
        explained=frozenset(explained),
    )
    unjudged = {interval.start for interval in chain.from_iterable(tracks.values()) if interval.start > last_judged}
    for start in sorted(unjudged):
        evaluation.judge(start)
    evaluation.retire(metric.name)
    if metric.floor:
        evaluation.judge_silences()
        evaluation.retire(SILENCE)
    return Detection(evaluation.states, tuple(evaluation.raised), tuple(evaluation.closed))


def _last_judged(metric: Metric, states: Mapping[str, Series], default: datetime, earliest: datetime) -> datetime:
    """The start of the last interval that an earlier evaluation judged; `default` where none has judged any."""
    own_states = [state for subject, state in states.items() if subject.startswith(f"{metric.name}:")]
    seen = [state.seen for state in own_states if state.seen is not None]
    if not seen:
        return default
    # After a pause longer than a baseline, what lies before it is history: the cost never grows with the pause.
    return max(*seen, earliest)


def _complete_tracks(
    history: Mapping[str, Sequence[Interval]], first: datetime, last: datetime
) -> dict[str, list[Interval]]:
    """The intervals of each task type that start from `first` to `last`, both included."""
    tracks = dict[str, list[Interval]]()
    for name, intervals in history.items():
        begin = bisect_left(intervals, first, key=START)
        tracks[name] = [interval for interval in intervals[begin:] if interval.start <= last]
    return tracks


def detect_all(
    at: datetime,
    histories: Mapping[str, Mapping[str, Sequence[Interval]]],
    states: Mapping[str, Series],
    rules: ObservatoryRules,
    excluded: Mapping[str, Sequence[Span]] | None = None,
) -> Detection:
    """`detect` for every metric that has a history, by its name; all series of all metrics share the budget.

    What has no task types has one series, named "platform". One cause is one anomaly: while silence or an earlier
    metric has an open alarm on a task type, or on all of them, a later one raises none there, and does not learn its
    normal from that time. What is still wrong afterwards is raised then.
    """
    unknown = histories.keys() - {metric.name for metric in METRICS}
    if unknown:
        raise ValueError(f"expected histories of declared metrics, but {', '.join(sorted(unknown))} came")
    series_count = sum(_series_count(history) for history in histories.values())
    excluded = excluded or {}
    carried = dict(states)
    raised: list[Anomaly] = []
    closed: list[Closing] = []
    earlier = _EarlierAlarms()
    for metric in METRICS:
        history = histories.get(metric.name, {})
        task_types = history.keys() - {PLATFORM}
        spans = {name: (*excluded.get(name, ()), *earlier.spans_of(name)) for name in task_types}
        detection = detect(
            at,
            history,
            carried,
            rules,
            metric=metric,
            series_count=series_count,
            excluded=spans,
            explained=earlier.alarmed & task_types,
        )
        if task_types:  # alarms are of task types: they explain nothing of a metric without any
            detection = earlier.without_explained(detection)
        carried = detection.states
        raised += detection.raised
        closed += detection.closed
        earlier.add(metric, task_types, carried, at)
    return Detection(carried, tuple(raised), tuple(closed))


def _series_count(history: Mapping[str, Sequence[Interval]]) -> int:
    """One series for each task type and, where there are several, one for the platform."""
    return len(history) + 1 if len(history) > 1 else len(history)


@dataclass
class _EarlierAlarms:
    """The alarms of the metrics that were judged before, by task type; the empty name stands for all types."""

    alarmed: set[str] = field(default_factory=set)
    spans: dict[str, tuple[Span, ...]] = field(default_factory=dict)

    def without_explained(self, detection: Detection) -> Detection:
        """The detection without the anomalies that these alarms explain; the series of those start anew."""
        explained = [a for a in detection.raised if "" in self.alarmed or a.task_type in self.alarmed]
        explained_ids = {anomaly.anomaly_id for anomaly in explained}
        states = dict(detection.states)
        for anomaly in explained:
            states[anomaly.subject] = restarted(states[anomaly.subject])
        raised = tuple(anomaly for anomaly in detection.raised if anomaly.anomaly_id not in explained_ids)
        closed = tuple(closing for closing in detection.closed if closing.anomaly_id not in explained_ids)
        return Detection(states, raised, closed)

    def spans_of(self, name: str) -> tuple[Span, ...]:
        return (*self.spans.get(name, ()), *self.spans.get("", ()))

    def add(self, metric: Metric, task_types: Collection[str], states: Mapping[str, Series], at: datetime) -> None:
        """Add the alarms of one more metric, and of silence; one that is open lasts until `at`."""
        for name, watched in product((*task_types, ""), (metric.name, SILENCE)):
            state = states.get(subject_of(watched, name), NEW)
            alarm_spans = state.episodes
            if state.alarm is not None:
                alarm_spans = (*alarm_spans, (state.alarm.anomaly.onset, at))
                # A metric without task types says nothing of any type: it explains no later alarm.
                if task_types:
                    self.alarmed.add(name)
            self.spans[name] = (*self.spans.get(name, ()), *alarm_spans)


@dataclass
class _Evaluation:
    """One evaluation of all task types and, where there are several, the platform, whose name is empty."""

    at: datetime
    settings: DetectorSettings
    tracks: dict[str, list[Interval]]
    states: dict[str, Series]
    excluded: Mapping[str, Sequence[Span]]
    explained: frozenset[str] = frozenset()
    raised: list[Anomaly] = field(default_factory=list)
    closed: list[Closing] = field(default_factory=list)
    # By all that they were learnt from.
    baselines: dict[tuple[object, ...], Baseline | None] = field(default_factory=dict)

    def state(self, name: str, metric: str = "") -> Series:
        return self.states.get(subject_of(metric or self.settings.metric.name, name), NEW)

    def put(self, name: str, after: Series, metric: str = "", reason: str = "health is far likelier now") -> None:
        """Keep a state: an alarm that is new in it is raised, one that is gone from it is closed for `reason`."""
        before = self.state(name, metric).alarm
        self.states[subject_of(metric or self.settings.metric.name, name)] = after
        open_before = before.anomaly.anomaly_id if before else None
        open_now = after.alarm.anomaly.anomaly_id if after.alarm else None
        if open_before == open_now:
            return
        if open_before is not None:
            self.closed.append(Closing(open_before, reason if open_now is None else "it became worse: raised anew"))
        if after.alarm is not None:
            self.raised.append(after.alarm.anomaly)

    def normal(self, name: str, start: datetime) -> Baseline | None:
        """The baseline of a task type, without its past anomalies and those of the platform.

        It is renewed with every 168th of its window: each hour of a week's.
        """
        metric, rules = self.settings.metric, self.settings.rules
        every_s = rules.baseline_s / HOURS
        renewed_at = datetime.fromtimestamp(start.timestamp() // every_s * every_s, start.tzinfo)
        spans = (*self.excluded.get(name, ()), *self.state(name).episodes, *self.state("").episodes)
        key = (name, renewed_at, spans)
        if key not in self.baselines:
            self.baselines[key] = baseline(renewed_at, self.tracks[name], rules, spans, metric.clustered)
        return self.baselines[key]

    def tasks(self, names: Iterable[str], first: datetime, end: datetime) -> int:
        """The tasks of some types in the intervals that start in [first, end)."""
        total = 0
        for name in names:
            track = self.tracks[name]
            between = track[bisect_left(track, first, key=START) : bisect_left(track, end, key=START)]
            total += sum(interval.counts.tasks for interval in between)
        return total

    def volume(self, names: Sequence[str], start: datetime) -> Cell:
        """An interval's tasks, taken together, as a share of them and the usual ones.

        Of two Poisson counts, given their sum, each is binomial (Przyborowski & Wilenski 1940). Usual is the same
        interval a week ago, but no more than the median of that time of day: a week after a flood is no drought.
        A baseline shorter than a week holds no tasks of a week ago: nothing is usual, and nothing alarms.
        """
        width = timedelta(seconds=self.settings.rules.interval_s)
        now, *last_week = (self.tasks(names, start - lag * DAY, start - lag * DAY + width) for lag in range(8))
        usual = min(last_week[-1], median(last_week))
        hour = start.replace(minute=0, second=0, microsecond=0)
        key = (*names, hour)
        if key not in self.baselines:
            self.baselines[key] = self.usual_volume(names, hour)
        return Counts(tasks=now + usual, successes=now), self.baselines[key]

    def usual_volume(self, names: Sequence[str], at: datetime) -> Baseline | None:
        """The baseline of `volume`, from the week before the guard gap; None below PRIOR_TASKS tasks."""
        rules, hour = self.settings.rules, timedelta(hours=1)
        first = at - timedelta(seconds=rules.guard_s) - WEEK
        volumes = [self.tasks(names, first + h * hour, first + (h + 1) * hour) for h in range(HOURS)]
        if sum(volumes) < PRIOR_TASKS:
            return None
        # Five working days and two of the weekend, each with its own shape of the day.
        kinds = [(h % 24, (first + h * hour).weekday() >= 5) for h in range(HOURS)]
        by_kind = defaultdict[tuple[int, bool], list[int]](list)
        for kind, tasks in zip(kinds, volumes, strict=True):
            by_kind[kind].append(tasks)
        means = {kind: fmean(tasks) for kind, tasks in by_kind.items()}
        deviations = [(h // 24, volumes[h] - means[kind], means[kind]) for h, kind in enumerate(kinds)]
        both_weeks = Counts(tasks=2 * sum(volumes), successes=sum(volumes))
        per_interval = both_weeks.tasks * rules.interval_s / WEEK_S
        return Baseline(both_weeks, (DEMAND,), per_interval, dispersion(deviations, patterns=2))

    def together(self, names: Sequence[str], cells: Cells, start: datetime) -> Cells:
        """What the platform is judged by: its types side by side, or their volume in all, for types fall as one."""
        return {"": self.volume(names, start)} if self.settings.metric.volume else {name: cells[name] for name in names}

    def cell(self, name: str, start: datetime, is_watched: bool) -> Cell:
        """One interval of a task type; a baseline is learnt only for one that could raise an alarm."""
        if self.settings.metric.volume:
            return self.volume([name], start)
        track = self.tracks[name]
        i = bisect_left(track, start, key=START)
        counts = track[i].counts if i < len(track) and track[i].start == start else Counts()
        return counts, self.normal(name, start) if is_watched else None

    def judge(self, start: datetime) -> None:
        """Judge one interval: each type by itself, and the platform by the types without an alarm of their own."""
        alarmed = [name for name in self.tracks if self.state(name).alarm is not None]
        watched = [name for name in self.tracks if name not in alarmed]
        platform_is_alarmed = self.state("").alarm is not None
        if platform_is_alarmed:
            watched = []  # a type without an alarm raises none while the platform has one

        cells = {name: self.cell(name, start, name in watched) for name in self.tracks}
        after = {name: self.stepped(name, start, {name: cells[name]}) for name in watched + alarmed}
        if platform_is_alarmed:
            platform = self.stepped("", start, self.together(list(self.tracks), cells, start))
            if _is_another_alarm(self.state(""), platform):
                # What makes it clearly worse may be of one type: from here on each is judged by itself again.
                self.put("", restarted(platform), reason="it became worse: each task type is judged by itself again")
            else:
                after[""] = platform
        elif len(self.tracks) > 1:
            unexplained = [name for name in watched if name not in self.explained]
            platform = self.stepped("", start, self.together(unexplained, cells, start))
            after.update(_attributed(platform, {name: after[name] for name in unexplained}))
        for name, state in after.items():
            self.put(name, state)

    def stepped(self, name: str, start: datetime, cells: Cells) -> Series:
        """The state of a series after one more interval; nothing is kept yet."""
        return step(name, self.state(name), start, cells, settings=self.settings)

    def judge_silences(self) -> None:
        """Judge the silence of the platform and, where it is not silent as a whole, of each task type."""
        several = len(self.tracks) > 1
        if several:
            self.judge_silence("", list(self.tracks))
        all_silent = several and self.state("", SILENCE).alarm is not None
        for name in self.tracks:
            if not all_silent or self.state(name, SILENCE).alarm is not None:
                self.judge_silence(name, [name])

    def judge_silence(self, name: str, types: Sequence[str]) -> None:
        """Raise or close the silence of some types, taken together."""
        intervals = chain.from_iterable(self.tracks[task_type] for task_type in types)
        busy = sorted((interval for interval in intervals if interval.counts.tasks), key=START)
        if not busy:
            return
        alarm = self.state(name, SILENCE).alarm
        if alarm is not None:
            if busy[-1].start < alarm.anomaly.onset:
                return
            self.put(name, Series(), SILENCE, "tasks arrive again")
        anomaly = self.silence(name, busy)
        if anomaly is not None:
            self.put(name, Series(alarm=Alarm(anomaly=anomaly)), SILENCE)

    def silence(self, name: str, busy: Sequence[Interval]) -> Anomaly | None:
        """The silence since the last of the busy intervals, which are in order; None where it may be chance.

        The silence must be longer than any before, and the same stretch a week ago (or a day, on a young platform)
        must have had so many tasks that chance is no explanation: of n tasks in two stretches of equal volume, all fall
        in the earlier one with probability 2^-n. Where less than a day is read, as at trial pace, there is nothing to
        compare with, and no silence is raised.
        """
        width = timedelta(seconds=self.settings.rules.interval_s)
        since = busy[-1].start + width
        silence = self.at - since
        longest_gap = _longest_gap(busy, width)
        if silence <= max(timedelta(0), longest_gap):
            return None
        lag = WEEK if since - busy[0].start >= WEEK else DAY
        usual = Counts.total(interval.counts for interval in busy if since <= interval.start + lag < self.at)
        # With fewer, some series would be silent by chance more often than the budget allows.
        fewest = math.log2(WEEK_S / width.total_seconds() * self.settings.series_count / BUDGET)
        if usual.tasks < fewest:
            return None
        reason = _silence_in_words(silence, longest_gap, usual.tasks, lag)
        cusum = Cusum(since=since)
        return anomaly_of(
            metric=SILENCE, name=name, raised=self.at, at=self.at, cusum=cusum, usual=usual, reason=reason
        )

    def retire(self, metric: str) -> None:
        """Close the alarms on task types that are gone: nothing is left of them in all that is evaluated.

        The silence of the whole platform stays, and what is about no task type: nothing else would report it.
        """
        busy = {name for name, track in self.tracks.items() if any(interval.counts.tasks for interval in track)}
        for subject, state in list(self.states.items()):
            if state.alarm is None or not subject.startswith(f"{metric}:"):
                continue
            anomaly = state.alarm.anomaly
            affected = {anomaly.task_type} if anomaly.task_type else set(state.alarm.healthy)
            if not affected or not affected.isdisjoint({"", PLATFORM, *busy}):
                continue
            after = Series() if metric == SILENCE else healthy_again(state, state.alarm, self.at, self.settings.rules)
            reason = f"retired, not recovered: no task of {', '.join(sorted(affected))} within a whole baseline"
            self.put(subject.partition(":")[2], after, metric, reason)


def _longest_gap(busy: Sequence[Interval], width: timedelta) -> timedelta:
    """The longest time without a task between two intervals with some, which are in order; 0 with fewer than two."""
    gaps = [later.start - earlier.start - width for earlier, later in pairwise(busy)]
    return max(gaps, default=timedelta(0))


def _silence_in_words(silence: timedelta, longest_gap: timedelta, usual_tasks: int, lag: timedelta) -> str:
    usually = f"{usual_tasks} came {'a week' if lag == WEEK else 'a day'} earlier"
    before = f"the longest gap before took {_hours(longest_gap):.3g} h"
    return f"no task for {_hours(silence):.3g} h, where {usually}; {before}"


def _hours(time: timedelta) -> float:
    return time.total_seconds() / 3_600


def _is_another_alarm(before: Series, after: Series) -> bool:
    """Whether an alarm was raised anew in place of the one that was open."""
    if before.alarm is None or after.alarm is None:
        return False
    return before.alarm.anomaly.anomaly_id != after.alarm.anomaly.anomaly_id


def _attributed(platform: Series, types: Mapping[str, Series]) -> dict[str, Series]:
    """The states after an interval, so that one cause raises one alarm: the platform's, or that of a type."""
    alarm = platform.alarm
    if alarm is not None:
        strongest = max(state.cusums.get(alarm.cause, ZERO).score for state in types.values())
        if strongest < CULPRIT * platform.cusums[alarm.cause].score:
            return {name: restarted(state) for name, state in types.items()} | {"": platform}
        # One type explains it, and is raised as soon as its own evidence is enough.
        platform = platform.model_copy(update={"alarm": None})
    if any(state.alarm for state in types.values()):
        # What a type explains must not be raised for the platform a little later.
        platform = platform.model_copy(update={"cusums": {}})
    return {**types, "": platform}
