"""Diagnosis: the recorded facts about task types, parameters and earlier cycles. Functions, no activities.

Raw outcomes are read with a bound: the newest few thousand of a window say how its tasks go. Details of failures leave
only where the operator shares them, without what looks like a credential.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Any, NamedTuple

from sqlmodel import Session, col, select

from activities import ledger, texts
from activities.history import counts_since
from activities.parameters import SWAPS
from rules.contrasts import ALPHA, Task, contrasts, running_at_start
from rules.redaction import redacted
from rules.verdict import is_good
from schema.failure_kinds import FailureKind
from schema.messages.base import Value, format_value, is_long
from schema.messages.diagnosis import (
    Contrast,
    DurationSample,
    Figures,
    ParameterChange,
    PastEnding,
    ReasonCount,
    TaskTypeDiagnosis,
)
from schema.messages.experiment import Promotion
from schema.messages.ledger import DeclaredParameter, EntryKind
from schema.messages.observatory import Guardrail, Interval, TaskOutcome
from schema.tables.experiment import ExperimentRow, ParameterRow, VerdictRow
from schema.tables.ledger import LedgerRow
from schema.tables.market import MetaTaskRow
from schema.tables.observatory import OutcomeRow
from schema.tables.proposals import ProposalRow

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
# What is compared beside the platform's attributes, and how it begins where one of those has the same name: they have
# no dot in theirs.
OURS, OURS_WHERE_TAKEN = ("agent", "hour", "running"), "nautilus."
# The value of a contrast of numbers.
BOUND = re.compile(r"over [-+.\de]+")
# "The last weeks": the first suspect is the last change, and one of last quarter is none.
RECENT_CHANGES, MOST_CHANGES = timedelta(weeks=4), 50
# Promotions and rollbacks that the values by version are read from; more than a platform makes in a year.
MOST_SWAPS = 2_000
MOST_ENDINGS = 20

Values = Mapping[tuple[str, int], Value]  # by a parameter's key and a version of it


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
    found = contrasts(_tasks(outcomes, verdicts, ours), alpha)
    # Redacted here and not task by task: that would take seconds for thousands of tasks.
    return tuple(contrast if contrast.attribute in ours.values() else _redacted(contrast) for contrast in found)


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


class _RecordedChange(NamedTuple):
    """A change and its number in the ledger, which orders changes of one instant; 0 for one that is not in it."""

    change: ParameterChange
    sequence: int


def changes(session: Session, at: datetime, values: Values) -> tuple[ParameterChange, ...]:
    """What was declared, promoted and rolled back in the weeks before `at`, the newest first."""
    since = at - RECENT_CHANGES
    recorded = _recorded_swaps(session, values) + _recorded_declarations(session, since)
    recorded.sort(key=lambda record: (record.change.at, record.sequence, record.change.parameter), reverse=True)
    recent = [record.change for record in recorded if record.change.at >= since]
    return tuple(recent[:MOST_CHANGES])


def _recorded_swaps(session: Session, values: Values) -> list[_RecordedChange]:
    recorded = []
    for entry in _swaps(session):
        swap = ledger.read(Promotion, entry.body)
        change = ParameterChange(
            parameter=swap.parameter,
            at=datetime.fromisoformat(entry.at),
            kind=entry.kind.removeprefix("parameter."),
            before=values.get((swap.parameter, swap.expected_version)),
            value=swap.value,
            cycle_id=swap.cycle_id,
        )
        recorded.append(_RecordedChange(change, entry.sequence))
    return recorded


def _recorded_declarations(session: Session, since: datetime) -> list[_RecordedChange]:
    """The declarations that are new, and those that changed what production runs on: no other is a suspect."""
    recorded = []
    is_declaration = LedgerRow.kind == EntryKind.PARAMETER_DECLARED.value
    is_recent = LedgerRow.at >= since.astimezone(UTC).isoformat()
    for entry in session.exec(select(LedgerRow).where(is_declaration, is_recent)).all():
        body = ledger.read(DeclaredParameter, entry.body)
        if body.before != body.value:
            at = datetime.fromisoformat(entry.at)
            recorded.append(_RecordedChange(_declaration(body.parameter, at, body.before, body.value), entry.sequence))
    new = {record.change.parameter for record in recorded if record.change.before is None}
    return recorded + [record for record in _first_values(session) if record.change.parameter not in new]


def _first_values(session: Session) -> list[_RecordedChange]:
    """The declarations of parameters that have their first value, also from before the ledger had declarations."""
    rows = session.exec(select(ParameterRow).where(ParameterRow.version == 1)).all()
    values = texts.load(session, [row.value for row in rows])
    declared = (_declaration(row.key, row.changed_at, None, value) for row, value in zip(rows, values, strict=True))
    return [_RecordedChange(change, sequence=0) for change in declared]


def _declaration(parameter: str, at: datetime, before: Value | None, value: Value) -> ParameterChange:
    return ParameterChange(parameter=parameter, at=at, kind="declared", before=before, value=value)


def _swaps(session: Session) -> Sequence[LedgerRow]:
    """The ledger's promotions and rollbacks, the newest first."""
    query = select(LedgerRow).where(col(LedgerRow.kind).in_(SWAPS)).order_by(col(LedgerRow.sequence).desc())
    return session.exec(query.limit(MOST_SWAPS)).all()


def values_by_version(session: Session) -> Values:
    """What parameters were at each of their versions, as far as it is recorded."""
    values: dict[tuple[str, int], Value] = {}
    is_first = ExperimentRow.experiment_id == ExperimentRow.cycle_id  # and not its watch
    tried = select(ExperimentRow.parameter, ExperimentRow.design).where(is_first)
    newest = tried.order_by(col(ExperimentRow.queued_at).desc()).limit(MOST_SWAPS)
    for parameter, design in session.exec(newest).all():
        # The control of an experiment is the value that was in force.
        values[parameter, design["base_version"]] = design["control"]
    for entry in _swaps(session):
        # A promotion or a rollback makes the next version.
        swap = ledger.read(Promotion, entry.body)
        values[swap.parameter, swap.expected_version + 1] = swap.value
    return values | _values_in_force(session)


def _values_in_force(session: Session) -> dict[tuple[str, int], Value]:
    """Every parameter at its version and at the one before it."""
    rows = session.exec(select(ParameterRow)).all()
    current = texts.load(session, [row.value for row in rows])
    previous = texts.load(session, [row.previous for row in rows])
    values: dict[tuple[str, int], Value] = {}
    for row, value, before in zip(rows, current, previous, strict=True):
        values[row.key, row.version - 1] = before
        values[row.key, row.version] = value
    return values


def in_short(ending: PastEnding) -> PastEnding:
    """An ending with the beginnings of its long texts: a cycle's history carries a briefing many times."""
    texts_of = {"value": ending.value, "before": ending.before}
    shortened = {name: format_value(text) for name, text in texts_of.items() if text is not None and is_long(text)}
    return ending.model_copy(update=shortened)


def past_endings(session: Session, subject: str, values: Values) -> tuple[PastEnding, ...]:
    """How the latest cycles on the subject ended, the newest first; what each was to replace, and what it showed."""
    rows = session.exec(
        select(MetaTaskRow, ProposalRow, VerdictRow)
        .outerjoin(ProposalRow, col(ProposalRow.cycle_id) == MetaTaskRow.cycle_id)
        # A cycle's experiment has its id.
        .outerjoin(VerdictRow, col(VerdictRow.experiment_id) == MetaTaskRow.cycle_id)
        .where(MetaTaskRow.subject == subject, col(MetaTaskRow.ending).is_not(None))
        .order_by(col(MetaTaskRow.attempt).desc())
        .limit(MOST_ENDINGS)
    ).all()

    return tuple(_past_ending(task, proposal, verdict, values) for task, proposal, verdict in rows)


def _past_ending(
    task: MetaTaskRow, proposal: ProposalRow | None, verdict: VerdictRow | None, values: Values
) -> PastEnding:
    facts: dict[str, Any] = {"cycle_id": task.cycle_id, "ending": task.ending or "", "ended_at": task.ended_at}
    if proposal is not None:
        parameter = proposal.body["parameter"]
        facts["parameter"] = parameter
        facts["value"] = proposal.body["value"]
        facts["before"] = values.get((parameter, proposal.body["base_version"]))
    if verdict is not None:
        facts["effect"] = verdict.body["effect"]
    return PastEnding(**facts)
