"""The report as one self-contained page: no script, no request, and a policy that forbids both.

The template escapes all that it shows: what agents and people wrote can only ever be text. Their words are isolated
(`bdi`), so that right-to-left writing stays where it is, and cut to what a person reads.
"""

import base64
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from activities.reason_text import NOT_MEASURED
from activities.report_text import compared, escalated, headline, issue_counts, lasted
from rules.rates import wilson
from rules.texts import difference
from schema.display import one_line
from schema.messages.base import Value, format_value
from schema.messages.experiment import ExperimentDesign
from schema.messages.observatory import Counts, Interval
from schema.messages.report import ExperimentRecord, Report

HERE = Path(__file__).parent
# The characters shown of a text by an agent or a person; the ledger has all of it.
LONGEST = 400
# The lines shown of how a text changes.
MOST_DIFFERENCE = 80
# Beyond e = a million in either direction a chart shows nothing more.
MOST_LOG_E = 14.0

Points = Sequence[tuple[float, float]]
Ticks = Sequence[tuple[float, str]]


class Mark(NamedTuple):
    """Something that happened at `x`, with a sign and a description."""

    x: float
    kind: str
    sign: str
    description: str


class Span(NamedTuple):
    """A time that is shaded from `begin` to `end`, with a sign at its beginning and a description."""

    begin: float
    end: float
    sign: str
    description: str


class Episode(NamedTuple):
    """A fault of a simulated platform: when it lasted, of which task type (all, where empty), what became of it."""

    name: str
    begin: datetime
    end: datetime
    task_type: str
    verdict: str
    story: str


class Chart(NamedTuple):
    """Lines and bands in the data's own units; `across` and `up` are what the axes span, within fixed margins."""

    description: str
    width: int
    height: int
    across: tuple[float, float]
    up: tuple[float, float]
    x_ticks: Ticks
    y_ticks: Ticks
    dashed: float
    lines: Sequence[Points]
    bands: Sequence[Points] = ()
    marks: Sequence[Mark] = ()
    spans: Sequence[Span] = ()

    def x(self, value: float) -> float:
        low, high = self.across
        return round(44 + (self.width - 56) * (value - low) / (high - low), 1)

    def y(self, value: float) -> float:
        low, high = self.up
        top = 44 if self.marks else 10
        bottom = self.height - 26
        return round(bottom - (bottom - top) * (min(max(value, low), high) - low) / (high - low), 1)

    def path(self, points: Points) -> str:
        return "M" + "L".join(f"{self.x(x)} {self.y(y)}" for x, y in points)

    def placed(self) -> Iterator[tuple[float, int, Mark]]:
        """Marks in three rows: neighbours must not hide each other."""
        taken = [-math.inf] * 3
        for mark in self.marks:
            x = self.x(mark.x)
            row = next((row for row in range(3) if x - taken[row] >= 26), taken.index(min(taken)))
            taken[row] = x
            yield x, 12 + 13 * row, mark


def page(facts: Report, episodes: Sequence[Episode] = ()) -> str:
    """The whole document; `episodes` are drawn into the charts and listed with what became of them."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    texts = (compared, escalated, headline, issue_counts, lasted, format_value, words, difference)
    figures = (share, interval, swap, tally, points, evidence)
    environment.filters.update({filter_.__name__: filter_ for filter_ in texts + figures})
    style = (HERE / "report_page.css").read_text(encoding="utf-8")
    digest = hashlib.sha256(style.encode()).digest()
    platform, *task_types = facts.tracks
    large = [
        rates(facts, platform, episodes, width=1040, height=300, dates=7),
        rates(facts, platform, episodes, width=360, height=260, dates=3),
    ]
    small = [(name, rates(facts, name, episodes, width=360, height=200, dates=3)) for name in task_types]
    return environment.get_template("report_page.html").render(
        facts=facts,
        big=large,
        small=small,
        episodes=episodes,
        style=Markup(style),
        # The one style sheet, by its digest, is all that the page may use.
        digest=base64.b64encode(digest).decode(),
        NOT_MEASURED=NOT_MEASURED,
        MOST_DIFFERENCE=MOST_DIFFERENCE,
    )


# ---- the template's filters


def words(foreign: str) -> Markup:
    """What an agent or a person wrote: one line, isolated, and cut. A name stays in one piece where there is room."""
    line = one_line(foreign, LONGEST)
    return Markup('<bdi class="{}">{}</bdi>').format("words" if " " in line or len(line) > 44 else "name", line)


def share(counts: Counts) -> str:
    return "–" if counts.rate is None else f"{counts.rate:.1%}"


def interval(counts: Counts) -> str:
    low, high = wilson(counts.successes, counts.tasks)
    return f"{low:.0%} to {high:.0%}" if counts.tasks else "–"


def swap(old: Value | None, new: Value) -> str:
    return f"{format_value(old)} → {format_value(new)}"


def tally(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {re.sub('[._]', ' ', name)}" for name, n in sorted(counts.items())) or "–"


def points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "−")


# ---- charts


def _marks(facts: Report, name: str, since: datetime) -> Iterator[Mark]:
    """The changes of a task type's parameters, or of all, from `since` on, with their numbers in the report."""
    for number, change in enumerate(reversed(facts.changes), 1):
        if name and name not in change.task_types:
            continue
        kind, sign = ("rollback", "▼") if change.rolled_back else ("promotion", "▲")
        values = swap(change.before, change.promotion.value)
        text = f"{number}: {change.promotion.parameter} {values}, {change.at:%d %b %H:%M}"
        yield Mark(max(change.at, since).timestamp(), kind, f"{sign}{number}", text)


def rates(facts: Report, name: str, episodes: Sequence[Episode] = (), *, width: int, height: int, dates: int) -> Chart:
    """The success rate of a task type, or of the platform, in its 95 % band, broken where nothing was recorded.

    `width` and `height` are in pixels, and so many `dates` are written below. Promotions and rollbacks are marked.
    """
    # One scale for all charts, because a reader compares them: from the fifth below every bound, at most from 60 %.
    low = math.floor(min(_lowest_bound(facts), 0.6) * 5) / 5
    # From the first record on: before it, a young platform has nothing to show.
    since = min((t[0].start for t in facts.tracks.values() if t), default=facts.since)
    span = facts.until - since
    runs = _unbroken(facts.tracks[name], facts.interval_s)
    marks = list(_marks(facts, name, since))
    kinds = [mark.kind for mark in marks]
    date_format = "%H:%M" if span <= timedelta(days=1) else "%d %b"
    ticks = [since + span * n / (dates - 1) for n in range(dates)]
    fifths = range(round(5 * low), 6)
    shown = f"Success rate of {name or 'the platform'} in intervals of {lasted(facts.interval_s)}"
    marked = f"{kinds.count('promotion')} promotions and {kinds.count('rollback')} rollbacks are marked."
    return Chart(
        f"{shown}; {marked}",
        width,
        height,
        across=(since.timestamp(), facts.until.timestamp()),
        up=(low, 1.0),
        x_ticks=[(date.timestamp(), f"{date:{date_format}}") for date in ticks],
        y_ticks=[(n / 5, f"{n / 5:.0%}") for n in fifths],
        dashed=facts.success_floor,
        lines=[_line(run, facts) for run in runs],
        bands=[_band(run, facts) for run in runs],
        marks=marks,
        spans=list(_spans(episodes, name)),
    )


def _spans(episodes: Sequence[Episode], name: str) -> Iterator[Span]:
    """The faults of a task type, or, of the platform, all of them."""
    for number, episode in enumerate(episodes, 1):
        if not name or episode.task_type in ("", name):
            description = f"fault {number}: {episode.name}, {episode.verdict}"
            yield Span(episode.begin.timestamp(), episode.end.timestamp(), str(number), description)


def _line(run: Sequence[Interval], facts: Report) -> list[tuple[float, float]]:
    return _through(run, [interval.counts.rate or 0.0 for interval in run], facts)


def _band(run: Sequence[Interval], facts: Report) -> list[tuple[float, float]]:
    """Along the upper bounds and back along the lower ones."""
    intervals = [wilson(interval.counts.successes, interval.counts.tasks) for interval in run]
    upper = _through(run, [high for _, high in intervals], facts)
    lower = _through(run, [low for low, _ in intervals], facts)
    return upper + lower[::-1]


def _through(run: Sequence[Interval], figures: Sequence[float], facts: Report) -> list[tuple[float, float]]:
    """A line through the middles of intervals, from the first one's start to the last one's end."""
    starts = [interval.start.timestamp() for interval in run]
    middles = [start + facts.interval_s / 2 for start in starts]
    at = [min(x, facts.until.timestamp()) for x in (starts[0], *middles, starts[-1] + facts.interval_s)]
    return list(zip(at, [figures[0], *figures, figures[-1]], strict=True))


def _lowest_bound(facts: Report) -> float:
    """The lowest bound of any band on the page."""
    counts = [interval.counts for interval in chain(*facts.tracks.values())]
    return min((low for low, _ in (wilson(c.successes, c.tasks) for c in counts)), default=0)


def _unbroken(track: Sequence[Interval], interval_s: float) -> list[list[Interval]]:
    """The intervals in runs; where nothing was recorded between two, another run begins."""
    runs: list[list[Interval]] = []
    for interval in track:
        if runs and (interval.start - runs[-1][-1].start).total_seconds() <= 1.5 * interval_s:
            runs[-1].append(interval)
        else:
            runs.append([interval])
    return runs


def evidence(record: ExperimentRecord) -> Chart:
    """How the evidence grew with the tasks, against the threshold that suffices whatever the horizon."""
    design: ExperimentDesign = record.design
    enough = math.log(1 / design.alpha)
    tasks, _ = record.evidence[-1]
    logs = [log_e for _, log_e in record.evidence]
    return Chart(
        f"Running evidence: e = {math.exp(min(700.0, logs[-1])):.3g} after {tasks} tasks; "
        f"{1 / design.alpha:.0f} suffices for any horizon, a calibrated threshold may be lower.",
        *(360, 170),
        across=(0, tasks),
        up=(max(-MOST_LOG_E, min(-1.0, *logs)), min(MOST_LOG_E, max(1.3 * enough, *logs))),
        x_ticks=[(0, "0"), (tasks, f"{tasks}")],
        y_ticks=[(0, "1"), (enough, f"{1 / design.alpha:.0f}")],
        dashed=enough,
        lines=[[(0, 0.0), *record.evidence]],
    )
