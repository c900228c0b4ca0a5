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
    Cells,
    Cusum,
    DetectorSettings,
    Metric,
    Series,
    anomaly_of,
    healthy_again,
    step,
)
from schema.messages.observatory import Anomaly, Counts, Interval
from schema.messages.platform import ObservatoryRules

DEMAND = 0.45  # the share of this week in two weeks' tasks that is still usual: a fifth fewer is demand, not a fault
CULPRIT = 0.75  # the share of the platform's evidence with which one type explains it


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
) -> Detection:
    """Judge every complete interval up to `at` that no earlier evaluation has judged, oldest first.

    `history` holds the intervals of each task type, oldest first; empty ones may be missing. `states` and the result's
    are keyed like `Anomaly.subject`. `excluded` are spans to keep out of a type's baseline: its experiments, and all
    that came before its last promotion. The first one judges the guard gap.
    """
    settings = DetectorSettings(metric, rules, series_count or len(history) + 1)
    width, recent = timedelta(seconds=rules.interval_s), timedelta(seconds=max(rules.guard_s, rules.floor_window_s))
    reach = timedelta(seconds=rules.baseline_s) + recent
    mine = [s.seen for subject, s in states.items() if s.seen and subject.startswith(f"{metric.name}:")]
    # After a pause longer than a baseline, what lies before it is history: the cost never grows with the pause.
    seen = max(max(mine, default=at - recent), at - reach)
    tracks = {
        name: [i for i in intervals[bisect_left(intervals, seen - reach, key=START) :] if i.start + width <= at]
        for name, intervals in history.items()
    }
    evaluation = _Evaluation(at, settings, tracks, dict(states), excluded or {})
    for start in sorted({i.start for track in tracks.values() for i in track if i.start > seen}):
        evaluation.judge(start)
    evaluation.retire(metric.name)
    if metric.floor:
        whole = len(tracks) > 1 and evaluation.silent("", list(tracks))
        for name in tracks:
            if not whole or evaluation.state(name, SILENCE).alarm is not None:
                evaluation.silent(name, [name])
        evaluation.retire(SILENCE)
    return Detection(evaluation.states, tuple(evaluation.raised), tuple(evaluation.closed))


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
    states, raised, closed = dict(states), list[Anomaly](), list[Closing]()
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
        closed += [closing for closing in found.closed if closing.anomaly_id not in hushed]
        for name in (*by_type, ""):
            for state in (states.get(f"{one}:{name or PLATFORM}", NEW) for one in (metric.name, SILENCE)):
                since = state.alarm.anomaly.onset if state.alarm is not None else None
                still |= {name} if since and by_type else set()
                past[name] = (*past.get(name, ()), *state.episodes, *([(since, at)] if since else []))
    return Detection(states, tuple(raised), tuple(closed))


@dataclass
class _Evaluation:
    """One evaluation of all task types and, where there are several, the platform, whose name is empty."""

    at: datetime
    settings: DetectorSettings
    tracks: dict[str, list[Interval]]
    states: dict[str, Series]
    excluded: Mapping[str, Sequence[Span]]
    raised: list[Anomaly] = field(default_factory=list)
    closed: list[Closing] = field(default_factory=list)
    normals: dict[str, tuple[object, Baseline | None]] = field(default_factory=dict)

    def state(self, name: str, metric: str = "") -> Series:
        return self.states.get(f"{metric or self.settings.metric.name}:{name or PLATFORM}", NEW)

    def put(self, name: str, after: Series, metric: str = "", over: str = "health is far likelier now") -> None:
        """Keep a state: an alarm that is new in it is raised, one that is gone from it is over."""
        before = self.state(name, metric).alarm
        self.states[f"{metric or self.settings.metric.name}:{name or PLATFORM}"] = after
        if before is not None and after.alarm is None:
            self.closed.append(Closing(before.anomaly.anomaly_id, over))
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
        alarm = self.state(name, SILENCE).alarm
        if alarm is not None and busy and busy[-1].start >= alarm.anomaly.onset:
            self.put(name, Series(), SILENCE, over="tasks come again")
            alarm = None
        if alarm is not None or not busy or (since := busy[-1].start + width) >= self.at:
            return alarm is not None
        lag = timedelta(days=7 if since - busy[0].start >= timedelta(days=7) else 1)
        usual = Counts.total(i.counts for i in busy if since <= i.start + lag < self.at)
        longest = max((b.start - a.start for a, b in pairwise(busy)), default=width) - width
        rare = math.log2(WEEK_S / width.total_seconds() * self.settings.series_count / BUDGET)
        if usual.tasks < rare or self.at - since <= longest:
            return False
        silence_h, before_h = (gap.total_seconds() / 3_600 for gap in (self.at - since, longest))
        usually = f"{usual.tasks} came {'a week' if lag.days == 7 else 'a day'} earlier"
        why = f"no task for {silence_h:.3g} h, where {usually}; the longest gap before took {before_h:.3g} h"
        anomaly = anomaly_of(SILENCE, name, self.at, self.at, Cusum(since=since), usual, why)
        self.put(name, Series(alarm=Alarm(anomaly=anomaly)), SILENCE)
        return True

    def retire(self, metric: str) -> None:
        """Close the alarms on task types that are gone: nothing is left of them in all that is evaluated.

        The silence of the whole platform stays, and what is about no task type: nothing else would tell of it.
        """
        for subject, state in list(self.states.items()):
            if state.alarm is None or not subject.startswith(f"{metric}:"):
                continue
            about = [state.alarm.anomaly.task_type] if state.alarm.anomaly.task_type else [*state.alarm.healthy]
            left = [name for name in about if any(i.counts.tasks for i in self.tracks.get(name, ()))]
            if left or not about or not {"", PLATFORM}.isdisjoint(about):
                continue
            after = Series() if metric == SILENCE else healthy_again(state, state.alarm, self.at, self.settings.rules)
            why = f"gone, which is no recovery: no task of {', '.join(sorted(about))} within a whole baseline"
            self.put(subject.partition(":")[2], after, metric, over=why)
