"""Report: gathers what changed in a period, a day or a fortnight, as it was recorded; `report_text` formats it.

It reads roll-ups, snapshots, experiments, the market and the ledger, never raw outcomes. What was not measured is None
and never zero.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError
from sqlalchemy import ColumnElement, and_, func, or_
from sqlmodel import Session, col, select
from temporalio import activity

from activities import experiment_audit, ledger
from activities.assignments import counters
from activities.database import Database, insert_new
from activities.events import emit
from activities.history import history
from activities.parameters import SWAPS
from activities.report_text import text
from rules.reasons import merged
from rules.standing import NEWCOMER_STANDING
from rules.verdict import read
from schema.messages.base import Message, Value
from schema.messages.cycle import CycleEnd, Ending
from schema.messages.events import ReportPublished
from schema.messages.experiment import Decision, ExperimentDesign, Promotion, Reading
from schema.messages.ledger import EntryKind
from schema.messages.observatory import Anomaly, Counts, Interval
from schema.messages.platform import Platform
from schema.messages.proposals import Choice, Proposal
from schema.messages.report import (
    AgentStanding,
    ExperimentRecord,
    Issue,
    IssueState,
    RecordedChange,
    Report,
    Stretch,
)
from schema.tables.experiment import ExperimentRow
from schema.tables.ledger import LedgerRow
from schema.tables.market import AgentRow, MetaTaskRow, StandingRow, TransferRow
from schema.tables.observatory import AnomalyRow, SnapshotRow
from schema.tables.proposals import BallotRow, ProposalRow
from schema.tables.report import PublishedReportRow

# What a screen can show of a period; shorter intervals than a minute have too few tasks to compare.
INTERVALS = 60
NARROWEST_S = 60
# A whole week levels the days of the week out; longer would hide what changed.
LONGEST_STRETCH = timedelta(days=7)
# How many entries of each list a person reads; counts are of all.
LISTED = 50
EXPERIMENTS = 20
# Each comes with a dossier of up to 20 kB.
ESCALATIONS = 10
# Drawing an experiment reads its assignments; one with more tasks than this is reported in figures only.
DRAWN_TASKS = 5_000
DAY = timedelta(days=1)

M = TypeVar("M", bound=Message)


def report(database: Database, platform: Platform, since: datetime, until: datetime) -> Report:
    """Gather the facts of [since, until); raises ValueError where it does not end after `since`."""
    if until <= since:
        raise ValueError(f"expected a period that ends after it begins, but {since:%F %T} to {until:%F %T} came")

    entries, head, broken = ledger.verify(database)
    own_s = platform.observatory.interval_s
    width_s = own_s * math.ceil(max(NARROWEST_S, (until - since).total_seconds() / INTERVALS) / own_s)
    with database.reading() as session:
        tracks = _tracks(session, platform, since, until)
        stretches = _stretches(session, tracks[""], own_s, until)
        changes = _changes(session, platform, since, until)
        issues = _issues(session, changes, since, until)
        agents = _agents(session, since, until)
        experiments = _experiments(since, until)
        ended = (col(MetaTaskRow.ended_at) >= since, col(MetaTaskRow.ended_at) < until)
        return Report(
            since=since,
            until=until,
            interval_s=width_s,
            success_floor=platform.observatory.success_floor,
            before=stretches.first,
            after=stretches.last,
            tracks={name: _coarser(track, since, width_s) for name, track in tracks.items()},
            changes=changes,
            issues=issues[:LISTED],
            issue_states=Counter(issue.state for issue in issues if issue.anomaly.detected_at >= since),
            endings=_count(session, MetaTaskRow.ending, *ended),
            experiments=_newest_experiments(database, session, experiments, until),
            experiments_total=session.exec(select(func.count()).where(*experiments)).one(),
            agents=agents[:LISTED],
            agents_total=len(agents),
            ledger_entries=entries,
            ledger_head=head,
            ledger_broken=broken,
            ledger_kinds=_count(session, LedgerRow.kind, *_entered(since, until)),
            escalations=_escalations(session, *ended),
        )


# ---- the platform's figures


class _Stretches(NamedTuple):
    """What the report compares; None where nothing was recorded, or too little to compare."""

    first: Stretch | None
    last: Stretch | None


def _tracks(session: Session, platform: Platform, since: datetime, until: datetime) -> dict[str, list[Interval]]:
    """The intervals of all task types together, under the empty name, and those of each, declared or recorded."""
    by_type = history(session, since, until)
    tracks = {"": list(chain.from_iterable(by_type.values()))}
    for declared in platform.task_types:
        tracks[declared.name] = []
    tracks.update(by_type)
    return tracks


def _together(start: datetime, intervals: Iterable[Interval]) -> Interval:
    measured = [interval for interval in intervals if interval.counts.tasks]
    counts = Counts.total(interval.counts for interval in measured)
    seconds = math.fsum(i.counts.tasks * i.mean_duration_s for i in measured if i.mean_duration_s is not None)
    return Interval(start=start, counts=counts, mean_duration_s=seconds / counts.tasks if counts.tasks else None)


def _coarser(intervals: Iterable[Interval], since: datetime, width_s: int) -> tuple[Interval, ...]:
    """Intervals of so many seconds, aligned to the Unix epoch as roll-ups are; the first may be cut."""
    parts: dict[float, list[Interval]] = defaultdict(list)
    for interval in intervals:
        parts[interval.start.timestamp() // width_s].append(interval)
    starts = {number: max(since, datetime.fromtimestamp(number * width_s, UTC)) for number in sorted(parts)}
    coarser = [_together(start, parts[number]) for number, start in starts.items()]
    return tuple(interval for interval in coarser if interval.counts.tasks)


def _stretches(session: Session, intervals: list[Interval], interval_s: int, until: datetime) -> _Stretches:
    """The first and the last seventh of what the period has on record: whole intervals that do not overlap.

    A single interval is the last stretch, and there is no first one.
    """
    starts = sorted({interval.start for interval in intervals})
    if not starts:
        return _Stretches(None, None)

    width = timedelta(seconds=interval_s)
    begin = starts[0]
    end = starts[-1] + width
    shortest = max(width, min(2 * width, (end - begin) / 2))
    length = width * (min(LONGEST_STRETCH, max((end - begin) / 7, shortest)) // width)
    last = _stretch(session, intervals, end - length, end, until)
    if len(starts) == 1:
        return _Stretches(None, last)
    return _Stretches(_stretch(session, intervals, begin, min(begin + length, end - length), until), last)


def _stretch(session: Session, intervals: list[Interval], start: datetime, end: datetime, until: datetime) -> Stretch:
    inside = [interval for interval in intervals if start <= interval.start < end]
    reasons = merged(interval.reasons for interval in inside)
    tasks = _together(start, inside).model_copy(update={"reasons": reasons})
    return Stretch(end=min(end, until), tasks=tasks, health=_health(session, start, end))


def _health(session: Session, start: datetime, end: datetime) -> float | None:
    inside = (col(SnapshotRow.at) > start, col(SnapshotRow.at) <= end)
    mean: float | None = session.exec(select(func.avg(SnapshotRow.health)).where(*inside)).one()
    return mean


# ---- changes and issues


def _changes(session: Session, platform: Platform, since: datetime, until: datetime) -> tuple[RecordedChange, ...]:
    """Promotions and rollbacks of the period, newest first, each with the value that it replaced."""
    swaps = select(LedgerRow).where(col(LedgerRow.kind).in_(SWAPS)).order_by(col(LedgerRow.sequence))
    rows = session.exec(swaps).all()
    task_types = {parameter.key: parameter.task_types for parameter in platform.parameters}
    # What is in force at each entry: the entries are read from the first one on, also those before the period.
    values: dict[str, Value] = {parameter.key: parameter.default for parameter in platform.parameters}

    changes = []
    for row in rows:
        promotion = _body(Promotion, row.body)
        if promotion is None:
            continue  # a damaged entry
        change = RecordedChange(
            at=datetime.fromisoformat(row.at),
            promotion=promotion,
            before=values.get(promotion.parameter),
            task_types=task_types.get(promotion.parameter, ()),
            rolled_back=row.kind == EntryKind.PARAMETER_ROLLED_BACK,
        )
        values[promotion.parameter] = promotion.value
        if since <= change.at < until:
            changes.append(change)
    return tuple(reversed(changes))


def _issues(session: Session, changes: Iterable[RecordedChange], since: datetime, until: datetime) -> tuple[Issue, ...]:
    """Anomalies that were detected in the period or are still open, newest first, each with what became of it."""
    in_period = (
        col(AnomalyRow.detected_at) < until,
        or_(col(AnomalyRow.detected_at) >= since, col(AnomalyRow.closed_at).is_(None)),
    )
    rows = session.exec(select(AnomalyRow).where(*in_period).order_by(col(AnomalyRow.detected_at).desc())).all()

    cycles_by_anomaly = defaultdict(list)
    joined = select(MetaTaskRow).join(AnomalyRow, col(AnomalyRow.anomaly_id) == MetaTaskRow.anomaly_id)
    for task in session.exec(joined.where(*in_period)).all():
        cycles_by_anomaly[task.anomaly_id].append(task)

    acted = select(LedgerRow.subject).where(LedgerRow.kind == EntryKind.PERSON_ACTED.value, *_entered(since, until))
    by_hand = set(session.exec(acted).all())
    taken_back = _taken_back(changes)
    return tuple(_issue(row, cycles_by_anomaly[row.anomaly_id], by_hand, taken_back) for row in rows)


def _issue(row: AnomalyRow, cycles: Sequence[MetaTaskRow], by_hand: set[str], taken_back: set[str]) -> Issue:
    """What became of an anomaly; `by_hand` are the cycles in which a person acted."""
    fix = next((cycle for cycle in cycles if cycle.ending == Ending.PROMOTED), None)
    if fix is None:
        state = IssueState.CLOSED if row.closed_at else IssueState.OPEN
    elif fix.cycle_id in taken_back:
        state = IssueState.TAKEN_BACK
    elif fix.cycle_id in by_hand:
        state = IssueState.FIXED_BY_PERSON
    else:
        state = IssueState.FIXED
    over_at = fix.ended_at if fix else row.closed_at
    return Issue(anomaly=Anomaly.model_validate(row.body), state=state, attempts=len(cycles), over_at=over_at)


def _taken_back(changes: Iterable[RecordedChange]) -> set[str]:
    """The cycles whose promotion was rolled back: a rollback starts from the very version that the promotion made."""
    promotions: dict[tuple[str, int], str] = {}
    rolled_back: set[tuple[str, int]] = set()
    for change in changes:
        parameter = change.promotion.parameter
        version = change.promotion.expected_version
        if change.rolled_back:
            rolled_back.add((parameter, version - 1))
        else:
            promotions[parameter, version] = change.promotion.cycle_id
    return {cycle_id for change, cycle_id in promotions.items() if change in rolled_back}


def _escalations(session: Session, *ended: ColumnElement[bool]) -> tuple[CycleEnd, ...]:
    """The newest cycles of the period that ended with a call for a person."""
    escalated = select(MetaTaskRow.cycle_id).where(*ended, MetaTaskRow.ending == Ending.ESCALATED.value)
    newest = session.exec(escalated.order_by(col(MetaTaskRow.ended_at).desc()).limit(ESCALATIONS)).all()
    keys = [f"{cycle_id}:ended" for cycle_id in newest]
    entries = select(LedgerRow.body).where(col(LedgerRow.key).in_(keys)).order_by(col(LedgerRow.sequence).desc())
    ends = [_body(CycleEnd, body) for body in session.exec(entries).all()]
    return tuple(end for end in ends if end is not None)


# ---- experiments


def _experiments(since: datetime, until: datetime) -> tuple[ColumnElement[bool], ...]:
    """The experiments of the period; a watch belongs to its experiment."""
    return (
        col(ExperimentRow.experiment_id) == ExperimentRow.cycle_id,
        col(ExperimentRow.queued_at) < until,
        or_(col(ExperimentRow.closed_at).is_(None), col(ExperimentRow.closed_at) >= since),
    )


def _newest_experiments(
    database: Database, session: Session, experiments: Iterable[ColumnElement[bool]], until: datetime
) -> tuple[ExperimentRecord, ...]:
    newest = select(ExperimentRow).where(*experiments).order_by(col(ExperimentRow.queued_at).desc()).limit(EXPERIMENTS)
    return tuple(_experiment(database, session, row, until) for row in session.exec(newest).all())


def _experiment(database: Database, session: Session, row: ExperimentRow, until: datetime) -> ExperimentRecord:
    """How an experiment went, from its proposal and vote to its latest reading and the watch that came after it."""
    end_body = session.exec(select(LedgerRow.body).where(LedgerRow.key == f"{row.cycle_id}:ended")).first()
    end = _body(CycleEnd, end_body) if end_body else None
    proposal_row = session.get(ProposalRow, row.cycle_id)
    ballots = session.exec(select(BallotRow.body).where(BallotRow.cycle_id == row.cycle_id)).all()
    watch_row = session.get(ExperimentRow, f"{row.experiment_id}.watch")

    reading = _reading(session, row, until)
    finished_tasks = reading.control.tasks + reading.treatment.tasks if reading else 0
    # A larger experiment gets no curve: reading all of its tasks would take too long.
    points = experiment_audit.trajectory(database, row.experiment_id) if finished_tasks <= DRAWN_TASKS else []

    state = _state(row, end, reading)
    return ExperimentRecord(
        design=ExperimentDesign.model_validate(row.design),
        outcome=state.outcome,
        reason=state.reason,
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        proposal=Proposal.model_validate(proposal_row.body) if proposal_row else None,
        approved=sum(ballot["choice"] == Choice.APPROVE for ballot in ballots),
        rejected=sum(ballot["choice"] == Choice.REJECT for ballot in ballots),
        reading=reading,
        watch=_reading(session, watch_row, until) if watch_row else None,
        evidence=tuple((point.control.tasks + point.treatment.tasks, point.log_e) for point in points),
    )


class _State(NamedTuple):
    outcome: str
    reason: str


def _state(row: ExperimentRow, end: CycleEnd | None, reading: Reading | None) -> _State:
    """How an experiment ended, or where it stands, and why."""
    if end is not None:
        return _State(end.ending.replace("_", " "), end.reason)
    if row.closed_at is not None and reading is not None:
        return _State(reading.decision.value, reading.reason)
    if row.opened_at is not None:
        return _State("running", "it runs")
    return _State("waiting", "it waits for its turn")


def _reading(session: Session, row: ExperimentRow, until: datetime) -> Reading | None:
    """The verdict that was announced; before there is one, the counts without a decision."""
    if row.opened_at is None:
        return None
    recorded = experiment_audit.verdict(session, row.experiment_id)
    if recorded is not None:
        return recorded
    design = ExperimentDesign.model_validate(row.design)
    # `extended` avoids the calibration of a threshold, which takes seconds: nothing is decided here.
    strata = counters(session, row.experiment_id)
    reading = read(design, strata, guards=(), opened_at=row.opened_at, at=until, extended=True)
    return reading.model_copy(update={"decision": Decision.CONTINUE, "interval": None})


# ---- agents and the record


def _count(session: Session, by: Any, *where: ColumnElement[bool]) -> dict[str, int]:
    return dict(session.exec(select(by, func.count()).where(*where).group_by(by)).all())


def _net(session: Session, *where: ColumnElement[bool]) -> Counter[str]:
    """Credits received less credits paid, by account."""
    net: Counter[str] = Counter()
    for account, sign in ((TransferRow.credit, 1), (TransferRow.debit, -1)):
        for name, amount in session.exec(select(account, func.sum(TransferRow.amount)).where(*where).group_by(account)):
            net[name] += sign * int(amount)
    return net


def _agents(session: Session, since: datetime, until: datetime) -> tuple[AgentStanding, ...]:
    """All agents, those that earned most first."""
    results = _results_by_agent(session, since, until)
    standing_before = _standing_by_agent(session, since)
    earned = _net(session, col(TransferRow.at) >= since, col(TransferRow.at) < until)
    balance = _net(session)
    agents = [
        AgentStanding(
            agent_id=agent.agent_id,
            operator=agent.operator,
            suspended=agent.suspended,
            standing_before=standing_before.get(agent.agent_id, NEWCOMER_STANDING),
            standing=agent.standing,
            results=results[agent.agent_id],
            earned=earned[agent.agent_id],
            balance=balance[agent.agent_id],
        )
        for agent in session.exec(select(AgentRow)).all()
    ]
    return tuple(sorted(agents, key=lambda a: (-a.earned, -sum(a.results.values()), a.agent_id)))


def _results_by_agent(session: Session, since: datetime, until: datetime) -> dict[str, dict[str, int]]:
    """How many awards of each agent had which result."""
    results: dict[str, dict[str, int]] = defaultdict(dict)
    inside = (col(StandingRow.at) >= since, col(StandingRow.at) < until)
    by = (col(StandingRow.agent_id), col(StandingRow.result))
    for agent_id, result, count in session.exec(select(*by, func.count()).where(*inside).group_by(*by)):
        results[agent_id][result] = count
    return results


def _standing_by_agent(session: Session, at: datetime) -> dict[str, float]:
    """The standing of each agent that had a result before an instant, after the last of them."""
    last = select(StandingRow.agent_id, func.max(StandingRow.at).label("at")).where(col(StandingRow.at) < at)
    newest = last.group_by(col(StandingRow.agent_id)).subquery()
    same = and_(col(StandingRow.agent_id) == newest.c.agent_id, col(StandingRow.at) == newest.c.at)
    return {row.agent_id: row.standing for row in session.exec(select(StandingRow).join(newest, same))}


def _body(message: type[M], body: str) -> M | None:
    """An entry's body; None for a damaged one, which `ledger_broken` reports: the rest of the report still counts."""
    try:
        return ledger.read(message, body)
    except ValidationError:
        return None


def _entered(since: datetime, until: datetime) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Entries of the period; the ledger writes instants as texts that sort by time."""
    first, end = (at.astimezone(UTC).isoformat() for at in (since, until))
    return col(LedgerRow.at) >= first, col(LedgerRow.at) < end


# ---- publishing


class ReportActivities:
    """Publishes the nightly report."""

    def __init__(self, database: Database, platform: Platform) -> None:
        self._database = database
        self._platform = platform

    @activity.defn
    def publish(self, at: datetime) -> str:
        """Announce what the past day changed, once per date; a retry returns what was announced."""
        night = f"{at.astimezone(UTC):%Y-%m-%d}"
        body = text(report(self._database, self._platform, at - DAY, at))
        with self._database.transaction() as session:
            row = {"night": night, "at": at, "text": body}
            if insert_new(session, PublishedReportRow, [row], returning="night"):
                emit(session, ReportPublished(title=f"Nautilus, {night}", text=body), "report", night, at)
            return session.get_one(PublishedReportRow, night).text
