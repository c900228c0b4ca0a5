"""The report as one self-contained page: no script, no request, and a policy that forbids both.

The page is built as a tree, and serialising it escapes: whatever agents and people wrote can only ever be text. Their
words are isolated (`bdi`), so that right-to-left writing stays where it is, and cut to what a person reads.
"""

import base64
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from activities.report import NOT_MEASURED, about, issues, lasted, outcome, rate, said, total
from rules.rates import wilson
from rules.standing import NEWCOMER_STANDING
from schema.messages.experiment import Reading
from schema.messages.observatory import Counts
from schema.messages.report import (
    AgentRecord,
    Change,
    ExperimentRecord,
    HealthPoint,
    Issue,
    Point,
    Report,
    Stretch,
    Track,
)

STYLE = Path(__file__).with_name("report_page.css")
# What is read of somebody's words; the ledger has all of them.
LONGEST = 400


def page(facts: Report) -> str:
    """The whole document."""
    style = STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    title = f"Nautilus report, {facts.since:%d %b %Y} to {facts.until:%d %b %Y}"
    # The one style sheet, by its digest, is all that the page may use.
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    main = tag(
        "main",
        _header(facts),
        _missing(facts),
        _headline(facts),
        _success(facts),
        _health(facts),
        _issues(facts),
        _experiments(facts),
        _agents(facts),
        _ledger(facts),
        _open(facts),
    )
    document = tag("html", head, tag("body", main), lang="en")
    return "<!doctype html>\n" + ET.tostring(document, encoding="unicode", method="html") + "\n"


def tag(name: str, /, *children: "ET.Element | str | None", **attributes: object) -> ET.Element:
    """An element; `class_` is class, and an underscore in any other name is a hyphen."""
    element = ET.Element(name, {k.rstrip("_").replace("_", "-"): str(v) for k, v in attributes.items()})
    for child in children:
        if isinstance(child, ET.Element):
            element.append(child)
        elif child:
            last = element[-1] if len(element) else None
            if last is None:
                element.text = (element.text or "") + child
            else:
                last.tail = (last.tail or "") + child
    return element


def words(foreign: str) -> ET.Element:
    """What somebody wrote: one line, isolated, and cut."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in foreign).split())
    # A name stays in one piece where there is room for it.
    kind = "name" if " " not in line and len(line) <= 44 else "words"
    return tag("bdi", line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…", class_=kind)


def _table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence["ET.Element | str"]], class_: str = "wide-rows"
) -> ET.Element:
    """The first cell of a row is its header; columns that begin with '#' hold figures. `compact` fits a phone."""
    numeric = ["n" if column.startswith("#") else "" for column in columns]
    head = (tag("th", c.lstrip("#"), scope="col", class_=n) for c, n in zip(columns, numeric, strict=True))

    def cell(position: int, content: "ET.Element | str") -> ET.Element:
        # Our own short words stay in one piece.
        kind = numeric[position] or ("k" if isinstance(content, str) and len(content) <= 24 else "")
        if position == 0:
            return tag("th", content, scope="row", class_=kind)
        return tag("td", content, class_=kind, data_label=columns[position].lstrip("#"))

    body = (tag("tr", *(cell(i, content) for i, content in enumerate(row))) for row in rows)
    table = tag("table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *body), class_=class_)
    return tag("div", table, class_="scroll")


def _section(name: str, title: str, *content: "ET.Element | str | None") -> ET.Element:
    return tag("section", tag("h2", title, id=name), *content, aria_labelledby=name)


def _instant(at: datetime | None) -> ET.Element | str:
    return tag("time", f"{at:%d %b %H:%M}", datetime=at.isoformat()) if at else "–"


# ---- the head of the page


def _header(facts: Report) -> ET.Element:
    period = f"{facts.since:%d %B %Y, %H:%M} to {facts.until:%d %B %Y, %H:%M} UTC"
    span = lasted((facts.until - facts.since).total_seconds())
    return tag(
        "header", tag("p", "Nautilus", class_="brand"), tag("h1", "What changed"), tag("p", f"{period} · {span}")
    )


def _missing(facts: Report) -> ET.Element | None:
    if not facts.missing:
        return None
    return tag(
        "section",
        tag("h2", "What is missing", id="missing"),
        tag("p", "Nothing of the following was recorded in this time, so the page is silent about it:"),
        tag("ul", *(tag("li", line) for line in facts.missing)),
        class_="note",
        aria_labelledby="missing",
    )


def _headline(facts: Report) -> ET.Element:
    nothing = Stretch(start=facts.since, end=facts.until)
    before, after = facts.before or nothing, facts.after or nothing
    rows: list[Sequence[ET.Element | str]] = [
        ("Success rate", _rate(before.counts), _rate(after.counts)),
        ("Mean completion time", *(_figure(lasted(s.mean_duration_s)) for s in (before, after))),
        ("95th percentile of it", *(_figure(lasted(s.p95_duration_s)) for s in (before, after))),
    ]
    caption = "The first and the last stretch of the period"
    if facts.before and facts.after:
        caption = f"The start is {_stretch(before)}, the end {_stretch(after)}"
    tiles = [
        tag("div", tag("dt", name.capitalize()), tag("dd", _figure(figure)), class_="tile")
        for name, figure in issues(facts)
    ]
    return _section(
        "headline",
        "In short",
        _table(caption, ("", "At the start", "At the end"), rows),
        tag("dl", *tiles, class_="tiles"),
    )


def _stretch(stretch: Stretch) -> str:
    return f"{stretch.start:%d %b %H:%M} to {stretch.end:%d %b %H:%M}"


def _rate(counts: Counts) -> ET.Element:
    if not counts.tasks:
        return _figure(NOT_MEASURED)
    figure, _, detail = rate(counts).partition(" (")
    return tag(
        "span", tag("b", figure, class_="figure"), " ", tag("small", detail.rstrip(")").replace("; ", ", 95 %: "))
    )


def _figure(text: str) -> ET.Element:
    return tag("span", text, class_="absent") if text == NOT_MEASURED else tag("b", text, class_="figure")


# ---- charts


class Plot(NamedTuple):
    """Where a chart's data lies on its canvas: a period across, `low` to `high` upwards; margins around it."""

    width: int
    height: int
    since: datetime
    until: datetime
    low: float
    high: float
    left: int = 44
    right: int = 12
    top: int = 44
    bottom: int = 26

    def x(self, at: datetime) -> float:
        return self.left + (self.width - self.left - self.right) * ((at - self.since) / (self.until - self.since))

    def y(self, value: float) -> float:
        inside = self.height - self.top - self.bottom
        return self.top + inside * (1 - (min(max(value, self.low), self.high) - self.low) / (self.high - self.low))


def _svg(plot: Plot, key: str, title: str, description: str, *content: ET.Element, class_: str = "") -> ET.Element:
    return tag(
        "svg",
        tag("title", title, id=f"{key}-title"),
        tag("desc", description, id=f"{key}-desc"),
        *content,
        viewBox=f"0 0 {plot.width} {plot.height}",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
        class_=class_,
    )


def _n(value: float) -> str:
    return f"{value:.1f}"


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _axes(plot: Plot, ticks: Sequence[float], say: Callable[[float], str], dates: int) -> Iterator[ET.Element]:
    for tick in ticks:
        y = _n(plot.y(tick))
        yield tag("line", x1=plot.left, x2=plot.width - plot.right, y1=y, y2=y, class_="grid")
        yield tag("text", say(tick), x=plot.left - 6, y=y, dy="0.35em", class_="axis end")
    span = plot.until - plot.since
    form = "%H:%M" if span <= timedelta(days=1) else "%d %b" if span <= timedelta(days=200) else "%b %Y"
    for number in range(dates):
        at = plot.since + span * number / (dates - 1)
        place = "" if number == 0 else " end" if number == dates - 1 else " middle"
        yield tag("text", f"{at:{form}}", x=_n(plot.x(at)), y=plot.height - 8, class_=f"axis{place}")


def _runs(points: Sequence[Point], interval_s: int) -> list[list[Point]]:
    """Points without a gap between them: a line over a gap would say that something was measured there."""
    runs: list[list[Point]] = []
    for point in points:
        if runs and (point.start - runs[-1][-1].start).total_seconds() <= 1.5 * interval_s:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def _together(points: Iterable[Point], interval_s: int) -> list[Point]:
    found: dict[float, list[Point]] = {}
    for point in points:
        found.setdefault(point.start.timestamp() // interval_s, []).append(point)
    return [Point(start=group[0].start, counts=total(p.counts for p in group)) for group in found.values()]


def _curve(plot: Plot, points: Sequence[Point], interval_s: int) -> Iterator[ET.Element]:
    """The rate as a line in its 95 % band, broken where nothing was recorded."""
    half = timedelta(seconds=interval_s / 2)
    for run in _runs(points, interval_s):
        at = [plot.x(min(point.start + half, plot.until)) for point in run]
        bounds = [wilson(point.counts.successes, point.counts.tasks) for point in run]
        line = [(x, plot.y(point.counts.rate or 0.0)) for x, point in zip(at, run, strict=True)]
        if len(run) == 1:
            (x, y), (low, high) = line[0], bounds[0]
            yield tag("line", x1=_n(x), x2=_n(x), y1=_n(plot.y(low)), y2=_n(plot.y(high)), class_="bar")
            yield tag("circle", cx=_n(x), cy=_n(y), r=2.5, class_="dot")
            continue
        band = [(x, plot.y(high)) for x, (_, high) in zip(at, bounds, strict=True)]
        band += [(x, plot.y(low)) for x, (low, _) in reversed(list(zip(at, bounds, strict=True)))]
        yield tag("path", d=_path(band) + "Z", class_="band")
        yield tag("path", d=_path(line), class_="line")


def _marks(plot: Plot, changes: Sequence[tuple[int, Change]]) -> Iterator[ET.Element]:
    """A triangle for each promotion, one on its head for each rollback, with its number in the table of changes."""
    # Three rows: neighbours must not hide each other.
    last = [-math.inf] * 3
    for number, change in changes:
        x = plot.x(change.at)
        row = next((row for row, taken in enumerate(last) if x - taken >= 26), last.index(min(last)))
        last[row], y = x, 8 + 13 * row
        corners = ((-5, -4), (5, -4), (0, 5)) if change.rolled_back else ((-5, 4), (5, 4), (0, -5))
        kind = "rollback" if change.rolled_back else "promotion"
        yield tag(
            "g",
            tag("title", f"{number}: {_changed(change)}, {change.at:%d %b %H:%M}"),
            tag("line", x1=_n(x), x2=_n(x), y1=y + 5, y2=plot.height - plot.bottom, class_="stem"),
            tag("path", d=_path([(x + dx, y + dy) for dx, dy in corners]) + "Z"),
            tag("text", str(number), x=_n(x + 7), y=y, dy="0.35em", class_="number"),
            class_=f"mark {kind}",
        )


def _changed(change: Change) -> str:
    verb = "rolled back" if change.rolled_back else "promoted"
    return f"{change.parameter} {said(change.before)} → {said(change.value)} {verb}"


def _rate_chart(
    facts: Report,
    track: Track,
    key: str,
    size: tuple[int, int],
    dates: int,
    low: float,
    class_: str = "",
    every: int = 1,
) -> ET.Element:
    """A chart of one track; `every` puts so many intervals together, for fewer tasks on less room."""
    interval_s = every * facts.interval_s
    points = _together(track.points, interval_s)
    plot = Plot(*size, facts.since, facts.until, low, 1.0)
    numbered = [
        (n, c) for n, c in enumerate(facts.changes, 1) if not track.task_type or track.task_type in c.task_types
    ]
    overall = total(point.counts for point in points)
    name = track.task_type or "the platform"
    kinds = [change.rolled_back for _, change in numbered]
    description = (
        f"{rate(overall)} over the period, in intervals of {lasted(interval_s)}; "
        f"{kinds.count(False)} promotions and {kinds.count(True)} rollbacks are marked."
    )
    ticks = [t for t in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0) if t >= low - 1e-9]
    floor = _n(plot.y(facts.success_floor))
    content = [
        *_axes(plot, ticks, lambda tick: f"{tick:.0%}", dates),
        tag("line", x1=plot.left, x2=plot.width - plot.right, y1=floor, y2=floor, class_="floor"),
        *_curve(plot, points, interval_s),
        *_marks(plot, numbered),
    ]
    if not track.points:
        content.append(tag("text", "no tasks", x=plot.width // 2, y=plot.height // 2, class_="axis middle"))
    return _svg(plot, key, f"Success rate of {name}", description, *content, class_=class_)


def _success(facts: Report) -> ET.Element:
    whole = next((track for track in facts.tracks if not track.task_type), Track(task_type=""))
    types = [track for track in facts.tracks if track.task_type]
    # One scale for all, or the eye compares what cannot be compared.
    lowest = min(
        (wilson(p.counts.successes, p.counts.tasks)[0] for track in facts.tracks for p in track.points), default=0.0
    )
    low = math.floor(lowest * 5) / 5 if lowest < 0.8 else 0.6
    figure = tag(
        "figure",
        tag(
            "figcaption",
            f"Share of tasks that succeeded, every {lasted(facts.interval_s)}. ",
            "The band is the 95 % interval; where nothing was recorded there is no line. Dashed: the floor of "
            f"{facts.success_floor:.0%}.",
        ),
        _rate_chart(facts, whole, "success-wide", (1040, 300), 8, low, "wide"),
        _rate_chart(facts, whole, "success-narrow", (360, 260), 3, low, "narrow"),
        tag(
            "ul",
            tag("li", tag("span", "▲", class_="promotion"), " promotion"),
            tag("li", tag("span", "▼", class_="rollback"), " rollback"),
            class_="legend",
        ),
    )
    multiples = [
        tag(
            "figure",
            tag("figcaption", words(track.task_type)),
            _rate_chart(facts, track, f"type-{number}", (360, 200), 3, low, every=2),
        )
        for number, track in enumerate(types)
    ]
    rows = [
        (
            f"{'▼' if change.rolled_back else '▲'} {number}",
            _instant(change.at),
            words(change.parameter),
            f"{said(change.before)} → {said(change.value)}",
            words(change.reason),
        )
        for number, change in reversed(list(enumerate(facts.changes, 1)))
    ]
    shown = rows[:25]
    changes = _table(
        f"Promotions and rollbacks, newest first{_of(shown, rows)}",
        ("No.", "When (UTC)", "Parameter", "Value", "Why"),
        shown,
    )
    return _section(
        "success",
        "Success rate",
        figure,
        tag("div", *multiples, class_="multiples"),
        changes if rows else tag("p", "Nothing was promoted in this time, and nothing rolled back."),
    )


def _of(shown: Sequence[object], known: Sequence[object] | int) -> str:
    total = known if isinstance(known, int) else len(known)
    return f" ({len(shown)} of {total})" if total > len(shown) else ""


def _health(facts: Report) -> ET.Element | None:
    if not facts.health:
        return None

    def chart(key: str, size: tuple[int, int], dates: int, class_: str) -> ET.Element:
        plot = Plot(*size, facts.since, facts.until, 0, 100, top=10)
        runs: list[list[HealthPoint]] = []
        for point in facts.health:
            near = runs and (point.start - runs[-1][-1].start).total_seconds() <= 3 * facts.interval_s
            runs[-1].append(point) if near else runs.append([point])
        lines = [
            tag("path", d=_path([(plot.x(p.start), plot.y(p.health)) for p in run]), class_="line")
            if len(run) > 1
            else tag("circle", cx=_n(plot.x(run[0].start)), cy=_n(plot.y(run[0].health)), r=2.5, class_="dot")
            for run in runs
        ]
        scores = [point.health for point in facts.health]
        description = f"From {scores[0]:.0f} to {scores[-1]:.0f} of 100, the lowest {min(scores):.0f}."
        axes = _axes(plot, (0, 25, 50, 75, 100), lambda tick: f"{tick:.0f}", dates)
        return _svg(plot, key, "Health score", description, *axes, *lines, class_=class_)

    figure = tag(
        "figure",
        tag("figcaption", "The score of the snapshots, 0 to 100: success, quality, market, agents, throughput."),
        chart("health-wide", (1040, 180), 8, "wide"),
        chart("health-narrow", (360, 170), 3, "narrow"),
    )
    return _section("health", "Health", figure)


# ---- issues, experiments


def _issues(facts: Report) -> ET.Element:
    rows = [_issue(issue) for issue in reversed(facts.issues)]
    columns = ("Issue", "Detected (UTC)", "What was seen", "#Attempts", "Became", "#Took")
    table = _table(f"Anomalies, newest first{_of(rows, facts.issues_total)}", columns, rows)
    endings = ", ".join(f"{count} {ending.replace('_', ' ')}" for ending, count in sorted(facts.endings.items()))
    return _section(
        "issues",
        "Issues",
        table if rows else tag("p", "No anomaly was detected in this time."),
        tag("p", f"Cycles that ended: {endings}.") if endings else None,
    )


def _issue(issue: Issue) -> Sequence[ET.Element | str]:
    anomaly = issue.anomaly
    ended_at = issue.fixed_at or issue.closed_at
    took = lasted((ended_at - anomaly.detected_at).total_seconds()) if ended_at else "–"
    return (
        words(about(anomaly)),
        _instant(anomaly.detected_at),
        words(anomaly.reason),
        str(issue.attempts),
        tag("span", issue.state.value, class_=f"state {issue.state.name.lower().replace('_', '-')}"),
        took,
    )


def _experiments(facts: Report) -> ET.Element:
    cards = [_experiment(record, number) for number, record in enumerate(facts.experiments)]
    return _section(
        "experiments",
        "Experiments" + _of(cards, facts.experiments_total),
        tag(
            "p",
            "Only evidence promotes. The evidence is an e-value: how many times likelier the results are if the change "
            "helps than if it does nothing; looking at it as often as one likes is valid.",
        )
        if cards
        else tag("p", "No experiment ran in this time."),
        *cards,
    )


def _experiment(record: ExperimentRecord, number: int) -> ET.Element:
    design, reading = record.design, record.reading
    verdict = outcome(record)
    heading = tag("h3", words(design.parameter), f" {said(design.control)} → {said(design.treatment)} ")
    heading.append(tag("span", verdict, class_=f"state {verdict.replace(' ', '-')}"))
    by = tag("p", words(record.agent_id), ": ", words(record.root_cause), class_="cause") if record.agent_id else None
    facts = [
        ("Ran", tag("span", _instant(record.opened_at), " to ", _instant(record.closed_at))),
        ("On", words(", ".join(design.task_types))),
        ("Vote", tag("span", record.votes or "–")),
        ("Forecast", tag("span", f"{design.predicted_rate:.0%} against {design.baseline_rate:.0%} before")),
    ]
    listed = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts]
    return tag(
        "article",
        heading,
        by,
        tag("dl", *listed, class_="facts"),
        tag("div", _arms(record), _evidence(record, number), class_="pair"),
        _difference(reading),
        tag("p", words(record.ending_reason or (reading.reason if reading else "it waits for its turn"))),
    )


def _arms(record: ExperimentRecord) -> ET.Element:
    design = record.design
    rows: list[Sequence[ET.Element | str]] = [("before", said(design.control), *_counted(design.baseline))]
    for prefix, reading in (("", record.reading), ("watch, ", record.watch)):
        if reading is not None:
            rows.append((f"{prefix}{'old' if prefix else 'control'}", said(design.control), *_counted(reading.control)))
            new = "new" if prefix else "treatment"
            rows.append((f"{prefix}{new}", said(design.treatment), *_counted(reading.treatment)))
    return _table("Arms", ("Arm", "Value", "#Tasks", "#Rate", "#95 %"), rows, "compact")


def _counted(counts: Counts) -> tuple[str, str, str]:
    if not counts.tasks:
        return "0", "–", "–"
    low, high = wilson(counts.successes, counts.tasks)
    return f"{counts.tasks:,}", f"{counts.successes / counts.tasks:.1%}", f"{low:.0%} to {high:.0%}"


def _difference(reading: Reading | None) -> ET.Element | None:
    if reading is None or reading.effect is None:
        return None
    between = ""
    if reading.interval is not None:
        low, high = reading.interval
        between = f", always-valid interval {_points(low)} to {_points(high)}"
    return tag("p", tag("b", f"{_points(reading.effect)} points"), between, class_="difference")


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _evidence(record: ExperimentRecord, number: int) -> ET.Element:
    """How the evidence grew with the tasks, against the threshold that suffices whatever the horizon."""
    caption = tag("figcaption", "Evidence for the change (e-value), by finished tasks; dashed: enough at any horizon")
    if len(record.evidence) < 2:
        return tag("figure", caption, tag("p", "Too few tasks, or too many, to draw it.", class_="absent"))
    enough = math.log(1 / record.design.alpha)
    logs = [point.log_e for point in record.evidence]
    # Beyond e = a million in either direction the eye learns nothing more.
    low, high = max(-14.0, min(-1.0, *logs)), min(14.0, max(1.3 * enough, *logs))
    # The canvas runs over time; here a task is a second.
    zero = record.queued_at
    plot = Plot(360, 170, zero, zero + timedelta(seconds=record.evidence[-1].tasks), low, high, top=10)
    line = [(plot.x(zero + timedelta(seconds=p.tasks)), plot.y(p.log_e)) for p in record.evidence]
    y = _n(plot.y(enough))
    content = [
        tag("line", x1=plot.left, x2=plot.width - plot.right, y1=_n(plot.y(0)), y2=_n(plot.y(0)), class_="grid"),
        tag("text", "1", x=plot.left - 6, y=_n(plot.y(0)), dy="0.35em", class_="axis end"),
        tag("line", x1=plot.left, x2=plot.width - plot.right, y1=y, y2=y, class_="floor"),
        tag("text", f"{1 / record.design.alpha:.0f}", x=plot.left - 6, y=y, dy="0.35em", class_="axis end"),
        tag("path", d=_path([(plot.x(zero), plot.y(0)), *line]), class_="line"),
        tag("text", "0", x=plot.left, y=plot.height - 8, class_="axis"),
        tag("text", f"{record.evidence[-1].tasks}", x=plot.width - plot.right, y=plot.height - 8, class_="axis end"),
    ]
    description = (
        f"e = {math.exp(min(700.0, logs[-1])):.3g} after {record.evidence[-1].tasks} tasks; "
        f"{1 / record.design.alpha:.0f} suffices for any horizon, a calibrated threshold may be lower."
    )
    svg = _svg(plot, f"evidence-{number}", "Running evidence", description, *content)
    return tag("figure", caption, svg)


# ---- agents, ledger, what is open


def _agents(facts: Report) -> ET.Element:
    rows = [_agent(facts, agent, number) for number, agent in enumerate(facts.agents)]
    columns = (
        "Agent", "Operator", "Standing", "#Now", "#Awards", "#Proposals", "#Ballots", "Results", "#Earned", "#Balance",
    )  # fmt: skip
    table = _table(f"Standing is 0 to 1 and moves with results{_of(rows, facts.agents_total)}", columns, rows)
    return _section("agents", "Agents", table if rows else tag("p", "No agent is registered."))


def _agent(facts: Report, agent: AgentRecord, number: int) -> Sequence[ET.Element | str]:
    results = ", ".join(f"{count} {result}" for result, count in sorted(agent.results.items()))
    name = tag("span", words(agent.agent_id), " (suspended)" if agent.suspended else None)
    return (
        name,
        words(agent.operator),
        _standing(facts, agent, number),
        f"{agent.standing:.2f}",
        str(agent.awards),
        str(agent.proposals),
        str(agent.ballots),
        results or "–",
        f"{agent.earned - agent.paid:+d}" if agent.earned or agent.paid else "0",
        str(agent.balance),
    )


def _standing(facts: Report, agent: AgentRecord, number: int) -> ET.Element:
    """Standing over the period: a step at each result."""
    plot = Plot(150, 34, facts.since, facts.until, 0, 1, left=2, right=2, top=3, bottom=3)
    steps, level = [(plot.x(facts.since), plot.y(agent.standing_before))], agent.standing_before
    for move in agent.moves:
        steps += [(plot.x(move.at), plot.y(level)), (plot.x(move.at), plot.y(move.standing))]
        level = move.standing
    steps.append((plot.x(facts.until), plot.y(level)))
    middle = _n(plot.y(NEWCOMER_STANDING))
    return _svg(
        plot,
        f"standing-{number}",
        "Standing over the period",
        f"from {agent.standing_before:.2f} to {level:.2f} in {len(agent.moves)} results",
        tag("line", x1=0, x2=plot.width, y1=middle, y2=middle, class_="grid"),
        tag("path", d=_path(steps), class_="line"),
        class_="spark",
    )


def _ledger(facts: Report) -> ET.Element:
    chain, kinds = facts.ledger, facts.ledger.kinds
    state = tag("b", "The chain is broken: ", class_="bad") if chain.broken else tag("b", "The hash chain verifies. ")
    rows = [
        (
            str(line.sequence),
            _instant(line.at),
            line.kind,
            words(line.subject),
            words(line.what),
            tag("code", line.digest[:12]),
        )
        for line in reversed(chain.latest)
    ]
    columns = ("Entry", "When (UTC)", "Kind", "Subject", "What", "Digest")
    return _section(
        "ledger",
        "Ledger",
        tag(
            "p",
            state,
            words(chain.broken) if chain.broken else None,
            f" {chain.entries:,} entries in all, {sum(kinds.values()):,} of this time. Head: ",
            tag("code", chain.head),
        ),
        tag("ul", *(tag("li", f"{kind}: {count}") for kind, count in sorted(kinds.items())), class_="legend"),
        _details(_table("Entries, newest first" + _of(rows, sum(kinds.values())), columns, rows)) if rows else None,
    )


def _details(content: ET.Element) -> ET.Element:
    return tag("details", tag("summary", "Entries"), content)


def _open(facts: Report) -> ET.Element:
    anomalies = [
        (words(about(i.anomaly)), _instant(i.anomaly.detected_at), words(i.anomaly.reason))
        for i in reversed(facts.open_anomalies)
    ]
    cycles = [(words(c.cycle_id), _instant(c.opened_at), str(c.attempt), words(c.stands)) for c in facts.open_cycles]
    return _section(
        "open",
        "Open at the end",
        _table("Anomalies", ("About", "Detected (UTC)", "What was seen"), anomalies)
        if anomalies
        else tag("p", "No anomaly is open."),
        _table("Running cycles", ("Cycle", "Opened (UTC)", "#Attempt", "Stands at"), cycles)
        if cycles
        else tag("p", "No cycle is running."),
    )
