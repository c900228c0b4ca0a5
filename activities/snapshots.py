"""Snapshots: what one says of the platform, from roll-ups and the market's records. Functions, no activities."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import func
from sqlmodel import Session, col, select

from activities.history import healthy_counts
from activities.rollups import (
    Rollup,
    interval_start,
    measures,
    together,
)
from rules.detection import Detection
from rules.health import health
from rules.series import Series, dismiss
from schema.messages.observatory import (
    Counts,
    Interval,
    Measures,
    Snapshot,
)
from schema.messages.platform import ObservatoryRules, Platform
from schema.tables.experiment import ExperimentRow, ParameterRow
from schema.tables.market import AgentRow, AwardRow, FillRow, MetaTaskRow
from schema.tables.observatory import (
    AgentRollupRow,
    AnomalyRow,
    SnapshotRow,
)
from schema.tables.proposals import BallotRow, ElectorateRow, ProposalRow

# What a person reads in a line; every anomaly has its own reason on record.
MOST_REASONS = 5


def unusual_spans(
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


def recorded_states(session: Session, last: SnapshotRow, rules: ObservatoryRules) -> dict[str, Series]:
    """What the last snapshot carried, without the alarms that a person has closed since."""
    states = {name: Series.model_validate(state) for name, state in last.detector.items()}
    alarms = {state.alarm.anomaly.anomaly_id: name for name, state in states.items() if state.alarm is not None}
    closed = select(AnomalyRow).where(col(AnomalyRow.anomaly_id).in_(alarms), col(AnomalyRow.closed_at).is_not(None))
    for row in session.exec(closed).all():
        name = alarms[row.anomaly_id]
        states[name] = dismiss(states[name], row.closed_at or last.at, rules)
    return states


def active_agents(session: Session, since: datetime, until: datetime, interval_s: int) -> dict[datetime, set[str]]:
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


def market_fills(session: Session, since: datetime, until: datetime) -> dict[str, list[Interval]]:
    """How well each task type's market filled, by interval: awarded tasks of those whose bidding was over."""
    rows = session.exec(select(FillRow).where(col(FillRow.start) >= since, col(FillRow.start) < until))
    found: dict[str, list[Interval]] = defaultdict(list)
    for row in sorted(rows.all(), key=lambda row: row.start):
        found[row.task_type].append(Interval(start=row.start, counts=Counts(tasks=row.tasks, successes=row.awarded)))
    return found


def activity_intervals(session: Session, active: Mapping[datetime, set[str]]) -> list[Interval]:
    """Active agents of all that were registered, by interval."""
    registered = session.exec(select(AgentRow.agent_id, AgentRow.registered_at)).all()
    agents = {at: {name for name, registered_at in registered if registered_at < at} for at in active}
    return [
        Interval(start=at, counts=Counts(tasks=len(agents[at]), successes=len(agents[at] & acted)))
        for at, acted in sorted(active.items())
    ]


def measure(
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
    recent = {name: [rollup for rollup in track if rollup.start >= since] for name, track in tracks.items()}
    by_type = {name: together(track) for name, track in recent.items() if track}
    everything = together(by_type.values())
    whole = measures(everything)
    recent_fills = {name: [fill.counts for fill in track if fill.start >= since] for name, track in fills.items()}
    fill_rate = Counts.total(counts for track in recent_fills.values() for counts in track).rate
    agents = set(session.exec(select(AgentRow.agent_id)).all())
    active_names = {agent_id for start, names in active.items() if start >= since for agent_id in names}
    active_count = len(active_names & agents)
    throughput_per_h = everything.tasks * 3_600 / rules.floor_window_s
    usual = healthy_counts(session, sorted(tracks), at, rules)
    # A platform that never ran a task is not well because nobody is missing in it.
    has_run = bool(tracks) or "success" in measured
    score = health(
        success_rate=everything.counts.rate,
        mean_quality=whole.mean_quality,
        # A market with nothing to fill is measured, and full.
        market_fill_rate=1.0 if fill_rate is None and has_run else fill_rate,
        active_agents=active_count if has_run else None,
        expected_agents=len(agents),
        throughput_per_h=throughput_per_h,
        expected_throughput_per_h=usual.tasks * 3_600 / rules.baseline_s if usual else None,
        known_parts={"success", *measured, *(["quality"] if _has_ratings(tracks) else [])},
    )
    return Snapshot(
        at=at,
        interval_s=rules.interval_s,
        platform=everything.counts,
        task_types={name: rollup.counts for name, rollup in by_type.items()},
        market_fill_rate=fill_rate,
        throughput_per_h=throughput_per_h,
        health=score.score,
        reason=_reason(found) or score.reason,
        measures=_by_type(by_type, recent_fills, _working_agents(session, since)),
        measured=tuple(sorted({*measured, *score.parts})),
        active_agents=active_count,
        **whole.model_dump(exclude={"market_fill_rate", "active_agents"}),
    )


def _reason(found: Detection) -> str:
    """Why the new anomalies were raised: the first of them, and how many more there are."""
    reasons = [anomaly.reason for anomaly in found.raised]
    shown = "; ".join(reasons[:MOST_REASONS])
    more = len(reasons) - MOST_REASONS
    # Of some long ones, not even these few fit into a text.
    return shown[:1_900] + (f"; and {more} more" if more > 0 else "")


def _has_ratings(tracks: Mapping[str, Sequence[Rollup]]) -> bool:
    return any(rollup.rated for track in tracks.values() for rollup in track)


def _working_agents(session: Session, since: datetime) -> dict[str, int]:
    """How many agents did tasks of each type."""
    agents = func.count(func.distinct(AgentRollupRow.agent_id))
    return dict(
        session.exec(
            select(AgentRollupRow.task_type, agents)
            .where(col(AgentRollupRow.start) >= since, AgentRollupRow.agent_id != "")
            .group_by(AgentRollupRow.task_type)
        ).all()
    )


def _by_type(
    by_type: Mapping[str, Rollup], fills: Mapping[str, Sequence[Counts]], working: Mapping[str, int]
) -> dict[str, Measures]:
    found = {}
    for name, rollup in by_type.items():
        market = {"market_fill_rate": Counts.total(fills.get(name, ())).rate, "active_agents": working.get(name, 0)}
        found[name] = measures(rollup).model_copy(update=market)
    return found
