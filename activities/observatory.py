"""Observatory: counts outcomes as they come, takes snapshots, and tells agents the facts.

Roll-ups are kept in the transaction that records the outcomes, so a snapshot reads intervals and never raw outcomes. A
snapshot, the anomalies it raises and their events are one transaction, keyed by the snapshot's instant.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import func
from sqlmodel import Session, col, select
from temporalio import activity

from activities.database import Database, insert_new, lock
from activities.events import emit
from activities.experiment import finish_assignments, parameter_states
from rules.cooldown import next_attempt_at
from rules.detection import Detection, Series, detect
from rules.health import health
from rules.verdict import is_good
from schema.messages.cycle import Ending
from schema.messages.events import EventType
from schema.messages.experiment import Guardrail, GuardrailKind
from schema.messages.observatory import (
    Counts,
    Diagnosis,
    DiagnosisRequest,
    DurationSample,
    FailureKind,
    Interval,
    PastEnding,
    Snapshot,
    TaskOutcome,
    TaskTypeDiagnosis,
)
from schema.messages.platform import Mode, ObservatoryRules, Platform
from schema.tables.experiment import ExperimentRow, ParameterRow
from schema.tables.market import AgentRow, AwardRow, MetaTaskRow
from schema.tables.observatory import AnomalyRow, OutcomeRow, RollupRow, SnapshotRow
from schema.tables.proposals import BallotRow, ElectorateRow, ProposalRow

# Enough for a 95th percentile within half a point, and no more to read however long the history.
GUARDRAIL_TASKS = 2_000
# All samples of one diagnosis: some 200 kB, and Temporal warns at 256.
SAMPLES = 4_000
FAILURE_COLUMNS = {
    FailureKind.TIMEOUT: "timeouts",
    FailureKind.INVALID_RESULT: "invalid_results",
    FailureKind.ERROR: "errors",
    FailureKind.LOST: "lost",
}


def interval_start(at: datetime, interval_s: int) -> datetime:
    """The start of the roll-up interval that `at` falls into; intervals are aligned to the Unix epoch."""
    return datetime.fromtimestamp(at.timestamp() // interval_s * interval_s, UTC)


def record_outcomes(session: Session, outcomes: Iterable[TaskOutcome], interval_s: int) -> int:
    """Store outcomes, count them in roll-ups and experiments; return how many were new."""
    by_id = {outcome.task_id: outcome for outcome in outcomes}
    rows = [{**o.model_dump(), "failure": o.failure.value if o.failure else None} for o in by_id.values()]
    lock(session, "rollup")
    new = [by_id[task_id] for task_id in insert_new(session, OutcomeRow, rows, returning="task_id")]
    _roll_up(session, new, interval_s)
    finish_assignments(session, {outcome.task_id: outcome for outcome in new})
    return len(new)


def _roll_up(session: Session, outcomes: Sequence[TaskOutcome], interval_s: int) -> None:
    groups: dict[tuple[datetime, str], list[TaskOutcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[interval_start(outcome.finished_at, interval_s), outcome.task_type].append(outcome)
    for (start, task_type), group in sorted(groups.items()):
        row = session.get(RollupRow, (start, task_type)) or RollupRow(start=start, task_type=task_type)
        row.tasks += len(group)
        row.successes += sum(outcome.failure is None for outcome in group)
        for kind, column in FAILURE_COLUMNS.items():
            setattr(row, column, getattr(row, column) + sum(outcome.failure is kind for outcome in group))
        row.duration_sum_s += sum(outcome.duration_s for outcome in group)
        ratings = [outcome.quality for outcome in group if outcome.quality is not None]
        row.rated += len(ratings)
        row.quality_sum += sum(ratings)
        row.cost_sum += sum(outcome.cost for outcome in group)
        session.add(row)


def _interval(row: RollupRow) -> Interval:
    return Interval(
        start=row.start,
        counts=Counts(tasks=row.tasks, successes=row.successes),
        failures={kind: getattr(row, column) for kind, column in FAILURE_COLUMNS.items() if getattr(row, column)},
        mean_duration_s=row.duration_sum_s / row.tasks if row.tasks else None,
        mean_quality=row.quality_sum / row.rated if row.rated else None,
    )


def history(session: Session, since: datetime, until: datetime) -> dict[str, list[Interval]]:
    """The intervals of each task type that start in [since, until), oldest first."""
    rows = session.exec(
        select(RollupRow)
        .where(col(RollupRow.start) >= since, col(RollupRow.start) < until)
        .order_by(col(RollupRow.start))
    ).all()
    found: dict[str, list[Interval]] = defaultdict(list)
    for row in rows:
        found[row.task_type].append(_interval(row))
    return dict(found)


def counts_since(session: Session, task_types: Sequence[str], since: datetime, until: datetime | None = None) -> Counts:
    """Tasks and successes of some task types in the intervals that start at `since` or later (and before `until`)."""
    query = select(func.coalesce(func.sum(RollupRow.tasks), 0), func.coalesce(func.sum(RollupRow.successes), 0)).where(
        col(RollupRow.task_type).in_(task_types), col(RollupRow.start) >= since
    )
    if until is not None:
        query = query.where(col(RollupRow.start) < until)
    tasks, successes = session.exec(query).one()
    return Counts(tasks=tasks, successes=successes)


def healthy_counts(session: Session, task_types: Sequence[str], at: datetime, rules: ObservatoryRules) -> Counts | None:
    """The counts of the baseline window before the guard gap; None where nothing was recorded there."""
    end = at - timedelta(seconds=rules.guard_s)
    counts = counts_since(session, task_types, end - timedelta(seconds=rules.baseline_s), end)
    return counts if counts.tasks else None


def latest_snapshot(database: Database) -> Snapshot | None:
    """The newest snapshot; None before the first."""
    with database.reading() as session:
        row = session.exec(select(SnapshotRow).order_by(col(SnapshotRow.at).desc()).limit(1)).first()
    return Snapshot.model_validate(row.body) if row else None


def guardrails(
    session: Session, task_types: Sequence[str], at: datetime, rules: ObservatoryRules
) -> tuple[Guardrail, ...]:
    """What must not get worse, from the latest tasks of the baseline window (or, on day one, of all there is).

    A guardrail of something that is not measured here is none. The margin is the cycle's to set.
    """
    since = at - timedelta(seconds=rules.guard_s + rules.baseline_s)
    rows = session.exec(
        select(OutcomeRow)
        .where(col(OutcomeRow.task_type).in_(task_types), col(OutcomeRow.finished_at) >= since)
        .order_by(col(OutcomeRow.finished_at).desc())
        .limit(GUARDRAIL_TASKS)
    ).all()
    outcomes = [TaskOutcome.model_validate(row.model_dump()) for row in rows]
    bounds = {
        GuardrailKind.FAST: _quantile([o.duration_s for o in outcomes if o.failure is None], 0.95),
        GuardrailKind.WELL_RATED: _quantile([o.quality for o in outcomes if o.quality is not None], 0.5),
        GuardrailKind.CHEAP: _quantile([o.cost for o in outcomes if o.cost], 0.95),
    }
    found = []
    for kind, bound in bounds.items():
        if bound is not None:
            guardrail = Guardrail(kind=kind, bound=bound, usual=0.5, margin=0.05)
            judged = [good for o in outcomes if (good := is_good(guardrail, o)) is not None]
            usual = (sum(judged) + 0.5) / (len(judged) + 1)
            found.append(guardrail.model_copy(update={"usual": usual}))
    return tuple(found)


def _quantile(values: list[float], share: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


class ObservatoryActivities:
    """Takes snapshots and tells the facts."""

    def __init__(self, database: Database, platform: Platform) -> None:
        self._database = database
        self._platform = platform

    @activity.defn
    def take_snapshot(self, at: datetime) -> Snapshot:
        """Measure, detect and announce, in one transaction; a snapshot of this instant is taken once."""
        rules = self._platform.observatory
        until = interval_start(at, rules.interval_s)
        since = until - timedelta(seconds=rules.baseline_s + rules.guard_s + rules.floor_window_s)
        with self._database.transaction() as session:
            if (taken := session.get(SnapshotRow, at)) is not None:
                return Snapshot.model_validate(taken.body)
            known = history(session, since, until)
            last = session.exec(select(SnapshotRow).order_by(col(SnapshotRow.at).desc()).limit(1)).first()
            states = {name: Series.model_validate(state) for name, state in last.detector.items()} if last else {}
            found = detect(until, known, states, rules, excluded=_not_normal(session, self._platform, since, until))
            snapshot = _measure(session, at, rules, known, found)
            self._announce(session, found, at)
            detector = {name: state.model_dump(mode="json") for name, state in found.states.items()}
            session.add(
                SnapshotRow(at=at, health=snapshot.health, body=snapshot.model_dump(mode="json"), detector=detector)
            )
        return snapshot

    def _announce(self, session: Session, found: Detection, at: datetime) -> None:
        for anomaly in found.raised:
            body = anomaly.model_dump(mode="json")
            fields = {"anomaly_id": anomaly.anomaly_id, "subject": anomaly.subject, "detected_at": at, "body": body}
            insert_new(session, AnomalyRow, [fields | {"closed_at": None}], returning="anomaly_id")
        for row in session.exec(select(AnomalyRow).where(col(AnomalyRow.closed_at).is_(None))).all():
            if row.anomaly_id in found.closed:
                row.closed_at = at
                session.add(row)
                emit(session, EventType.ANOMALY_CLOSED, row.subject, row.anomaly_id, at, anomaly_id=row.anomaly_id)
            elif self._platform.mode is Mode.OBSERVE:
                key = f"{row.anomaly_id}:observed"
                emit(session, EventType.ANOMALY_DETECTED, row.subject, key, at, anomaly=row.body, attempt=None)
            elif (attempt := self._due_attempt(session, row, at)) is not None:
                key = f"{row.anomaly_id}:{attempt}"
                emit(session, EventType.ANOMALY_DETECTED, row.subject, key, at, anomaly=row.body, attempt=attempt)

    def _due_attempt(self, session: Session, anomaly: AnomalyRow, at: datetime) -> int | None:
        """The number of the next attempt on an open anomaly, or None while one runs or cools down."""
        last = session.exec(
            select(MetaTaskRow)
            .where(MetaTaskRow.subject == anomaly.subject)
            .order_by(col(MetaTaskRow.attempt).desc())
            .limit(1)
        ).first()
        if last is None:
            return 1
        if last.ending is None or last.ended_at is None:
            return None
        start = next_attempt_at(Ending(last.ending), last.ended_at, self._platform.cycle)
        # What was given up is given up until the alarm closes: a new alarm is a new reason.
        over = last.anomaly_id != anomaly.anomaly_id if start is None else at >= start
        return last.attempt + 1 if over else None

    @activity.defn
    def diagnose(self, request: DiagnosisRequest, at: datetime) -> Diagnosis:
        """The recorded facts of the trailing window: counts, failures by kind, durations, parameters, past endings."""
        start = at - timedelta(seconds=request.window_s)
        samples = min(request.samples, SAMPLES // max(1, len(self._platform.task_types)))
        with self._database.reading() as session:
            known = history(session, start, at)
            return Diagnosis(
                at=at,
                window_start=start,
                task_types=tuple(
                    _diagnosis(session, declared.name, known.get(declared.name, []), start, samples)
                    for declared in self._platform.task_types
                ),
                parameters=parameter_states(session, self._platform),
                endings=_endings(session, request.subject),
            )


def _not_normal(
    session: Session, platform: Platform, since: datetime, until: datetime
) -> dict[str, list[tuple[datetime, datetime]]]:
    """Spans by task type that no baseline may learn from: its experiments, and all before its last promotion."""
    spans: dict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
    for experiment in session.exec(select(ExperimentRow).where(col(ExperimentRow.opened_at) >= since)).all():
        for task_type in experiment.design["task_types"]:
            spans[task_type].append((experiment.opened_at or until, experiment.closed_at or until))
    changed = {row.key: row.changed_at for row in session.exec(select(ParameterRow).where(ParameterRow.version > 1))}
    for parameter in platform.parameters:
        if parameter.key in changed:
            for task_type in parameter.task_types:
                spans[task_type].append((since, changed[parameter.key]))
    return spans


def _measure(
    session: Session, at: datetime, rules: ObservatoryRules, known: dict[str, list[Interval]], found: Detection
) -> Snapshot:
    """The metrics of the trailing floor window, by task type and together."""
    since = at - timedelta(seconds=rules.floor_window_s)
    recent = {name: [i for i in intervals if i.start >= since] for name, intervals in known.items()}
    by_type = {name: _total(intervals) for name, intervals in recent.items() if intervals}
    everything = [interval for intervals in recent.values() for interval in intervals]
    total = _total(everything)
    fill = _market_fill_rate(session, since)
    active = session.exec(
        select(func.count(func.distinct(BallotRow.agent_id)))
        .join(ElectorateRow, col(ElectorateRow.cycle_id) == BallotRow.cycle_id)
        .where(col(ElectorateRow.opened_at) >= since)
    ).one()
    registered = session.exec(select(func.count()).select_from(AgentRow)).one()
    throughput = total.tasks * 3_600 / rules.floor_window_s
    usual = healthy_counts(session, sorted(known), at, rules)
    quality = _mean(everything, "mean_quality")
    score = health(
        success_rate=total.rate,
        mean_quality=quality,
        market_fill_rate=fill,
        active_agents=active,
        expected_agents=registered,
        throughput_per_h=throughput,
        expected_throughput_per_h=usual.tasks * 3_600 / rules.baseline_s if usual else None,
    )
    return Snapshot(
        at=at,
        interval_s=rules.interval_s,
        platform=total,
        task_types=by_type,
        mean_duration_s=_mean(everything, "mean_duration_s"),
        mean_quality=quality,
        market_fill_rate=fill,
        active_agents=active,
        throughput_per_h=throughput,
        health=score.score,
        reason="; ".join(anomaly.reason for anomaly in found.raised) or score.reason,
    )


def _total(intervals: Iterable[Interval]) -> Counts:
    counts = [interval.counts for interval in intervals]
    return Counts(tasks=sum(c.tasks for c in counts), successes=sum(c.successes for c in counts))


def _mean(intervals: Iterable[Interval], field: str) -> float | None:
    """A mean over tasks of what the intervals hold as means; None where nothing was measured."""
    measured = [(i.counts.tasks, getattr(i, field)) for i in intervals if getattr(i, field) is not None]
    tasks = sum(count for count, _ in measured)
    return sum(count * value for count, value in measured) / tasks if tasks else None


def _market_fill_rate(session: Session, since: datetime) -> float | None:
    """The share of meta-tasks opened since then that somebody was awarded; None where none was opened."""
    opened = session.exec(select(func.count()).where(col(MetaTaskRow.opened_at) >= since)).one()
    awarded = session.exec(
        select(func.count(func.distinct(AwardRow.cycle_id)))
        .join(MetaTaskRow, col(MetaTaskRow.cycle_id) == AwardRow.cycle_id)
        .where(col(MetaTaskRow.opened_at) >= since)
    ).one()
    return awarded / opened if opened else None


def _diagnosis(
    session: Session, task_type: str, intervals: Sequence[Interval], start: datetime, samples: int
) -> TaskTypeDiagnosis:
    rows = session.exec(
        select(OutcomeRow.duration_s, OutcomeRow.failure)
        .where(OutcomeRow.task_type == task_type, col(OutcomeRow.finished_at) >= start)
        .order_by(col(OutcomeRow.finished_at).desc())
        .limit(samples)
    ).all()
    return TaskTypeDiagnosis(
        task_type=task_type,
        counts=_total(intervals),
        failures={k: n for k in FailureKind if (n := sum(i.failures.get(k, 0) for i in intervals))},
        samples=tuple(
            DurationSample(duration_s=duration_s, failure=FailureKind(failure) if failure else None)
            for duration_s, failure in rows
        ),
    )


def _endings(session: Session, subject: str) -> tuple[PastEnding, ...]:
    rows = session.exec(
        select(MetaTaskRow, ProposalRow)
        .outerjoin(ProposalRow, col(ProposalRow.cycle_id) == MetaTaskRow.cycle_id)
        .where(MetaTaskRow.subject == subject, col(MetaTaskRow.ending).is_not(None))
        .order_by(col(MetaTaskRow.attempt).desc())
        .limit(20)
    ).all()
    return tuple(
        PastEnding(
            cycle_id=task.cycle_id,
            ending=task.ending or "",
            parameter=proposal.body["parameter"] if proposal else None,
            value=proposal.body["value"] if proposal else None,
        )
        for task, proposal in rows
    )
