"""Monitoring: the figures of a whole platform, read from the database, for whoever is on call.

A reading grows with the number of cycles (10,000 take 0.3 s of CPU), never with the outcomes before RECENT. It writes
nothing and decides nothing. `starter.exporter` gives the figures to Prometheus, after whose
conventions they are named.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import case, exists, func
from sqlmodel import Session, col, select

from activities.database import Database
from rules.subscriptions import subscriptions
from schema import wire
from schema.failure_kinds import FailureKind
from schema.messages.cycle import Ending, Phase
from schema.messages.experiment import Decision
from schema.messages.platform import Platform
from schema.tables.events import CursorRow, EventRow, UndeliveredRow
from schema.tables.experiment import ExperimentRow, FreezeRow, ParameterRow, VerdictRow
from schema.tables.ledger import LedgerRow
from schema.tables.market import AgentRow, AwardRow, MetaTaskRow, TaskRow
from schema.tables.observatory import AnomalyRow, OutcomeRow, SnapshotRow
from schema.tables.proposals import ElectorateRow

# Long enough that a quiet platform is seen to be alive, and short enough that an outage shows at once.
RECENT = timedelta(minutes=5)
# The phases that a cycle's records tell apart. While it waits for approval its records are those of `promoting`.
PHASES = (
    *(Phase.BIDDING, Phase.PROPOSING, Phase.VOTING, Phase.QUEUED),
    *(Phase.EXPERIMENT, Phase.PROMOTING, Phase.WATCHING),
)
# Upper bounds in seconds: from a phase of a trial to a bake time of two weeks.
BUCKETS_S = (10.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0, 259_200.0, 604_800.0, 1_209_600.0)
SUCCESS = "success"
ONE: tuple[str, ...] = ()


class Kind(StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """One metric with its samples by the values of its `labels`; those of a histogram are what was observed."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    samples: Mapping[tuple[str, ...], Any]


def metrics(database: Database, platform: Platform, at: datetime) -> list[Metric]:
    """Every metric of the platform at `at`; one without a value, as the health before the first snapshot, is absent."""
    with database.reading() as session:
        return [
            *_cycles(session),
            *_observatory(session, at),
            *_bus(session, platform),
            *_production(session),
            *_market(session),
        ]


# ---- cycles


def _cycles(session: Session) -> list[Metric]:
    decision = col(VerdictRow.body)["decision"].as_string()
    ending = col(MetaTaskRow.ending)
    oldest = session.exec(select(func.min(MetaTaskRow.opened_at)).where(col(MetaTaskRow.ended_at).is_(None))).one()
    return [
        _counted("nautilus_cycles_open", "Cycles under way, by phase.", "phase", _open_by_phase(session), PHASES),
        _timestamp("nautilus_oldest_open_cycle_timestamp_seconds", "When the oldest open cycle began.", oldest),
        _counted(
            "nautilus_cycles_ended_total",
            "Cycles by how they ended.",
            "ending",
            _count_by(session, ending, ending.is_not(None)),
            Ending,
        ),
        _counted(
            "nautilus_verdicts_total", "Experiments by verdict.", "decision", _count_by(session, decision), Decision
        ),
        Metric(
            "nautilus_phase_duration_seconds",
            Kind.HISTOGRAM,
            "How long phases took that are over, and under `cycle` whole cycles.",
            ("phase",),
            _durations(session),
        ),
    ]


def _open_by_phase(session: Session) -> dict[str, int]:
    """How many open cycles are in each phase, by what is on record of them."""
    of_cycle = col(ExperimentRow.cycle_id) == MetaTaskRow.cycle_id
    closed, opened = col(ExperimentRow.closed_at).is_not(None), col(ExperimentRow.opened_at).is_not(None)
    phase = case(
        (exists().where(of_cycle, _is_watch()), Phase.WATCHING.value),
        (exists().where(of_cycle, closed), Phase.PROMOTING.value),
        (exists().where(of_cycle, opened), Phase.EXPERIMENT.value),
        (exists().where(of_cycle), Phase.QUEUED.value),
        (exists().where(col(ElectorateRow.cycle_id) == MetaTaskRow.cycle_id), Phase.VOTING.value),
        (exists().where(col(AwardRow.cycle_id) == MetaTaskRow.cycle_id), Phase.PROPOSING.value),
        else_=Phase.BIDDING.value,
    )
    phases = select(phase).where(col(MetaTaskRow.ended_at).is_(None))
    counts: dict[str, int] = defaultdict(int)
    for name in session.exec(phases):
        counts[name] += 1
    return counts


def _is_watch() -> Any:
    """Whether an experiment is the watch after a promotion: `rules.design.watch` names it so."""
    return col(ExperimentRow.experiment_id).like("%.watch")


def _durations(session: Session) -> dict[tuple[str, ...], list[float]]:
    """Seconds of each phase that is over."""
    award = select(AwardRow.cycle_id, func.min(AwardRow.at).label("at")).group_by(col(AwardRow.cycle_id)).subquery()
    decided_types = [wire.EventType.PROPOSAL_ACCEPTED.value, wire.EventType.PROPOSAL_REJECTED.value]
    begun_voting, experiment = col(ElectorateRow.opened_at), ExperimentRow
    bids = select(MetaTaskRow.opened_at, award.c.at).join(award, award.c.cycle_id == MetaTaskRow.cycle_id)
    work = select(award.c.at, begun_voting).join(award, award.c.cycle_id == ElectorateRow.cycle_id)
    votes = select(begun_voting, EventRow.at).join(EventRow, col(EventRow.subject) == ElectorateRow.cycle_id)
    is_tested = ~_is_watch()
    spans: dict[str, Any] = {
        Phase.BIDDING: bids,
        Phase.PROPOSING: work,
        Phase.VOTING: votes.where(col(EventRow.type).in_(decided_types)),
        Phase.QUEUED: select(experiment.queued_at, experiment.opened_at).where(is_tested),
        Phase.EXPERIMENT: select(experiment.opened_at, experiment.closed_at).where(is_tested),
        Phase.WATCHING: select(experiment.opened_at, experiment.closed_at).where(_is_watch()),
        "cycle": select(MetaTaskRow.opened_at, MetaTaskRow.ended_at),
    }
    return {
        (str(name),): [(end - start).total_seconds() for start, end in session.exec(span) if start and end]
        for name, span in spans.items()
    }


# ---- the observatory


def _observatory(session: Session, at: datetime) -> list[Metric]:
    still_open = col(AnomalyRow.closed_at).is_(None)
    oldest = session.exec(select(func.min(AnomalyRow.detected_at)).where(still_open)).one()
    # Not the body: a snapshot of many task types is long.
    newest_first = select(SnapshotRow.at, SnapshotRow.health).order_by(col(SnapshotRow.at).desc())
    taken_at, health = session.exec(newest_first.limit(1)).first() or (None, None)
    return [
        _gauge("nautilus_anomalies_open", "Anomalies that are open.", _count(session, still_open)),
        _timestamp("nautilus_oldest_open_anomaly_timestamp_seconds", "When the oldest open anomaly was found.", oldest),
        _timestamp("nautilus_last_snapshot_timestamp_seconds", "When the last snapshot was taken.", taken_at),
        _gauge("nautilus_health_score", "The health score of the last snapshot, 0 to 100.", health),
        Metric(
            "nautilus_outcomes_per_minute",
            Kind.GAUGE,
            f"Tasks that ended, by type and result, a minute over the last {RECENT.total_seconds() / 60:g} minutes.",
            ("task_type", "result"),
            _outcomes(session, at),
        ),
    ]


def _outcomes(session: Session, at: datetime) -> dict[tuple[str, ...], float]:
    grouped = select(OutcomeRow.task_type, OutcomeRow.failure, func.count()).group_by(
        col(OutcomeRow.task_type), col(OutcomeRow.failure)
    )
    recent = grouped.where(col(OutcomeRow.finished_at) > at - RECENT, col(OutcomeRow.finished_at) <= at)
    minutes = RECENT.total_seconds() / 60
    results = (SUCCESS, *(kind.value for kind in FailureKind))
    counts: dict[tuple[str, ...], float] = {}
    for task_type, failure, count in session.exec(recent):
        for result in results:
            counts.setdefault((task_type, result), 0.0)
        counts[task_type, failure or SUCCESS] = count / minutes
    return counts


# ---- the bus


def _bus(session: Session, platform: Platform) -> list[Metric]:
    waiting: dict[tuple[str, ...], float] = {}
    dead: dict[tuple[str, ...], float] = {}
    is_dead = col(UndeliveredRow.dead_at).is_not(None)
    for name, subscription in subscriptions(platform).items():
        cursor = session.get(CursorRow, name)
        if cursor is None:
            continue  # declared, and not started yet
        types = col(EventRow.type).in_([type.value for type in subscription.types])
        ahead = session.exec(select(func.count()).where(col(EventRow.sequence) > cursor.sequence, types)).one()
        undelivered = select(func.count()).where(UndeliveredRow.subscriber == name)
        dead[name,] = session.exec(undelivered.where(is_dead)).one()
        waiting[name,] = ahead + session.exec(undelivered.where(~is_dead)).one()
    return [
        Metric(
            "nautilus_event_backlog",
            Kind.GAUGE,
            "Events that a subscriber has not had, without the dead letters.",
            ("subscriber",),
            waiting,
        ),
        Metric("nautilus_dead_letters", Kind.GAUGE, "Events that wait for a person.", ("subscriber",), dead),
    ]


# ---- production


def _production(session: Session) -> list[Metric]:
    versions: dict[tuple[str, ...], int] = {
        (key,): version for key, version in session.exec(select(ParameterRow.key, ParameterRow.version))
    }
    # Everything (`*`) is always there, so that an alert has a value to compare.
    scopes: dict[tuple[str, ...], int] = {(wire.EVERYTHING,): 0}
    scopes |= {(scope,): 1 for scope in session.exec(select(FreezeRow.scope))}
    entries = session.exec(select(func.max(LedgerRow.sequence))).one() or 0
    help = "The version of each parameter's value in production."
    return [
        Metric("nautilus_parameter_version", Kind.GAUGE, help, ("parameter",), versions),
        Metric("nautilus_frozen", Kind.GAUGE, "1: a person has frozen it; * is everything.", ("scope",), scopes),
        Metric("nautilus_ledger_entries_total", Kind.COUNTER, "Entries of the ledger.", (), {ONE: entries}),
    ]


# ---- the market


def _market(session: Session) -> list[Metric]:
    suspended = col(AgentRow.suspended)
    agents = {"active": _count(session, ~suspended), "suspended": _count(session, suspended)}
    open_tasks = _count(session, col(TaskRow.ended_at).is_(None))
    return [
        _counted("nautilus_agents", "Registered agents.", "state", agents, agents),
        _gauge("nautilus_tasks_open", "User tasks that are in the market or under way.", open_tasks),
    ]


# ---- shapes


def _counted(name: str, help: str, label: str, counts: Mapping[Any, int], values: Iterable[Any]) -> Metric:
    """A count for each of the known `values`, zero where there is none: an alert on what is absent never fires."""
    kind = Kind.COUNTER if name.endswith("_total") else Kind.GAUGE
    return Metric(name, kind, help, (label,), {(str(value),): counts.get(str(value), 0) for value in values})


def _gauge(name: str, help: str, value: float | None) -> Metric:
    return Metric(name, Kind.GAUGE, help, (), {} if value is None else {ONE: value})


def _timestamp(name: str, help: str, at: datetime | None) -> Metric:
    """An instant, of which `time() - ...` is the age: an age would stand still where the exporter does."""
    return _gauge(name, f"{help} Absent where there is none.", None if at is None else at.timestamp())


def _count(session: Session, condition: Any) -> int:
    return session.exec(select(func.count()).where(condition)).one()


def _count_by(session: Session, group: Any, *conditions: Any) -> dict[str, int]:
    return dict(session.exec(select(group, func.count()).where(*conditions).group_by(group)).all())
