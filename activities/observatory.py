"""Observatory: counts outcomes as they come, takes snapshots, and tells agents the facts.

Roll-ups are kept in the transaction that records the outcomes, so a snapshot reads intervals and never raw outcomes. A
snapshot, the anomalies it raises and their events are one transaction, keyed by the snapshot's instant.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast, get_args

from sqlalchemy import ColumnElement, CursorResult, delete, exists, func, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import defer
from sqlmodel import Session, SQLModel, col, select
from temporalio import activity

from activities.database import Database, insert_new, lock
from activities.events import emit
from activities.experiment import finish_assignments, parameter_states
from activities.memory import recall
from activities.rollups import (
    FAILURE_COLUMNS,
    SHARES,
    SKETCHES,
    Rollup,
    good,
    histories,
    interval_start,
    measures,
    roll_up,
    rollups,
    together,
)
from activities.sketches import highest, lowest, quantile
from rules.baseline import PRIOR_TASKS, total
from rules.cooldown import next_attempt_at
from rules.design import baseline_rate
from rules.detection import PLATFORM, Detection, Series, detect_all
from rules.elevation import after
from rules.health import health
from schema.messages.cycle import Ending
from schema.messages.events import EventType
from schema.messages.observatory import (
    AgentRecord,
    Anomaly,
    Counts,
    Diagnosis,
    DiagnosisRequest,
    DurationSample,
    FailureKind,
    Guardrail,
    GuardrailKind,
    Interval,
    PastEnding,
    Snapshot,
    TaskOutcome,
    TaskTypeDiagnosis,
)
from schema.messages.platform import Aim, Mode, ObservatoryRules, Platform
from schema.messages.schedules import Elevation
from schema.tables.experiment import AssignmentRow, ExperimentRow, ParameterRow
from schema.tables.market import AgentRow, AwardRow, FillRow, MetaTaskRow
from schema.tables.observatory import (
    AgentRollupRow,
    AnomalyRow,
    OutcomeRow,
    RetentionRow,
    RollupRow,
    SnapshotRow,
)
from schema.tables.proposals import BallotRow, ElectorateRow, ProposalRow

# All samples of one diagnosis: some 200 kB, and Temporal warns at 256.
SAMPLES = 4_000
# SQLite takes at most 32,766 values in a statement.
RECORDED_AT_A_TIME = 5_000
LONGEST_DIAGNOSIS = timedelta(days=90)
# A transaction of some tenths of a second, for which recorders wait.
EXPIRED_AT_A_TIME = 20_000
# Long enough to compare with the same season of last year.
ROLLUP_RETENTION = timedelta(days=400)
# What opens a cycle on every platform; an operator may add metrics of speed and cost. Of every other an anomaly is only
# told.
CYCLED = ("success_rate", "no_data")
# Of which quantile of the baseline no more tasks may fall short.
GUARDED = {"durations": 0.95, "qualities": 0.5, "costs": 0.95}
# What a sketch is about, as what must not get worse, and the bound of a bucket that still belongs to the good.
AIMS = {
    "durations": (GuardrailKind.FAST, highest),
    "qualities": (GuardrailKind.WELL_RATED, lowest),
    "costs": (GuardrailKind.CHEAP, highest),
}


class Recorded(NamedTuple):
    """What became of some outcomes. `known` are those that were recorded before with the same content, `conflicting`
    with another; the first one stands. `too_old` are older than what has been expired."""

    new: int = 0
    known: int = 0
    conflicting: int = 0
    too_old: int = 0

    def plus(self, other: "Recorded") -> "Recorded":
        return Recorded(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def record_outcomes(session: Session, outcomes: Iterable[TaskOutcome], interval_s: int) -> Recorded:
    """Store the outcomes that are new, and count them in roll-ups and experiments.

    One that is older than what has been expired is not: nobody could tell it from one that was counted before.
    """
    # One order for all writers: the roll-ups before the arms of experiments.
    lock(session, "rollup")
    expired = session.exec(select(RetentionRow.before).where(RetentionRow.subject == OutcomeRow.__tablename__)).first()
    recorded, first_by_id = Recorded(), dict[str, TaskOutcome]()
    for outcome in outcomes:
        if expired is not None and outcome.finished_at < expired:
            recorded = recorded._replace(too_old=recorded.too_old + 1)
        elif (first := first_by_id.setdefault(outcome.task_id, outcome)) is not outcome:
            recorded = recorded.plus(_repeated(outcome, first))
    firsts = list(first_by_id.values())
    for n in range(0, len(firsts), RECORDED_AT_A_TIME):
        recorded = recorded.plus(_record(session, firsts[n : n + RECORDED_AT_A_TIME], interval_s))
    return recorded


def _repeated(outcome: TaskOutcome, first: TaskOutcome) -> Recorded:
    return Recorded(known=1) if outcome == first else Recorded(conflicting=1)


def _record(session: Session, outcomes: Sequence[TaskOutcome], interval_s: int) -> Recorded:
    rows = {o.task_id: {**vars(o), "failure": o.failure.value if o.failure else None} for o in outcomes}
    table = OutcomeRow.__table__  # type: ignore[attr-defined]
    connection = session.connection()
    repeated = Recorded()
    try:
        # Without the ORM, and as if all were new: a repeated report is rare, and asking for it first is not free.
        with connection.begin_nested():
            connection.execute(insert(table), list(rows.values()))
    except IntegrityError:
        by_id = {outcome.task_id: outcome for outcome in outcomes}
        for stored in connection.execute(select(table).where(table.c.task_id.in_(list(rows)))).mappings():
            repeated = repeated.plus(_repeated(by_id[stored["task_id"]], TaskOutcome.model_validate(dict(stored))))
            del rows[stored["task_id"]]
        if not rows:
            return repeated
        connection.execute(insert(table), list(rows.values()))
    new = {outcome.task_id: outcome for outcome in outcomes if outcome.task_id in rows}
    roll_up(session, new.values(), finish_assignments(session, new), interval_s)
    return repeated._replace(new=len(new))


def history(session: Session, since: datetime, until: datetime) -> dict[str, list[Interval]]:
    """The intervals of each task type that start in [since, until), oldest first."""
    rows = session.exec(
        select(RollupRow)
        .options(*(defer(getattr(RollupRow, name)) for name in SKETCHES))
        .where(col(RollupRow.start) >= since, col(RollupRow.start) < until)
        .order_by(col(RollupRow.start))
    ).all()
    found: dict[str, list[Interval]] = defaultdict(list)
    for row in rows:
        failures = {kind: n for kind, column in FAILURE_COLUMNS.items() if (n := getattr(row, column))}
        counts = Counts(tasks=row.tasks, successes=row.successes)
        mean_s = row.duration_sum_s / row.tasks if row.tasks else None
        found[row.task_type].append(Interval(start=row.start, counts=counts, failures=failures, mean_duration_s=mean_s))
    return dict(found)


def agent_record(session: Session, since: datetime, until: datetime) -> dict[tuple[str, str], AgentRecord]:
    """How each agent's tasks of each type went in the intervals that start in [since, until), whatever their arm."""
    sums = (func.sum(getattr(AgentRollupRow, name)).label(name) for name in AgentRecord.model_fields)
    rows = session.execute(
        select(AgentRollupRow.agent_id, AgentRollupRow.task_type, *sums)
        .where(col(AgentRollupRow.start) >= since, col(AgentRollupRow.start) < until, AgentRollupRow.agent_id != "")
        .group_by(AgentRollupRow.agent_id, AgentRollupRow.task_type)
    )
    return {(row.agent_id, row.task_type): AgentRecord.model_validate(row, from_attributes=True) for row in rows}


def counts_since(
    session: Session,
    task_types: Sequence[str],
    since: datetime,
    until: datetime | None = None,
    objectives: Mapping[str, Guardrail] | None = None,
) -> Counts:
    """Tasks and successes of some task types in the intervals that start at `since` or later (and before `until`).

    A success is what is good by the `objectives`, where there are any.
    """
    if objectives:
        tracks = rollups(session, since, until or datetime.max.replace(tzinfo=UTC), task_types)
        return total(good(one, objectives.get(name)) for name, track in tracks.items() for one in track)
    query = select(func.coalesce(func.sum(RollupRow.tasks), 0), func.coalesce(func.sum(RollupRow.successes), 0)).where(
        col(RollupRow.task_type).in_(task_types), col(RollupRow.start) >= since
    )
    if until is not None:
        query = query.where(col(RollupRow.start) < until)
    tasks, successes = session.exec(query).one()
    return Counts(tasks=tasks, successes=successes)


def counts_of_started(session: Session, since: datetime, until: datetime | None = None) -> Counts:
    """Tasks of all types, and successes, that started at `since` or later (and before `until`) and have ended."""
    succeeded = func.count().filter(col(OutcomeRow.failure).is_(None))
    query = select(func.count(), succeeded).where(col(OutcomeRow.started_at) >= since)
    if until is not None:
        query = query.where(col(OutcomeRow.started_at) < until)
    tasks, successes = session.exec(query).one()
    return Counts(tasks=tasks, successes=successes)


def healthy_counts(
    session: Session,
    task_types: Sequence[str],
    at: datetime,
    rules: ObservatoryRules,
    objectives: Mapping[str, Guardrail] | None = None,
) -> Counts | None:
    """The counts of the baseline window before the guard gap; None where nothing was recorded there."""
    counts = counts_since(session, task_types, *baseline_window(at, rules), objectives)
    return counts if counts.tasks else None


def baseline_window(at: datetime, rules: ObservatoryRules) -> tuple[datetime, datetime]:
    """From when to when a baseline of `at` looks: it ends before the guard gap."""
    end = at - timedelta(seconds=rules.guard_s)
    return end - timedelta(seconds=rules.baseline_s), end


def guardrails(
    session: Session, task_types: Sequence[str], at: datetime, rules: ObservatoryRules, aims: bool = False
) -> tuple[Guardrail, ...]:
    """What must not get worse, from the roll-ups of the baseline window (or, on day one, of all there is).

    A guardrail of something that is not measured here is none. Bounds lie between two buckets of the sketches, so the
    usual share is counted exactly. The margin is the cycle's to set. Who aims at something else than success is guarded
    by it.
    """
    since, end = baseline_window(at, rules)
    tracks = rollups(session, since, at, task_types)
    everything = [one for track in tracks.values() for one in track]
    healthy = together(one for one in everything if one.start < end)
    usual = healthy if healthy.tasks >= PRIOR_TASKS else together(everything)
    found = [_guardrail(usual, field, share) for field, share in GUARDED.items()]
    if aims and usual.tasks:
        found.append(Guardrail(kind=GuardrailKind.COMPLETED, bound=0.0, usual=baseline_rate(usual.counts), margin=0.05))
    return tuple(one for one in found if one is not None)


def objectives(session: Session, anomaly: Anomaly | None, rules: ObservatoryRules) -> dict[str, Guardrail]:
    """What a good task of each type is, where an anomaly is of slow or dear ones: what its metric does not count.

    By the baseline before the onset, whenever it is asked for.
    """
    if anomaly is None or anomaly.metric not in get_args(Aim):
        return {}
    field, share, _ = SHARES[anomaly.metric]
    tracks = rollups(session, *baseline_window(anomaly.onset, rules))
    found = {name: _guardrail(together(track), field, share) for name, track in tracks.items()}
    return {name: aim for name, aim in found.items() if aim is not None}


def _guardrail(usual: Rollup, field: str, share: float) -> Guardrail | None:
    """Tasks on the good side of a quantile of what is usual; None where nothing was measured."""
    kind, bound = AIMS[field]
    if (bucket := quantile(getattr(usual, field), share)) is None:
        return None
    aim = Guardrail(kind=kind, bound=bound(bucket), usual=0.0, margin=0.05)
    counts = good(usual, aim)
    if kind is GuardrailKind.WELL_RATED:  # what is not rated says nothing of what is usual
        counts = Counts(tasks=usual.rated, successes=counts.successes)
    return aim.model_copy(update={"usual": baseline_rate(counts)})


def expire_outcomes(session: Session, before: datetime, limit: int) -> int:
    """Delete at most `limit` outcomes that finished before then, and the assignments of experiments closed before then.

    Nothing goes that an open experiment may have counted. Roll-ups go after ROLLUP_RETENTION. The assignments of an
    experiment go together, or an audit would take those that are left for all there were.
    """
    lock(session, "rollup")
    running = select(func.min(ExperimentRow.opened_at)).where(col(ExperimentRow.closed_at).is_(None))
    before = min(before, session.exec(running).one() or before)
    expired = session.get(RetentionRow, OutcomeRow.__tablename__) or RetentionRow(
        subject=OutcomeRow.__tablename__, before=before
    )
    expired.before = max(expired.before, before)
    session.add(expired)
    old = (
        select(OutcomeRow.task_id)
        .where(col(OutcomeRow.finished_at) < before)
        .order_by(col(OutcomeRow.finished_at))
        .limit(limit)
    )
    deleted = _delete(session, OutcomeRow, col(OutcomeRow.task_id).in_(old))
    assigned = exists().where(col(AssignmentRow.experiment_id) == ExperimentRow.experiment_id)
    closed = (
        select(ExperimentRow.experiment_id)
        .where(col(ExperimentRow.closed_at) < before, assigned)
        .order_by(col(ExperimentRow.closed_at))
    )
    for experiment_id in session.exec(closed).all():
        if deleted >= limit:
            return deleted
        deleted += _delete(session, AssignmentRow, col(AssignmentRow.experiment_id) == experiment_id)
    for table in (RollupRow, AgentRollupRow, FillRow):
        _delete(session, table, col(table.start) < before - ROLLUP_RETENTION)
    return deleted


def _delete(session: Session, table: type[SQLModel], condition: ColumnElement[bool]) -> int:
    statement = delete(table).where(condition).execution_options(synchronize_session=False)
    return cast(CursorResult[Any], session.execute(statement)).rowcount


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
            tracks = rollups(session, since, until)
            watched = histories(tracks, *baseline_window(until, rules))
            active = _active_agents(session, since, until, rules.interval_s)
            fills = _fills(session, since, until)
            # A series without an interval must not take a share of the false-alarm budget.
            watched |= {
                "market_fill_rate": fills,
                "active_agents": {PLATFORM: _activity(session, active)} if active else {},
            }
            last = session.exec(select(SnapshotRow).order_by(col(SnapshotRow.at).desc()).limit(1)).first()
            states = {name: Series.model_validate(state) for name, state in last.detector.items()} if last else {}
            found = detect_all(until, watched, states, rules, _not_normal(session, self._platform, since, until))
            known_parts = last.body.get("measured", ()) if last else ()
            snapshot = _measure(session, at, rules, tracks, active, fills, found, known_parts)
            before = Snapshot.model_validate(last.body).elevation if last else Elevation()
            elevation = after(before, snapshot.health, at, self._platform.elevation)
            snapshot = snapshot.model_copy(update={"elevation": elevation})
            if elevation.elevated != before.elevated:
                emit(
                    session,
                    EventType.SCHEDULES_ELEVATED if elevation.elevated else EventType.SCHEDULES_RESTORED,
                    "schedules",
                    at.isoformat(),
                    at,
                    health=snapshot.health,
                    reason=elevation.reason,
                )
            self._announce(session, found, at)
            detector = {name: state.model_dump(mode="json") for name, state in found.states.items()}
            session.add(
                SnapshotRow(at=at, health=snapshot.health, body=snapshot.model_dump(mode="json"), detector=detector)
            )
        return snapshot

    @activity.defn
    def expire(self, at: datetime) -> int:
        """Forget some of the outcomes that are older than the retention; call it until it returns 0."""
        before = at - timedelta(seconds=self._platform.observatory.outcome_retention_s)
        with self._database.transaction() as session:
            return expire_outcomes(session, before, EXPIRED_AT_A_TIME)

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
            elif self._platform.mode is Mode.OBSERVE or not self._opens_cycles(row.body):
                key = f"{row.anomaly_id}:observed"
                emit(session, EventType.ANOMALY_DETECTED, row.subject, key, at, anomaly=row.body, attempt=None)
            elif (attempt := self._due_attempt(session, row, at)) is not None:
                key = f"{row.anomaly_id}:{attempt}"
                emit(session, EventType.ANOMALY_DETECTED, row.subject, key, at, anomaly=row.body, attempt=attempt)

    def _opens_cycles(self, anomaly: Mapping[str, Any]) -> bool:
        """Whether an experiment can decide on it; a bound for slow or dear tasks is one of a type."""
        metric: str = anomaly["metric"]
        return metric in CYCLED or (metric in self._platform.observatory.opens_cycles and anomaly["task_type"] != "")

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
        window = timedelta(seconds=request.window_s)
        start = min(at, max(request.since or at - window, at - LONGEST_DIAGNOSIS))
        samples = min(request.samples, SAMPLES // max(1, len(self._platform.task_types)))
        with self._database.reading() as session:
            known = history(session, start, at)
            about = select(AnomalyRow).where(AnomalyRow.subject == request.subject)
            row = session.exec(about.order_by(col(AnomalyRow.detected_at).desc()).limit(1)).first()
            anomaly = Anomaly.model_validate(row.body) if row else None
            aims = objectives(session, anomaly, self._platform.observatory)

            def diagnosis(name: str) -> TaskTypeDiagnosis:
                since = counts_since(session, [name], start, at, aims)
                before = counts_since(session, [name], start - window, start, aims)
                return _diagnosis(session, name, known.get(name, []), start, samples, since, before)

            return Diagnosis(
                at=at,
                window_start=start,
                task_types=tuple(diagnosis(declared.name) for declared in self._platform.task_types),
                parameters=parameter_states(session, self._platform),
                endings=_endings(session, request.subject),
                memory=recall(session, request.subject, at),
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


def _active_agents(session: Session, since: datetime, until: datetime, interval_s: int) -> dict[datetime, set[str]]:
    """Who executed a task, won a bid, proposed or voted, by interval; one in which nobody did is missing."""
    acts = [
        select(AgentRollupRow.start, AgentRollupRow.agent_id)
        .where(col(AgentRollupRow.start) >= since, col(AgentRollupRow.start) < until)
        .distinct(),
        # Of the platform's own tasks: there are as many awards of users' tasks as there were tasks.
        select(AwardRow.at, AwardRow.agent_id)
        .join(MetaTaskRow, col(MetaTaskRow.cycle_id) == AwardRow.cycle_id)
        .where(col(AwardRow.at) >= since, col(AwardRow.at) < until),
        select(ProposalRow.at, ProposalRow.agent_id).where(col(ProposalRow.at) >= since, col(ProposalRow.at) < until),
        select(ElectorateRow.opened_at, BallotRow.agent_id)
        .join(BallotRow, col(BallotRow.cycle_id) == ElectorateRow.cycle_id)
        .where(col(ElectorateRow.opened_at) >= since, col(ElectorateRow.opened_at) < until),
    ]
    found: dict[datetime, set[str]] = defaultdict(set)
    for query in acts:
        for at, agent_id in session.exec(query).all():
            found[interval_start(at, interval_s)].add(agent_id)
    return found


def _fills(session: Session, since: datetime, until: datetime) -> dict[str, list[Interval]]:
    """How well each task type's market filled, by interval: awarded tasks of those whose bidding was over."""
    rows = session.exec(select(FillRow).where(col(FillRow.start) >= since, col(FillRow.start) < until))
    found: dict[str, list[Interval]] = defaultdict(list)
    for row in sorted(rows.all(), key=lambda row: row.start):
        found[row.task_type].append(Interval(start=row.start, counts=Counts(tasks=row.tasks, successes=row.awarded)))
    return found


def _activity(session: Session, active: Mapping[datetime, set[str]]) -> list[Interval]:
    """Active agents of all that were registered, by interval."""
    registered = session.exec(select(AgentRow.agent_id, AgentRow.registered_at)).all()
    agents = {at: {name for name, registered_at in registered if registered_at < at} for at in active}
    return [
        Interval(start=at, counts=Counts(tasks=len(agents[at]), successes=len(agents[at] & acted)))
        for at, acted in sorted(active.items())
    ]


def _measure(
    session: Session,
    at: datetime,
    rules: ObservatoryRules,
    tracks: Mapping[str, Sequence[Rollup]],
    active: Mapping[datetime, set[str]],
    fills: Mapping[str, Sequence[Interval]],
    found: Detection,
    measured: Collection[str],
) -> Snapshot:
    """The metrics of the trailing floor window, by task type and together."""
    since = at - timedelta(seconds=rules.floor_window_s)
    recent = {name: [one for one in track if one.start >= since] for name, track in tracks.items()}
    by_type = {name: together(track) for name, track in recent.items() if track}
    everything = together(by_type.values())
    filled = {name: total(i.counts for i in track if i.start >= since).rate for name, track in fills.items()}
    fill = total(i.counts for track in fills.values() for i in track if i.start >= since).rate
    working = dict(
        session.exec(
            select(AgentRollupRow.task_type, func.count(func.distinct(AgentRollupRow.agent_id)))
            .where(col(AgentRollupRow.start) >= since, AgentRollupRow.agent_id != "")
            .group_by(AgentRollupRow.task_type)
        ).all()
    )
    agents = set(session.exec(select(AgentRow.agent_id)).all())
    acted = {agent_id for start, names in active.items() if start >= since for agent_id in names} & agents
    throughput = everything.tasks * 3_600 / rules.floor_window_s
    usual = healthy_counts(session, sorted(tracks), at, rules)
    whole = measures(everything)
    known = {"success", *measured}
    if any(one.rated for track in tracks.values() for one in track):
        known.add("quality")
    # A platform that never ran a task is not well because nobody is missing in it.
    ran = bool(tracks) or "success" in measured
    score = health(
        success_rate=everything.counts.rate,
        mean_quality=whole.mean_quality,
        # A market with nothing to fill is measured, and full.
        market_fill_rate=1.0 if fill is None and ran else fill,
        active_agents=len(acted) if ran else None,
        expected_agents=len(agents),
        throughput_per_h=throughput,
        expected_throughput_per_h=usual.tasks * 3_600 / rules.baseline_s if usual else None,
        known_parts=known,
    )
    return Snapshot(
        at=at,
        interval_s=rules.interval_s,
        platform=everything.counts,
        task_types={name: one.counts for name, one in by_type.items()},
        mean_duration_s=whole.mean_duration_s,
        mean_quality=whole.mean_quality,
        market_fill_rate=fill,
        active_agents=len(acted),
        throughput_per_h=throughput,
        health=score.score,
        reason="; ".join(anomaly.reason for anomaly in found.raised) or score.reason,
        p50_duration_s=whole.p50_duration_s,
        p95_duration_s=whole.p95_duration_s,
        spending=whole.spending,
        measures={
            name: measures(one).model_copy(
                update={"market_fill_rate": filled.get(name), "active_agents": working.get(name, 0)}
            )
            for name, one in by_type.items()
        },
        measured=tuple(sorted({*measured, *score.parts})),
    )


def _diagnosis(
    session: Session,
    task_type: str,
    intervals: Sequence[Interval],
    start: datetime,
    samples: int,
    since: Counts,
    before: Counts,
) -> TaskTypeDiagnosis:
    rows = session.exec(
        select(OutcomeRow.duration_s, OutcomeRow.failure)
        .where(OutcomeRow.task_type == task_type, col(OutcomeRow.finished_at) >= start)
        .order_by(col(OutcomeRow.finished_at).desc())
        .limit(samples)
    ).all()
    return TaskTypeDiagnosis(
        task_type=task_type,
        counts=since,
        before=before,
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
