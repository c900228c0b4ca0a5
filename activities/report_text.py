"""Report text: formats the report's facts as lines for people. Functions, no activities."""

from datetime import datetime, timedelta

from activities.reason_text import NOT_MEASURED, failures
from rules.rates import wilson
from schema.display import one_line
from schema.messages.base import format_value
from schema.messages.ledger import EntryKind
from schema.messages.observatory import Anomaly, Counts
from schema.messages.report import ExperimentRecord, IssueState, RecordedChange, Report

# A reason or an error, quoted in a line, in characters.
LONGEST_QUOTE = 160


def lasted(seconds: float | None) -> str:
    """A duration for people, in the largest unit that leaves a figure over 1."""
    if seconds is None:
        return NOT_MEASURED
    units = ((172_800.0, 86_400.0, "days"), (5_400.0, 3_600.0, "h"), (90.0, 60.0, "min"), (1.0, 1.0, "s"))
    size, unit = next(((size, unit) for least, size, unit in units if seconds >= least), (0.001, "ms"))
    return f"{seconds / size:.3g} {unit}"


def rate(counts: Counts) -> tuple[str, str]:
    """A share of tasks, and the counts behind it with its 95 % interval."""
    if not counts.tasks:
        return NOT_MEASURED, ""
    low, high = wilson(counts.successes, counts.tasks)
    share = f"{counts.successes / counts.tasks:.1%}"
    return share, f"{counts.successes:,} of {counts.tasks:,}, 95 %: {low:.1%} to {high:.1%}"


def headline(facts: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """The platform at the start and at the end of the period: figures, each with the counts behind it."""
    ends = (facts.before, facts.after)
    return [
        ("success rate", [rate(s.tasks.counts if s else Counts()) for s in ends]),
        (
            "failures by reason",
            [failures(s.tasks.reasons, s.tasks.counts.tasks) if s else failures({}, 0) for s in ends],
        ),
        ("mean completion time", [(lasted(s.tasks.mean_duration_s if s else None), "") for s in ends]),
        ("health", [(NOT_MEASURED if not s or s.health is None else f"{s.health:.0f} of 100", "") for s in ends]),
    ]


def compared(facts: Report) -> list[str]:
    """Which spans the headline compares, and where records are missing."""
    if facts.after is None:
        return ["no task was recorded in this time"]
    ends = [_span(s.tasks.start, s.end) for s in (facts.before, facts.after) if s is not None]
    lines = [f"the start is {ends[0]}, the end {ends[-1]}"]
    if facts.before is None:
        lines = [f"nothing to compare with yet: all that is recorded is of {ends[0]}"]
    if (facts.until - facts.after.end).total_seconds() > 2 * facts.interval_s:
        lines.append(f"no task was recorded after {_day(facts.after.end)}")
    return lines


def _span(start: datetime, end: datetime) -> str:
    form = "%H:%M" if end - start >= timedelta(minutes=10) else "%H:%M:%S"
    return f"{start:%d %b {form}} to {end:{form if start.date() == end.date() else f'%d %b {form}'}}"


def _day(at: datetime) -> str:
    return f"{at:%d %b %H:%M}"


def issue_counts(facts: Report) -> list[tuple[str, str]]:
    """The article's rows about issues; without any snapshot they are not measured, which is not zero."""
    states, total = facts.issue_states, sum(facts.issue_states.values())
    if not total and all(stretch is None or stretch.health is None for stretch in (facts.before, facts.after)):
        return [("issues detected", NOT_MEASURED)]
    rows = [("issues detected", f"{total}"), ("fixed with no human", f"{states.get(IssueState.FIXED, 0)} of {total}")]
    others = [state for state in IssueState if state != IssueState.FIXED]
    rows += [(state.value, f"{states[state]}") for state in others if state in states]
    return [*rows, ("promotions rolled back", f"{facts.ledger_kinds.get(EntryKind.PARAMETER_ROLLED_BACK, 0)}")]


def text(facts: Report) -> str:
    """The report in at most 40 lines of plain text, for a notification."""
    lines = [f"Nautilus, {facts.since:%d %b %Y %H:%M} to {facts.until:%d %b %Y %H:%M} UTC", ""]

    lines += compared(facts)
    for name, ends in headline(facts):
        shown = [f"{figure} ({counts})" if counts else figure for figure, counts in ends]
        start_to_end = " -> ".join(shown)
        lines.append(f"{name}: {start_to_end}")
    lines += [f"{name}: {figure}" for name, figure in issue_counts(facts)]

    still_open = [issue.anomaly for issue in facts.issues if issue.state is IssueState.OPEN]
    needing = [f"{anomaly.subject}: {one_line(anomaly.escalation, LONGEST_QUOTE)}" for anomaly in escalated(facts)]
    earners = [agent for agent in facts.agents if agent.earned]
    lines += _first("changes", [_changed(change) for change in facts.changes], 5)
    lines += _first("experiments", [_tested(experiment) for experiment in facts.experiments], 4)
    lines += _first("open anomalies", [one_line(anomaly.reason, LONGEST_QUOTE) for anomaly in still_open], 3)
    lines += _for_people(facts)
    lines += _first("a person is needed", needing, 3)
    lines += _first("agents", [f"{a.agent_id} earned {a.earned}, standing {a.standing:.2f}" for a in earners], 3)

    chain = f"unbroken, head {facts.ledger_head[:16]}"
    if facts.ledger_broken:
        chain = one_line(facts.ledger_broken, LONGEST_QUOTE)
    lines.append(f"ledger: {sum(facts.ledger_kinds.values())} entries of {facts.ledger_entries}; {chain}")
    return "\n".join(lines)


def escalated(facts: Report) -> list[Anomaly]:
    """The open anomalies that no cycle can be about."""
    still_open = [issue.anomaly for issue in facts.issues if issue.state is IssueState.OPEN]
    return [anomaly for anomaly in still_open if anomaly.escalation]


def _first(name: str, entries: list[str], most: int) -> list[str]:
    """A list under its name, with at most so many entries; nothing where it is empty."""
    if not entries:
        return []
    more = [f"and {len(entries) - most} more"] if len(entries) > most else []
    return [f"{name}:", *(f"  {line}" for line in [*entries[:most], *more])]


def _for_people(facts: Report) -> list[str]:
    """How many cycles call for a person, and of the newest, why and where to look."""
    if not facts.escalations:
        return []
    newest = facts.escalations[0]
    count = facts.endings.get(newest.ending.value, len(facts.escalations))
    lines = [f"escalated to people: {count}; the newest, {newest.subject}: {one_line(newest.reason, LONGEST_QUOTE)}"]
    if newest.dossier is not None and newest.dossier.look_at:
        lines.append(f"  look at {one_line(newest.dossier.look_at[0], LONGEST_QUOTE)}")
    return lines


def _changed(change: RecordedChange) -> str:
    values = f"{format_value(change.before)} -> {format_value(change.promotion.value)}"
    act = "rolled back" if change.rolled_back else "promoted"
    return f"{_day(change.at)} {change.promotion.parameter} {values} {act}"


def _tested(record: ExperimentRecord) -> str:
    design, rates = record.design, ""
    if record.reading is not None:
        arms = (record.reading.control, record.reading.treatment)
        old, new = (f"{arm.rate or 0:.0%} of {arm.tasks}" for arm in arms)
        rates = f" ({old} -> {new})"
    values = f"{format_value(design.control)} -> {format_value(design.treatment)}"
    return f"{design.parameter} {values}: {record.outcome}{rates}"
