"""The command that shows a person what an agent sees of one subject."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from starter import completion
from starter.command import NO_DATA, AsJson, CommandError, answer, new_table, open_database, out, span

if TYPE_CHECKING:
    from activities.reading import Readable
    from schema.messages.base import Value
    from schema.messages.diagnosis import Contrast, Diagnosis, Figures, ParameterChange, PastEnding, TaskTypeDiagnosis
    from schema.messages.observatory import Counts
    from schema.messages.platform import Platform

app = typer.Typer()
# As much as a person reads; --json has all.
MOST_UNREMARKABLE, MOST_OTHER_TYPES, MOST_CHANGES, MOST_ENDINGS, MOST_MEMORIES = 5, 10, 10, 10, 8
LONGEST_VALUE = 40
INDENTED = (0, 0, 0, 2)


@app.command(epilog="Example: nautilus diagnose success_rate:research_synthesis --json")
def diagnose(
    subject: Annotated[
        str, typer.Argument(help="A metric and a task type, or `platform`.", autocompletion=completion.subjects)
    ],
    since: Annotated[
        str, typer.Option(help="How far back: 90m, 12h or 2d. By default from the open anomaly's onset, or a day.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """What an agent sees of one subject: reasons, what stands out, figures, parameters and their changes, memory.

    Everything is set against the day before the onset. Exit code 3 where no task was recorded in that time.
    """
    from activities import reading
    from activities.observatory import ObservatoryActivities
    from schema.declaration import declared_platform
    from schema.messages.diagnosis import DiagnosisRequest

    now = datetime.now(UTC)
    database = open_database()
    platform = declared_platform()
    _check(subject, database, platform)

    anomalies = {record.anomaly.subject: record.anomaly for record in reading.anomalies(database)}
    anomaly = anomalies.get(subject)
    reason = anomaly.reason if anomaly else "no anomaly is open on it"
    start = anomaly.onset if anomaly else None
    if since:
        start = now - span(since)
    seen = ObservatoryActivities(database, platform).diagnose(DiagnosisRequest(subject=subject, since=start), now)
    answer(as_json, seen, lambda: _show(subject, seen, platform, reason))

    task_type = _in_question(subject, seen)
    if task_type is None or not task_type.counts.tasks:
        raise typer.Exit(NO_DATA)


def _check(subject: str, readable: "Readable", platform: "Platform") -> None:
    """Raises CommandError where nothing can be known of such a subject, with the nearest one."""
    from difflib import get_close_matches

    from activities import reading

    known = reading.subjects(readable, platform)
    if subject in known:
        return
    near = get_close_matches(subject, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "`nautilus anomaly list` shows what is open"
    raise CommandError(f"expected a metric and a task type, such as {known[0]}, but {subject} came; {hint}")


def _in_question(subject: str, seen: "Diagnosis") -> "TaskTypeDiagnosis | None":
    """The subject's task type, or where it names none, the one that fails most: what an agent looks at."""
    name = subject.partition(":")[2]
    named = next((facts for facts in seen.task_types if facts.task_type == name), None)
    if named is not None:
        return named
    return max(seen.task_types, key=lambda t: (t.counts.tasks - t.counts.successes, t.task_type), default=None)


def _show(subject: str, seen: "Diagnosis", platform: "Platform", reason: str) -> None:
    """Print what concerns the task type in question, section by section, and then the other types.

    `reason` is why an anomaly is open on the subject.
    """
    from activities.report_text import lasted

    facts = _in_question(subject, seen)
    out.print(f"{subject}: {reason}")
    elapsed = lasted((seen.at - seen.window_start).total_seconds())
    out.print(f"since {seen.window_start:%Y-%m-%d %H:%M} UTC, {elapsed}, against the day before the onset")
    if facts is None:
        out.print("no task type is declared")
        return

    out.print(f"{facts.task_type}: good {_rate(facts.counts)} since then; {_rate(facts.before)} before")
    sections = (
        _reasons(facts),
        _contrasts(facts),
        _figures(facts),
        _parameters(facts.task_type, seen, platform),
        _changes(seen.changes),
        _endings(seen.endings),
        _memory(seen),
        _others([other for other in seen.task_types if other is not facts]),
    )
    for section in sections:
        for number, part in enumerate(section):
            if number == 0:
                out.print()
            out.print(part)
    if seen.left_out:
        out.print()
        out.print(f"left out, because it would not fit a message: {'; '.join(seen.left_out)}")


def _reasons(facts: "TaskTypeDiagnosis") -> "Iterator[object]":
    from rich.padding import Padding

    from schema.display import one_line

    read = facts.good.tasks + facts.bad.tasks
    if not facts.reasons:
        failures = sum(facts.failures.values())
        if failures:
            yield f"{failures:,} failures, whose reasons are not among these facts"
        else:
            yield "no failure is recorded"
        return
    yield "Failures by reason"
    table = new_table("reason", "since", "share", "before", "share")
    for reason in facts.reasons:
        share_since = _share(reason.since, read)
        share_before = _share(reason.before, facts.usual.tasks)
        table.add_row(reason.reason, f"{reason.since:,}", share_since, f"{reason.before:,}", share_before)
    yield table
    for reason in facts.reasons:
        for example in reason.examples:
            yield Padding(f"{reason.reason}: {one_line(example, 200)}", INDENTED)


def _share(count: int, whole: int) -> str:
    return f"{count / whole:.1%}" if whole else "-"


def _contrasts(facts: "TaskTypeDiagnosis") -> "Iterator[object]":
    standing_out = [contrast for contrast in facts.contrasts if contrast.stands_out]
    others = [contrast for contrast in facts.contrasts if not contrast.stands_out]
    shown = standing_out or others[:MOST_UNREMARKABLE]
    if not shown:
        yield "nothing to compare tasks by: no attribute, agent or hour has enough tasks of two kinds"
        return
    yield "What stands out (share of good tasks, points, 95 % for all together)"
    if not standing_out:
        yield f"nothing does, of {len(others)} compared; the strongest:"
    table = new_table("attribute", "value", "good", "the others", "difference")
    for contrast in shown:
        table.add_row(*_cells(contrast))
    yield table
    if standing_out and others:
        yield f"  {len(others)} more were compared and do not stand out"


def _cells(contrast: "Contrast") -> Sequence[str]:
    from schema.display import one_line

    low, high = contrast.interval
    difference = f"{100 * contrast.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    value = one_line(contrast.value, LONGEST_VALUE)
    return contrast.attribute, value, _rate(contrast.counts), _rate(contrast.rest), difference


def _rate(counts: "Counts") -> str:
    return "no task" if counts.rate is None else f"{counts.rate:.1%} of {counts.tasks:,}"


def _figures(facts: "TaskTypeDiagnosis") -> "Iterator[object]":
    from activities.report_text import lasted

    def cells(figures: "Figures") -> Iterator[str]:
        yield f"{figures.tasks:,}"
        yield "-" if figures.p50_duration_s is None else lasted(figures.p50_duration_s)
        yield "-" if figures.p95_duration_s is None else lasted(figures.p95_duration_s)
        yield "-" if figures.mean_quality is None else f"{figures.mean_quality:.3f} of {figures.rated:,}"
        yield "-" if figures.mean_cost is None else f"{figures.mean_cost:.4g}"

    yield "Figures of the newest tasks"
    table = new_table("tasks", "number", "median", "p95", "mean quality", "mean cost")
    for name, figures in (("good", facts.good), ("bad", facts.bad), ("before", facts.usual)):
        table.add_row(name, *cells(figures))
    yield table


def _parameters(task_type: str, seen: "Diagnosis", platform: "Platform") -> "Iterator[object]":
    """What may be tuned of the task type, with what production runs on."""
    from rules.fit import BULKIEST

    touching = [declared for declared in platform.parameters if task_type in declared.task_types]
    if not touching:
        yield "no parameter touches these tasks"
        return
    yield "Parameters of these tasks"
    in_force = {state.declaration.key: state.value for state in seen.parameters}
    # A parameter is in force once `nautilus up` has seen its declaration, or is one of those that did not fit.
    without = "left out" if BULKIEST in seen.left_out else "not yet in force"
    table = new_table("parameter", "value", "bounds", "what it is")
    for declared in touching:
        value = f"{_value(in_force[declared.key])} {declared.unit}" if declared.key in in_force else without
        table.add_row(declared.key, value.rstrip(), declared.bounds, declared.description)
    yield table


def _value(value: "Value | None") -> str:
    from schema.display import one_line
    from schema.messages.base import format_value

    return one_line(format_value(value), LONGEST_VALUE)


def _changes(changes: "Sequence[ParameterChange]") -> "Iterator[object]":
    if not changes:
        yield "no parameter was changed in the last four weeks"
        return
    yield "Changes of the last four weeks, newest first"
    table = new_table("parameter", "at (UTC)", "change", "by")
    for change in changes[:MOST_CHANGES]:
        values = _value(change.value)
        if not change.is_first:
            values = f"{_value(change.before)} to {values}"
        by = change.cycle_id or "declaration"
        table.add_row(change.parameter, f"{change.at:%m-%d %H:%M}", f"{change.kind}: {values}", by)
    yield table
    if len(changes) > MOST_CHANGES:
        yield f"  and {len(changes) - MOST_CHANGES} earlier ones"


def _endings(endings: "Sequence[PastEnding]") -> "Iterator[object]":
    if not endings:
        yield "no cycle on this subject has ended"
        return
    yield "Earlier cycles on this subject, newest first"
    table = new_table("attempt", "ending", "proposed", "effect")
    for ending in endings[:MOST_ENDINGS]:
        proposed = "-"
        if ending.parameter is not None:
            proposed = f"{ending.parameter}: {_value(ending.before)} to {_value(ending.value)}"
        effect = "-" if ending.effect is None else f"{100 * ending.effect:+.1f} points"
        table.add_row(f"#{ending.cycle_id.rpartition('#')[2]}", ending.ending, proposed, effect)
    yield table


def _memory(seen: "Diagnosis") -> "Iterator[object]":
    from rich.padding import Padding

    from schema.display import one_line

    if not seen.memory:
        yield "nothing is remembered of the like"
        return
    yield "What is remembered of the like, nearest first"
    for pattern in seen.memory[:MOST_MEMORIES]:
        yield Padding(f"{pattern.state.value}: {one_line(pattern.text, 300)}", INDENTED)


def _others(others: "Sequence[TaskTypeDiagnosis]") -> "Iterator[object]":
    if not others:
        return
    yield "Other task types, those that fail most first"
    table = new_table("task type", "good since", "good before", "most frequent reason")
    others = sorted(others, key=lambda facts: facts.counts.successes - facts.counts.tasks)
    for facts in others[:MOST_OTHER_TYPES]:
        reason = facts.reasons[0].reason if facts.reasons and facts.reasons[0].since else "-"
        table.add_row(facts.task_type, _rate(facts.counts), _rate(facts.before), reason)
    yield table
