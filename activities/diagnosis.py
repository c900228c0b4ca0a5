"""Diagnosis: the recorded facts about task types. Functions, no activities.

Raw outcomes are read with a bound: the newest few thousand of a window say how its tasks go. Details of failures leave
only where the operator shares them, without what looks like a credential.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Any, NamedTuple

from sqlmodel import Session, select

from activities.changes import Values, changes, in_short
from activities.history import counts_since
from rules.contrasts import ALPHA, Task, contrasts, running_at_start
from rules.redaction import redacted
from rules.verdict import is_good
from schema.failure_kinds import FailureKind
from schema.messages.diagnosis import (
    Contrast,
    DurationSample,
    Figures,
    ReasonCount,
    StandsOut,
    TaskTypeDiagnosis,
)
from schema.messages.observatory import Guardrail, GuardrailKind, Interval, TaskOutcome
from schema.tables.observatory import OutcomeRow

# All samples of one diagnosis, about 200 kB; Temporal warns at 256.
SAMPLES = 4_000
LONGEST_DIAGNOSIS = timedelta(days=90)
# Outcomes that are read of each window: of the task type in question, and of all others together: a second or two.
MOST_READ, MOST_READ_OF_OTHERS = 4_000, 10_000
# What no figure and no reason is made of; to read it takes most of the time.
UNREAD_OF_BEFORE = ("detail", "attributes")
# Reasons that are counted one by one; the rest are `other`.
MOST_REASONS, MOST_REASONS_OF_OTHERS, OTHER = 20, 5, "other"
MOST_EXAMPLES, LONGEST_EXAMPLE = 3, 200
# Messages that differ in ids and numbers only are one example: so many are looked at to find different ones.
MOST_DETAILS = 50
NUMBERED = re.compile(r"[0-9a-f-]*[0-9][0-9a-f-]*")
# What is compared beside the platform's attributes, and how it begins where one of those has the same name: a
# platform's attribute has no dot in its name.
OURS = ("agent", "hour", "running")
OURS_WHERE_TAKEN = "nautilus."
# The value of a contrast of numbers.
BOUND = re.compile(r"over [-+.\de]+")
# What stands out for a cycle's briefing: so many reasons, contrasts and changes, against as long before the onset as an
# agent asks for.
MOST_STANDING_OUT, BEFORE_THE_ONSET = 3, timedelta(days=1)


class Window(NamedTuple):
    """What is set against each other: tasks that finished since `start`, and those from `before` until the `onset`.

    `most` bounds how many outcomes are read of each, the newest first, `samples` how many are handed on, and `reasons`
    how many are counted one by one. `alpha` is the chance of a contrast that stands out by chance; 0 for no contrasts.
    """

    before: datetime
    onset: datetime
    start: datetime
    most: int
    samples: int
    reasons: int
    alpha: float


def windows_of(
    task_types: Sequence[str],
    in_question: str,
    before: datetime,
    onset: datetime,
    start: datetime,
    samples: int,
) -> dict[str, Window]:
    """What to read of each task type: the one in question in depth, if it is among them, and the others in overview.

    The one in question alone gets contrasts. Without one every type gets them, and an equal part of ALPHA, so that the
    chance that anything stands out by chance is the same.
    """
    # Divisors are at least 1: there may be no other type, or no type at all.
    others = max(1, len(set(task_types) - {in_question}))
    types = max(1, len(task_types))
    overview = Window(
        before=before,
        onset=onset,
        start=start,
        most=max(1, min(MOST_READ, MOST_READ_OF_OTHERS // others)),
        samples=min(samples, SAMPLES // types),
        reasons=MOST_REASONS_OF_OTHERS,
        alpha=0.0 if in_question in task_types else ALPHA / others,
    )
    windows = dict.fromkeys(task_types, overview)
    if in_question in windows:
        windows[in_question] = overview._replace(most=MOST_READ, samples=samples, reasons=MOST_REASONS, alpha=ALPHA)
    return windows


def diagnosis_of(
    session: Session,
    task_type: str,
    intervals: Sequence[Interval],
    window: Window,
    until: datetime,
    objectives: Mapping[str, Guardrail],
    share_details: bool,
) -> TaskTypeDiagnosis:
    """The facts about one task type; its `intervals` are those from the window's start until `until`."""
    before = _outcomes(session, task_type, window.before, window.onset, window.most, without=UNREAD_OF_BEFORE)
    since = _outcomes(session, task_type, window.start, until=None, most=window.most)
    verdicts = [_is_good(objectives, outcome) for outcome in since]
    # A task whose verdict is None cannot be judged: it is neither good nor bad.
    good = [outcome for outcome, verdict in zip(since, verdicts, strict=True) if verdict is True]
    bad = [outcome for outcome, verdict in zip(since, verdicts, strict=True) if verdict is False]
    failures: Counter[FailureKind] = Counter()
    for interval in intervals:
        failures.update(interval.failures)

    return TaskTypeDiagnosis(
        task_type=task_type,
        counts=counts_since(session, [task_type], window.start, until, objectives),
        before=counts_since(session, [task_type], window.before, window.onset, objectives),
        failures={kind: failures[kind] for kind in FailureKind if failures[kind]},
        samples=_samples(since[: window.samples]),
        reasons=_reasons(since, before, window.reasons, share_details),
        contrasts=_contrasts(since, verdicts, window.alpha) if window.alpha else (),
        good=_figures(good),
        bad=_figures(bad),
        usual=_figures(before),
    )


def _samples(outcomes: Sequence[TaskOutcome]) -> tuple[DurationSample, ...]:
    return tuple(DurationSample(duration_s=o.duration_s, failure=o.failure, reason=o.reason) for o in outcomes)


def _outcomes(
    session: Session, task_type: str, since: datetime, until: datetime | None, most: int, without: Sequence[str] = ()
) -> list[TaskOutcome]:
    """The newest outcomes that finished in [since, until), newest first."""
    table = OutcomeRow.__table__.c  # type: ignore[attr-defined]
    query = select(*(column for column in table if column.name not in without)).where(
        table.task_type == task_type, table.finished_at >= since
    )
    if until is not None:
        query = query.where(table.finished_at < until)
    rows = session.execute(query.order_by(table.finished_at.desc()).limit(most)).mappings()
    return [_outcome(row) for row in rows]


def _outcome(row: Mapping[Any, Any]) -> TaskOutcome:
    """An outcome as it was recorded. Validated then; thousands are read for one diagnosis."""
    failure = FailureKind(row["failure"]) if row["failure"] else None
    return TaskOutcome.model_construct(**{**row, "failure": failure})


def _is_good(objectives: Mapping[str, Guardrail], outcome: TaskOutcome) -> bool | None:
    """By what a cycle on the subject counts; None where the task cannot be judged, such as one without a rating."""
    objective = objectives.get(outcome.task_type)
    return outcome.failure is None if objective is None else is_good(objective, outcome)


def _contrasts(outcomes: Sequence[TaskOutcome], verdicts: Sequence[bool | None], alpha: float) -> tuple[Contrast, ...]:
    """What tells good from bad tasks, without what looks like a credential in the platform's attributes."""
    taken = set().union(*(outcome.attributes for outcome in outcomes))
    ours = {name: f"{OURS_WHERE_TAKEN}{name}" if name in taken else name for name in OURS}
    contrasted = contrasts(_tasks(outcomes, verdicts, ours), alpha)
    # Redacted here and not task by task: that would take seconds for thousands of tasks.
    return tuple(contrast if contrast.attribute in ours.values() else _redacted(contrast) for contrast in contrasted)


def _redacted(contrast: Contrast) -> Contrast:
    """With its name and a text without credentials. By its name a text is known that does not look like one."""
    attribute = redacted(contrast.attribute)
    if BOUND.fullmatch(contrast.value):
        return contrast.model_copy(update={"attribute": attribute})
    _, _, value = redacted(f"{contrast.attribute}: {contrast.value}").partition(": ")
    return contrast.model_copy(update={"attribute": attribute, "value": value})


def _tasks(outcomes: Sequence[TaskOutcome], verdicts: Sequence[bool | None], ours: Mapping[str, str]) -> list[Task]:
    """The tasks that can be judged, with the platform's attributes and ours, which have the names of `ours`."""
    running = running_at_start([(outcome.started_at, outcome.finished_at) for outcome in outcomes])
    tasks = []
    for outcome, good, count in zip(outcomes, verdicts, running, strict=True):
        if good is None:
            continue
        attributes: dict[str, float | str] = dict(outcome.attributes)
        attributes[ours["hour"]] = f"{outcome.started_at.astimezone(UTC):%H}:00"
        if outcome.agent_id:
            attributes[ours["agent"]] = outcome.agent_id
        if count is not None:
            attributes[ours["running"]] = float(count)
        tasks.append(Task(good, attributes))
    return tasks


def _figures(outcomes: Sequence[TaskOutcome]) -> Figures:
    """Durations, ratings and cost of some tasks; None for what none of them has."""
    durations = sorted(outcome.duration_s for outcome in outcomes)
    ratings = [outcome.quality for outcome in outcomes if outcome.quality is not None]
    costs = [outcome.cost for outcome in outcomes]
    return Figures(
        tasks=len(outcomes),
        p50_duration_s=_quantile(durations, 0.5),
        p95_duration_s=_quantile(durations, 0.95),
        mean_quality=fmean(ratings) if ratings else None,
        rated=len(ratings),
        # A platform that reports no cost reports 0.
        mean_cost=fmean(costs) if any(costs) else None,
    )


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of all do not exceed (Hyndman & Fan 1996, definition 1)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _reasons(
    since: Sequence[TaskOutcome], before: Sequence[TaskOutcome], most: int, share_details: bool
) -> tuple[ReasonCount, ...]:
    """Failures by reason, the most frequent first; what has no reason of the platform's goes by its kind."""
    now = _by_reason(since)
    then = _by_reason(before)
    by_frequency = sorted(now.keys() | then.keys(), key=lambda reason: (-len(now[reason]), -len(then[reason]), reason))
    counts = []
    for reason in by_frequency[:most]:
        examples = _examples(now[reason]) if share_details else ()
        counts.append(ReasonCount(reason=reason, since=len(now[reason]), before=len(then[reason]), examples=examples))

    rest = by_frequency[most:]
    if rest:
        since_count = sum(len(now[reason]) for reason in rest)
        before_count = sum(len(then[reason]) for reason in rest)
        counts.append(ReasonCount(reason=OTHER, since=since_count, before=before_count))
    return tuple(counts)


def _by_reason(outcomes: Sequence[TaskOutcome]) -> dict[str, list[TaskOutcome]]:
    failed: dict[str, list[TaskOutcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.failure is not None:
            failed[outcome.reason or outcome.failure.value].append(outcome)
    return failed


def _examples(failed: Sequence[TaskOutcome]) -> tuple[str, ...]:
    """Different messages of the newest failures, redacted before they are cut: half a key is not recognised."""
    examples: dict[str, str] = {}
    for outcome in failed[:MOST_DETAILS]:
        text = " ".join(redacted(outcome.detail).split())
        if text:
            shown = text if len(text) <= LONGEST_EXAMPLE else f"{text[: LONGEST_EXAMPLE - 1]}…"
            examples.setdefault(NUMBERED.sub("#", text), shown)
        if len(examples) == MOST_EXAMPLES:
            break
    return tuple(examples.values())


def stands_out(
    session: Session,
    task_type: str,
    parameters: Collection[str],
    onset: datetime,
    start: datetime,
    at: datetime,
    objectives: Mapping[str, Guardrail],
    values: Values,
) -> StandsOut:
    """What a diagnosis of one task type and its `parameters` shows since `start`, cut to a few findings of each kind.

    No message of a failure is in it, and nothing that looks like a credential.
    """
    before = onset - BEFORE_THE_ONSET
    window = windows_of([task_type], task_type, before, onset, start, samples=0)[task_type]
    facts = diagnosis_of(session, task_type, (), window, at, objectives, share_details=False)
    objective = objectives.get(task_type)
    # Failed tasks have no rating, so that they are not among those that a rating judges.
    is_rated = objective is not None and objective.kind is GuardrailKind.WELL_RATED
    contrasted = [contrast for contrast in facts.contrasts if contrast.stands_out]
    recent = changes(session, at, values)
    changed = [change for change in recent if change.parameter in parameters and not change.is_first]
    return StandsOut(
        task_type=task_type,
        tasks=facts.good.tasks + facts.bad.tasks,
        tasks_before=facts.usual.tasks,
        reasons=() if is_rated else _grown(facts)[:MOST_STANDING_OUT],
        contrasts=tuple(contrasted[:MOST_STANDING_OUT]),
        changes=tuple(in_short(change) for change in changed[:MOST_STANDING_OUT]),
    )


def _grown(facts: TaskTypeDiagnosis) -> tuple[ReasonCount, ...]:
    """The reasons for which a larger share of tasks fails than before, what has grown most first."""
    tasks = max(1, facts.good.tasks + facts.bad.tasks)
    tasks_before = max(1, facts.usual.tasks)

    def growth(reason: ReasonCount) -> float:
        return reason.since / tasks - reason.before / tasks_before

    grown = [reason for reason in facts.reasons if growth(reason) > 0]
    return tuple(sorted(grown, key=growth, reverse=True))
