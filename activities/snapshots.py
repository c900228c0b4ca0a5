"""Snapshots: measures the platform, from roll-ups and the market's records. Functions, no activities."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import NamedTuple, TypeVar

from sqlalchemy import ColumnElement, func
from sqlmodel import Session, col, select

from activities.history import healthy_counts
from activities.rollups import Rollup, interval_start, measures, rollups, together
from rules.detection import Detection
from rules.health import Health, health
from rules.series import Series, dismiss
from schema.messages.observatory import Counts, Interval, Measures, Snapshot
from schema.messages.platform import ObservatoryRules, Platform
from schema.tables.experiment import ExperimentRow, ParameterRow
from schema.tables.market import AgentRow, AwardRow, FillRow, MetaTaskRow
from schema.tables.observatory import AgentRollupRow, AnomalyRow, SnapshotRow
from schema.tables.proposals import BallotRow, ElectorateRow, ProposalRow

# As many as a person reads in one line; every anomaly has its own reason on record.
MOST_REASONS = 5
AnyInterval = TypeVar("AnyInterval", Rollup, Interval)


class Records(NamedTuple):
    """What was recorded in a span of time: roll-ups by task type, active agents by interval, and the market's fills."""

    tracks: dict[str, list[Rollup]]
    active: dict[datetime, set[str]]
    fills: dict[str, list[Interval]]


def records_of(session: Session, since: datetime, until: datetime, interval_s: int) -> Records:
    return Records(
        tracks=rollups(session, since, until),
        active=active_agents(session, since, until, interval_s),
        fills=market_fills(session, since, until),
    )


def unusual_spans(
    session: Session, platform: Platform, since: datetime, until: datetime
) -> dict[str, list[tuple[datetime, datetime]]]:
    """Spans by task type that no baseline may learn from: its experiments, and all before its last promotion.

    A watch is no such span: nine tasks of ten run on the new value, which is what is normal from now on.
    """
    spans: dict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
    experiments = select(ExperimentRow).where(
        ExperimentRow.experiment_id == ExperimentRow.cycle_id, col(ExperimentRow.opened_at) >= since
    )
    for experiment in session.exec(experiments).all():
        for task_type in experiment.design["task_types"]:
            spans[task_type].append((experiment.opened_at or until, experiment.closed_at or until))
    changed = select(ParameterRow).where(ParameterRow.version > 1)
    changed_at = {row.key: row.changed_at for row in session.exec(changed)}
    for parameter in platform.parameters:
        if parameter.key in changed_at:
            for task_type in parameter.task_types:
                spans[task_type].append((since, changed_at[parameter.key]))
    return spans


def recorded_states(session: Session, last: SnapshotRow, rules: ObservatoryRules) -> dict[str, Series]:
    """The detector's states in the last snapshot, without the alarms that a person has closed since."""
    states = {name: Series.model_validate(state) for name, state in last.detector.items()}
    names = {state.alarm.anomaly.anomaly_id: name for name, state in states.items() if state.alarm is not None}
    closed = select(AnomalyRow).where(col(AnomalyRow.anomaly_id).in_(names), col(AnomalyRow.closed_at).is_not(None))
    for row in session.exec(closed).all():
        name = names[row.anomaly_id]
        states[name] = dismiss(states[name], row.closed_at or last.at, rules)
    return states


def active_agents(session: Session, since: datetime, until: datetime, interval_s: int) -> dict[datetime, set[str]]:
    """The agents that executed a task, won a bid, proposed or voted, by interval; one without any is missing."""
    executed = select(AgentRollupRow.start, AgentRollupRow.agent_id).where(
        *_between(AgentRollupRow.start, since, until)
    )
    # Awards of cycles only: users' tasks have one award each, too many to read.
    won = select(AwardRow.at, AwardRow.agent_id).where(*_between(AwardRow.at, since, until))
    won_cycles = won.join(MetaTaskRow, col(MetaTaskRow.cycle_id) == AwardRow.cycle_id)
    proposed = select(ProposalRow.at, ProposalRow.agent_id).where(*_between(ProposalRow.at, since, until))
    voted = select(ElectorateRow.opened_at, BallotRow.agent_id).where(*_between(ElectorateRow.opened_at, since, until))
    voted_on = voted.join(BallotRow, col(BallotRow.cycle_id) == ElectorateRow.cycle_id)
    active: dict[datetime, set[str]] = defaultdict(set)
    for query in (executed.distinct(), won_cycles, proposed, voted_on):
        for at, agent_id in session.exec(query).all():
            active[interval_start(at, interval_s)].add(agent_id)
    return active


def _between(column: datetime, since: datetime, until: datetime) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return col(column) >= since, col(column) < until


def market_fills(session: Session, since: datetime, until: datetime) -> dict[str, list[Interval]]:
    """How well each task type's market filled, by interval: awarded tasks of those whose bidding was over."""
    rows = session.exec(select(FillRow).where(col(FillRow.start) >= since, col(FillRow.start) < until))
    fills: dict[str, list[Interval]] = defaultdict(list)
    for row in sorted(rows.all(), key=lambda row: row.start):
        fills[row.task_type].append(Interval(start=row.start, counts=Counts(tasks=row.tasks, successes=row.awarded)))
    return fills


def activity_intervals(session: Session, active: Mapping[datetime, set[str]]) -> list[Interval]:
    """Active agents of all that were registered, by interval."""
    registered = session.exec(select(AgentRow.agent_id, AgentRow.registered_at)).all()
    intervals = []
    for start, active_ids in sorted(active.items()):
        agent_ids = {agent_id for agent_id, registered_at in registered if registered_at < start}
        counts = Counts(tasks=len(agent_ids), successes=len(agent_ids & active_ids))
        intervals.append(Interval(start=start, counts=counts))
    return intervals


def measure(
    session: Session,
    at: datetime,
    rules: ObservatoryRules,
    records: Records,
    detection: Detection,
    measured: Collection[str],
) -> Snapshot:
    """The metrics of the trailing floor window, with the health that they give.

    `measured` are the parts of the health that were measured before.
    """
    registered_ids = set(session.exec(select(AgentRow.agent_id)).all())
    snapshot = _snapshot_without_health(session, at, rules, records, registered_ids)
    usual = healthy_counts(session, sorted(records.tracks), at, rules)
    usual_per_h = usual.tasks * 3_600 / rules.baseline_s if usual else None
    score = _health(snapshot, len(registered_ids), usual_per_h, records, measured)
    reason = _reason(detection) or score.reason
    known_parts = tuple(sorted({*measured, *score.parts}))
    return snapshot.model_copy(update={"health": score.score, "reason": reason, "measured": known_parts})


def _snapshot_without_health(
    session: Session, at: datetime, rules: ObservatoryRules, records: Records, registered_ids: Collection[str]
) -> Snapshot:
    """The snapshot of the trailing floor window, by task type and of the whole platform, before its health is known."""
    since = at - timedelta(seconds=rules.floor_window_s)
    recent = {name: _started_since(track, since) for name, track in records.tracks.items()}
    by_type = {name: together(track) for name, track in recent.items() if track}
    whole = together(by_type.values())
    whole_measures = measures(whole)

    fills = {
        name: Counts.total(fill.counts for fill in _started_since(track, since))
        for name, track in records.fills.items()
    }
    active_by_interval = [agent_ids for start, agent_ids in records.active.items() if start >= since]
    # An outcome may name an agent that is not registered.
    active_ids = set(registered_ids).intersection(set[str]().union(*active_by_interval))

    return Snapshot(
        at=at,
        interval_s=rules.interval_s,
        platform=whole.counts,
        task_types={name: rollup.counts for name, rollup in by_type.items()},
        market_fill_rate=Counts.total(fills.values()).rate,
        throughput_per_h=whole.tasks * 3_600 / rules.floor_window_s,
        health=None,  # `measure` adds it
        measures=_measures_by_type(by_type, fills, _working_agents(session, since)),
        active_agents=len(active_ids),
        mean_duration_s=whole_measures.mean_duration_s,
        p50_duration_s=whole_measures.p50_duration_s,
        p95_duration_s=whole_measures.p95_duration_s,
        mean_quality=whole_measures.mean_quality,
        spending=whole_measures.spending,
    )


def _health(
    snapshot: Snapshot, registered_agents: int, usual_per_h: float | None, records: Records, measured: Collection[str]
) -> Health:
    """The health score of the window; what was never measured here takes no part in it."""
    # A platform that never ran a task is not healthy merely because no agent is missing.
    has_run = bool(records.tracks) or "success" in measured
    # A market with nothing to fill counts as measured, and as full.
    fill_rate = 1.0 if snapshot.market_fill_rate is None and has_run else snapshot.market_fill_rate
    return health(
        success_rate=snapshot.platform.rate,
        mean_quality=snapshot.mean_quality,
        market_fill_rate=fill_rate,
        active_agents=snapshot.active_agents if has_run else None,
        expected_agents=registered_agents,
        throughput_per_h=snapshot.throughput_per_h,
        expected_throughput_per_h=usual_per_h,
        known_parts=_known_parts(records.tracks, measured),
    )


def _started_since(track: Sequence[AnyInterval], since: datetime) -> list[AnyInterval]:
    return [interval for interval in track if interval.start >= since]


def _reason(detection: Detection) -> str:
    """Why the new anomalies were raised: the first reasons, and how many more there are."""
    reasons = [anomaly.reason for anomaly in detection.raised]
    shown = "; ".join(reasons[:MOST_REASONS])
    more = len(reasons) - MOST_REASONS
    # A text has at most 2,000 characters, which five long reasons may exceed.
    return shown[:1_900] + (f"; and {more} more" if more > 0 else "")


def _known_parts(tracks: Mapping[str, Sequence[Rollup]], measured: Collection[str]) -> set[str]:
    """The parts of health that this platform measures, or has measured before."""
    is_rated = any(rollup.rated for rollup in chain.from_iterable(tracks.values()))
    return {"success", "quality", *measured} if is_rated else {"success", *measured}


def _working_agents(session: Session, since: datetime) -> dict[str, int]:
    """How many agents did tasks of each type."""
    agents = func.count(func.distinct(AgentRollupRow.agent_id))
    recent = select(AgentRollupRow.task_type, agents).where(col(AgentRollupRow.start) >= since)
    named = recent.where(AgentRollupRow.agent_id != "")
    return dict(session.exec(named.group_by(AgentRollupRow.task_type)).all())


def _measures_by_type(
    by_type: Mapping[str, Rollup], fills: Mapping[str, Counts], working: Mapping[str, int]
) -> dict[str, Measures]:
    measures_by_type = {}
    for name, rollup in by_type.items():
        market = {"market_fill_rate": fills.get(name, Counts()).rate, "active_agents": working.get(name, 0)}
        measures_by_type[name] = measures(rollup).model_copy(update=market)
    return measures_by_type
