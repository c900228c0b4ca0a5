"""Report: gathers what a night or a fortnight changed, and says it in a few lines.

It reads roll-ups, snapshots, experiments, the market and the ledger, never raw outcomes, and a bounded number of
intervals and of rows for any period. What was not measured is None and is said to be so; it is never zero.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, or_
from sqlmodel import Session, col, select
from temporalio import activity

from activities import experiment_audit, ledger
from activities.database import Database
from activities.events import emit
from activities.experiment import counters, guard_counters
from rules.rates import wilson
from rules.standing import NEWCOMER_STANDING
from rules.verdict import read
from schema.messages.base import Value
from schema.messages.cycle import CycleEnd, Ending
from schema.messages.events import EventType
from schema.messages.experiment import ExperimentDesign, Promotion, Reading
from schema.messages.ledger import EntryKind
from schema.messages.observatory import Anomaly, Counts
from schema.messages.platform import Platform
from schema.messages.report import (
    AgentRecord,
    Change,
    EvidencePoint,
    ExperimentRecord,
    HealthPoint,
    Issue,
    IssueState,
    LedgerLine,
    LedgerSummary,
    OpenCycle,
    Point,
    Report,
    StandingPoint,
    Stretch,
    Track,
)
from schema.tables.events import EventRow
from schema.tables.experiment import ExperimentRow
from schema.tables.ledger import LedgerRow
from schema.tables.market import AgentRow, AwardRow, MetaTaskRow, StandingRow, TransferRow
from schema.tables.observatory import AnomalyRow, RollupRow, SnapshotRow
from schema.tables.proposals import BallotRow, ElectorateRow, ProposalRow

# Widths of a chart's interval, in seconds; a chart has at most so many intervals, which is what a screen can show.
WIDTHS_S = (60, 300, 900, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800)
INTERVALS = 200
# A whole week levels the days of the week out; longer would hide what changed.
LONGEST_STRETCH = timedelta(days=7)
# What a person reads of each list; counts are of all.
LISTED = 50
EXPERIMENTS = 20
CHANGES = 500
MOVES = 200
# Drawing an experiment reads its assignments, so one with more tasks than this is told in figures only.
DRAWN_TASKS = 5_000
NIGHT = timedelta(days=1)
NOT_MEASURED = "not measured"


def report(database: Database, platform: Platform, since: datetime, until: datetime) -> Report:
    """Gather the facts of [since, until); raises ValueError where that is no period."""
    if until <= since:
        raise ValueError(f"expected a period that ends after it begins, but {since:%F %T} to {until:%F %T} came")
    with database.reading() as session:
        width_s = _width_s(platform.observatory.interval_s, since, until)
        before, after = _stretches(session, platform.observatory.interval_s, since, until)
        found = _issues(session, col(AnomalyRow.detected_at) >= since, until)
        open_ = or_(col(AnomalyRow.closed_at).is_(None), col(AnomalyRow.closed_at) > until)
        experiments = _experiments(session, since, until)
        facts: dict[str, Any] = {
            "before": before,
            "after": after,
            **_charts(session, platform, since, until, timedelta(seconds=width_s)),
            "changes": _changes(session, platform, since, until),
            "issues": found[-LISTED:],
            "issue_states": Counter(issue.state for issue in found),
            "endings": _count(
                session, MetaTaskRow.ending, col(MetaTaskRow.ended_at) >= since, col(MetaTaskRow.ended_at) < until
            ),
            "experiments_total": session.exec(select(func.count()).where(*_during(since, until))).one(),
            **_agents(session, since, until),
            "open_anomalies": _issues(session, open_, until)[-LISTED:],
            "open_cycles": _open_cycles(session, until),
        }
    return Report(
        since=since,
        until=until,
        interval_s=width_s,
        success_floor=platform.observatory.success_floor,
        experiments=tuple(e.model_copy(update={"evidence": _evidence(database, e)}) for e in experiments),
        ledger=_ledger(database, since, until),
        **facts,
    )


# ---- the platform's figures


def _width_s(interval_s: int, since: datetime, until: datetime) -> int:
    """Whole roll-ups: an hour, or coarser for a long period; finer only where they are and the period is short."""
    span_s = (until - since).total_seconds()
    widths = (-(-width // interval_s) * interval_s for width in WIDTHS_S)
    return next((width for width in widths if span_s <= width * INTERVALS), math.ceil(span_s / INTERVALS))


def _stretches(
    session: Session, interval_s: int, since: datetime, until: datetime
) -> tuple[Stretch | None, Stretch | None]:
    """The first seventh of what the period has on record, and its last."""
    inside = (col(RollupRow.start) >= since, col(RollupRow.start) < until)
    first = session.exec(select(RollupRow.start).where(*inside).order_by(col(RollupRow.start)).limit(1)).first()
    if first is None:
        return None, None
    span = until - first
    length = min(LONGEST_STRETCH, max(span / 7, min(timedelta(seconds=2 * interval_s), span / 2)))
    return _stretch(session, first, first + length), _stretch(session, until - length, until)


def _stretch(session: Session, start: datetime, end: datetime) -> Stretch:
    tasks, successes, duration_s = session.exec(
        select(func.sum(RollupRow.tasks), func.sum(RollupRow.successes), func.sum(RollupRow.duration_sum_s)).where(
            col(RollupRow.start) >= start, col(RollupRow.start) < end
        )
    ).one()
    # The snapshot's own window reaches back further than one interval, so the last one speaks for the stretch.
    body = session.exec(
        select(SnapshotRow.body)
        .where(col(SnapshotRow.at) > start, col(SnapshotRow.at) <= end)
        .order_by(col(SnapshotRow.at).desc())
        .limit(1)
    ).first()
    return Stretch(
        start=start,
        end=end,
        counts=Counts(tasks=tasks or 0, successes=successes or 0),
        mean_duration_s=duration_s / tasks if tasks else None,
        p95_duration_s=(body or {}).get("p95_duration_s"),
    )


def _charts(
    session: Session, platform: Platform, since: datetime, until: datetime, width: timedelta
) -> dict[str, tuple[Track | HealthPoint, ...]]:
    """Success by interval, for the platform and each task type, and the health score."""
    points: dict[str, list[Point]] = {"": [], **{declared.name: [] for declared in platform.task_types}}
    health = []
    for start, end in _intervals(since, until, width):
        rows = session.exec(
            select(RollupRow.task_type, func.sum(RollupRow.tasks), func.sum(RollupRow.successes))
            .where(col(RollupRow.start) >= start, col(RollupRow.start) < end)
            .group_by(RollupRow.task_type)
        ).all()
        counts = {task_type: Counts(tasks=tasks, successes=successes) for task_type, tasks, successes in rows if tasks}
        for task_type, counted in counts.items():
            points.setdefault(task_type, []).append(Point(start=start, counts=counted))
        if counts:
            points[""].append(Point(start=start, counts=total(counts.values())))
        within = (col(SnapshotRow.at) >= start, col(SnapshotRow.at) < end)
        if (mean := session.exec(select(func.avg(SnapshotRow.health)).where(*within)).one()) is not None:
            health.append(HealthPoint(start=start, health=mean))
    tracks = tuple(Track(task_type=name, points=tuple(found)) for name, found in points.items())
    return {"tracks": tracks, "health": tuple(health)}


def _intervals(since: datetime, until: datetime, width: timedelta) -> Iterator[tuple[datetime, datetime]]:
    """Aligned to the Unix epoch, as roll-ups are; the first and the last may be cut."""
    start = datetime.fromtimestamp(since.timestamp() // width.total_seconds() * width.total_seconds(), UTC)
    while start < until:
        yield max(start, since), min(start + width, until)
        start += width


def total(counts: Iterable[Counts]) -> Counts:
    """All of them together."""
    found = list(counts)
    return Counts(tasks=sum(c.tasks for c in found), successes=sum(c.successes for c in found))


# ---- what was found wrong, and what was changed


def _issues(session: Session, which: ColumnElement[bool], until: datetime) -> tuple[Issue, ...]:
    """Anomalies detected by `until`, oldest first, each with what had become of it by then."""
    known = (which, col(AnomalyRow.detected_at) < until)
    rows = session.exec(select(AnomalyRow).where(*known).order_by(col(AnomalyRow.detected_at))).all()
    attempts = defaultdict(list)
    joined = (
        select(MetaTaskRow)
        .join(AnomalyRow, col(AnomalyRow.anomaly_id) == MetaTaskRow.anomaly_id)
        .where(*known, col(MetaTaskRow.opened_at) < until)
        .order_by(col(MetaTaskRow.attempt))
    )
    for task in session.exec(joined).all():
        attempts[task.anomaly_id].append(task)
    return tuple(_issue(session, row, attempts[row.anomaly_id], until) for row in rows)


def _issue(session: Session, row: AnomalyRow, attempts: list[MetaTaskRow], until: datetime) -> Issue:
    ended = [task for task in attempts if task.ended_at is not None and task.ended_at < until]
    fix = next((task for task in ended if task.ending == Ending.PROMOTED.value), None)
    closed_at = row.closed_at if row.closed_at and row.closed_at < until else None
    if fix is None:
        state = IssueState.CLOSED if closed_at else IssueState.OPEN
    elif _taken_back(session, fix.cycle_id, until):
        state = IssueState.TAKEN_BACK
    else:
        acts = (LedgerRow.kind == EntryKind.PERSON_ACTED.value, LedgerRow.subject == fix.cycle_id)
        by_hand = session.exec(select(LedgerRow.sequence).where(*acts)).first() is not None
        state = IssueState.FIXED_BY_PERSON if by_hand else IssueState.FIXED
    return Issue(
        anomaly=Anomaly.model_validate(row.body),
        state=state,
        attempts=len(attempts),
        last_ending=ended[-1].ending if ended else None,
        fixed_at=fix.ended_at if fix else None,
        closed_at=closed_at,
    )


def _taken_back(session: Session, cycle_id: str, until: datetime) -> bool:
    """Whether a person undid the very version that this cycle had made."""
    made = session.exec(
        select(LedgerRow).where(LedgerRow.key == f"{cycle_id}:{EntryKind.PARAMETER_PROMOTED.value}")
    ).first()
    if made is None:
        return False
    version = Promotion.model_validate_json(made.body).expected_version + 1
    undone = select(LedgerRow).where(
        LedgerRow.subject == made.subject,
        LedgerRow.kind == EntryKind.PARAMETER_ROLLED_BACK.value,
        LedgerRow.at < _text_of(until),
    )
    return any(Promotion.model_validate_json(r.body).expected_version == version for r in session.exec(undone).all())


def _changes(session: Session, platform: Platform, since: datetime, until: datetime) -> tuple[Change, ...]:
    """Promotions and rollbacks, oldest first, each with the value that it replaced."""
    kinds = [EntryKind.PARAMETER_PROMOTED.value, EntryKind.PARAMETER_ROLLED_BACK.value]
    swaps = select(LedgerRow).where(col(LedgerRow.kind).in_(kinds)).order_by(col(LedgerRow.sequence).desc())
    inside = (col(LedgerRow.at) >= _text_of(since), col(LedgerRow.at) < _text_of(until))
    rows = session.exec(swaps.where(*inside).limit(CHANGES)).all()[::-1]
    declared = {parameter.key: parameter for parameter in platform.parameters}
    values: dict[str, Value | None] = {}
    changes = []
    for row in rows:
        made = Promotion.model_validate_json(row.body)
        if made.parameter not in values:
            last = session.exec(
                swaps.where(LedgerRow.subject == made.parameter, LedgerRow.sequence < row.sequence).limit(1)
            ).first()
            default = declared[made.parameter].default if made.parameter in declared else None
            values[made.parameter] = Promotion.model_validate_json(last.body).value if last else default
        changes.append(
            Change(
                at=datetime.fromisoformat(row.at),
                parameter=made.parameter,
                before=values[made.parameter],
                value=made.value,
                task_types=declared[made.parameter].task_types if made.parameter in declared else (),
                rolled_back=row.kind == EntryKind.PARAMETER_ROLLED_BACK.value,
                cycle_id=made.cycle_id,
                reason=made.reason,
            )
        )
        values[made.parameter] = made.value
    return tuple(changes)


def _open_cycles(session: Session, until: datetime) -> tuple[OpenCycle, ...]:
    running = or_(col(MetaTaskRow.ended_at).is_(None), col(MetaTaskRow.ended_at) >= until)
    rows = session.exec(
        select(MetaTaskRow)
        .where(running, col(MetaTaskRow.opened_at) < until)
        .order_by(col(MetaTaskRow.opened_at).desc())
        .limit(LISTED)
    ).all()
    return tuple(
        OpenCycle(**r.model_dump(include={"cycle_id", "subject", "attempt", "opened_at"}), stands=_stands(session, r))
        for r in rows
    )


def _stands(session: Session, task: MetaTaskRow) -> str:
    """How far a cycle is, by the last thing on record; its workflow knows more."""
    of_it = ExperimentRow.cycle_id == task.cycle_id
    last = session.exec(select(ExperimentRow).where(of_it).order_by(col(ExperimentRow.queued_at).desc())).first()
    if last is not None and last.experiment_id != last.cycle_id:
        return "promoted, and watched for harm"
    if last is not None:
        state = _state(last)
        return "the verdict is in" if state == "closed" else f"its experiment is {state}"
    if (proposed := session.get(ProposalRow, task.cycle_id)) is not None:
        return f"the vote on the proposal of {proposed.agent_id}"
    award = session.exec(select(AwardRow).where(AwardRow.cycle_id == task.cycle_id)).first()
    return f"awarded to {award.agent_id}" if award else "open for bids"


# ---- experiments


def _during(since: datetime, until: datetime) -> tuple[ColumnElement[bool], ...]:
    """Experiments of the period; a watch belongs to its experiment."""
    return (
        col(ExperimentRow.experiment_id) == ExperimentRow.cycle_id,
        col(ExperimentRow.queued_at) < until,
        or_(col(ExperimentRow.closed_at).is_(None), col(ExperimentRow.closed_at) >= since),
    )


def _state(row: ExperimentRow) -> str:
    return "closed" if row.closed_at else "running" if row.opened_at else "waiting"


def _experiments(session: Session, since: datetime, until: datetime) -> list[ExperimentRecord]:
    newest = select(ExperimentRow).where(*_during(since, until)).order_by(col(ExperimentRow.queued_at).desc())
    return [_experiment(session, row, until) for row in session.exec(newest.limit(EXPERIMENTS)).all()]


def _experiment(session: Session, row: ExperimentRow, until: datetime) -> ExperimentRecord:
    ended = session.exec(select(LedgerRow.body).where(LedgerRow.key == f"{row.cycle_id}:ended")).first()
    end = CycleEnd.model_validate_json(ended) if ended else None
    proposed = session.get(ProposalRow, row.cycle_id)
    choices = Counter(
        ballot["choice"] for ballot in session.exec(select(BallotRow.body).where(BallotRow.cycle_id == row.cycle_id))
    )
    watched = session.get(ExperimentRow, f"{row.experiment_id}.watch")
    return ExperimentRecord(
        design=ExperimentDesign.model_validate(row.design),
        state=_state(row),
        **row.model_dump(include={"queued_at", "opened_at", "closed_at"}),
        agent_id=proposed.agent_id if proposed else "",
        root_cause=proposed.body["root_cause"] if proposed else "",
        votes=f"{choices['approve']} for, {choices['reject']} against" if choices else "",
        ending=end.ending.value if end else None,
        ending_reason=end.reason if end else "",
        reading=end.reading if end else _reading(session, row, until),
        watch=end.watch if end else _reading(session, watched, until) if watched else None,
    )


def _reading(session: Session, row: ExperimentRow, until: datetime) -> Reading | None:
    """The verdict that was announced; of an experiment that has none yet, the counts and no decision."""
    if row.opened_at is None:
        return None
    key = f"{EventType.EXPERIMENT_CONCLUDED.value}:{row.experiment_id}"
    if (event := session.exec(select(EventRow).where(EventRow.key == key)).first()) is not None:
        return Reading.model_validate(event.data["reading"])
    design = ExperimentDesign.model_validate(row.design)
    counted, guards = counters(session, row.experiment_id), guard_counters(session, row.experiment_id)
    # Calibrating a threshold takes seconds and nothing is decided here: the general one serves.
    found = read(design, counted, guards, opened_at=row.opened_at, at=until, extended=True)
    return found.model_copy(update={"decision": "continue", "reason": "it runs", "interval": None})


def _evidence(database: Database, record: ExperimentRecord) -> tuple[EvidencePoint, ...]:
    reading = record.reading
    if reading is None or reading.control.tasks + reading.treatment.tasks > DRAWN_TASKS:
        return ()
    return tuple(
        EvidencePoint(tasks=r.control.tasks + r.treatment.tasks, log_e=r.log_e, log_e_harm=r.log_e_harm)
        for r in experiment_audit.trajectory(database, record.design.experiment_id)
    )


# ---- agents and the record


def _count(session: Session, by: Any, *where: Any) -> dict[str, int]:
    return dict(session.exec(select(by, func.count()).where(*where).group_by(by)).all())


def _agents(session: Session, since: datetime, until: datetime) -> dict[str, Any]:
    def inside(at: Any) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return col(at) >= since, col(at) < until

    awards = _count(session, AwardRow.agent_id, *inside(AwardRow.at))
    proposals = _count(session, ProposalRow.agent_id, *inside(ProposalRow.at))
    voted = (col(ElectorateRow.cycle_id) == BallotRow.cycle_id, *inside(ElectorateRow.opened_at))
    ballots = _count(session, BallotRow.agent_id, *voted)
    earned, paid = (_moved(session, side, *inside(TransferRow.at)) for side in (TransferRow.credit, TransferRow.debit))
    received, spent = (_moved(session, side) for side in (TransferRow.credit, TransferRow.debit))
    did = [awards, proposals, ballots, earned, paid]
    agents = sorted(
        session.exec(select(AgentRow)).all(),
        key=lambda a: (-earned.get(a.agent_id, 0), -sum(d.get(a.agent_id, 0) for d in did), a.agent_id),
    )
    records = []
    for agent in agents[:LISTED]:
        name = agent.agent_id
        of_it = select(StandingRow).where(StandingRow.agent_id == name).order_by(col(StandingRow.at).desc())
        moves = session.exec(of_it.where(*inside(StandingRow.at)).limit(MOVES)).all()[::-1]
        earlier = session.exec(of_it.where(col(StandingRow.at) < since).limit(1)).first()
        records.append(
            AgentRecord(
                agent_id=name,
                operator=agent.operator,
                suspended=agent.suspended,
                standing_before=earlier.standing if earlier else NEWCOMER_STANDING,
                standing=agent.standing,
                moves=tuple(StandingPoint(at=m.at, standing=m.standing, result=m.result) for m in moves),
                awards=awards.get(name, 0),
                proposals=proposals.get(name, 0),
                ballots=ballots.get(name, 0),
                results=Counter(m.result for m in moves),
                earned=earned.get(name, 0),
                paid=paid.get(name, 0),
                balance=received.get(name, 0) - spent.get(name, 0),
            )
        )
    return {"agents": tuple(records), "agents_total": len(agents)}


def _moved(session: Session, side: Any, *where: Any) -> dict[str, int]:
    """Credits by account, on one side of the transfers."""
    rows = session.exec(select(side, func.sum(TransferRow.amount)).where(*where).group_by(side)).all()
    return {account: int(amount) for account, amount in rows}


def _ledger(database: Database, since: datetime, until: datetime) -> LedgerSummary:
    entries, head, broken = ledger.verify(database)
    inside = (col(LedgerRow.at) >= _text_of(since), col(LedgerRow.at) < _text_of(until))
    with database.reading() as session:
        kinds = _count(session, LedgerRow.kind, *inside)
        rows = session.exec(
            select(LedgerRow).where(*inside).order_by(col(LedgerRow.sequence).desc()).limit(LISTED)
        ).all()
    return LedgerSummary(
        entries=entries, head=head, broken=broken, kinds=kinds, latest=tuple(_line(row) for row in reversed(rows))
    )


def _line(row: LedgerRow) -> LedgerLine:
    body = ledger.entry(row).body
    what = body.get("ending") or body.get("kind") or body.get("value") or body.get("treatment") or ""
    at = datetime.fromisoformat(row.at)
    fields = row.model_dump(include={"sequence", "kind", "subject", "digest"})
    return LedgerLine(**fields, at=at, what=what if isinstance(what, str) else f"{what:g}")


def _text_of(at: datetime) -> str:
    """An instant as the ledger writes it; such texts sort by time."""
    return at.astimezone(UTC).isoformat()


# ---- the words


def said(value: Value | None) -> str:
    """A value of a parameter for people."""
    return "?" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def lasted(seconds: float | None) -> str:
    """A duration for people, in the largest unit that leaves a figure over 1."""
    if seconds is None:
        return NOT_MEASURED
    units = ((172_800.0, 86_400.0, "days"), (5_400.0, 3_600.0, "h"), (90.0, 60.0, "min"), (1.0, 1.0, "s"))
    size, unit = next(((size, unit) for least, size, unit in units if seconds >= least), (0.001, "ms"))
    return f"{seconds / size:.3g} {unit}"


def rate(counts: Counts) -> str:
    """A share of tasks with the counts behind it and its 95 % interval."""
    if not counts.tasks:
        return NOT_MEASURED
    low, high = wilson(counts.successes, counts.tasks)
    share = counts.successes / counts.tasks
    return f"{share:.1%} ({counts.successes:,} of {counts.tasks:,}; {low:.1%} to {high:.1%})"


def about(anomaly: Anomaly) -> str:
    """What an anomaly concerns."""
    return f"{anomaly.metric.replace('_', ' ')} of {anomaly.task_type or 'the platform'}"


def outcome(record: ExperimentRecord) -> str:
    """An experiment's ending, or its verdict while the cycle goes on, or how far it is."""
    if record.ending is not None:
        return record.ending.replace("_", " ")
    return record.reading.decision if record.reading and record.state == "closed" else record.state


def issues(facts: Report) -> list[tuple[str, str]]:
    """The article's rows about issues; without any snapshot nobody looked, which is not the same as none."""
    if not facts.health and not facts.issues_total:
        return [("issues detected", NOT_MEASURED)]
    states, n = facts.issue_states, facts.issues_total
    rows = [("issues detected", f"{n}"), ("fixed with no human", f"{states.get(IssueState.FIXED, 0)} of {n}")]
    rows += [(state.value, f"{states[state]}") for state in IssueState if state in states and state != IssueState.FIXED]
    return [*rows, ("promotions rolled back", f"{facts.rolled_back}")]


def text(facts: Report) -> str:
    """The report in at most 40 lines of plain text, for a notification."""
    before, after = facts.before or _nothing(facts), facts.after or _nothing(facts)
    lines = [
        f"Nautilus, {facts.since:%d %b %Y %H:%M} to {facts.until:%d %b %Y %H:%M} UTC",
        "",
        f"success rate: {rate(before.counts)} at the start",
        f"          now {rate(after.counts)}",
        f"mean completion time: {lasted(before.mean_duration_s)} -> {lasted(after.mean_duration_s)}",
        f"95th percentile: {lasted(before.p95_duration_s)} -> {lasted(after.p95_duration_s)}",
        f"health: {f'{facts.health[-1].health:.0f} of 100' if facts.health else NOT_MEASURED}",
        *(f"{name}: {figure}" for name, figure in issues(facts)),
    ]
    lines += _some("changes", [_said_change(c) for c in reversed(facts.changes)], 5)
    lines += _some("experiments", [_said_experiment(e) for e in facts.experiments], 4)
    lines += _some("open anomalies", [_words(i.anomaly.reason) for i in reversed(facts.open_anomalies)], 2)
    lines += _some("running cycles", [f"{c.cycle_id}: {c.stands}" for c in facts.open_cycles], 2)
    earned = [f"{a.agent_id} earned {a.earned}, standing {a.standing:.2f}" for a in facts.agents if a.earned]
    lines += _some("agents", earned, 2)
    chain = facts.ledger.broken or f"unbroken, head {facts.ledger.head[:16]}"
    lines.append(f"ledger: {sum(facts.ledger.kinds.values())} entries of {facts.ledger.entries}; {_words(chain)}")
    return "\n".join(lines)


def _nothing(facts: Report) -> Stretch:
    return Stretch(start=facts.since, end=facts.until)


def _some(name: str, found: list[str], most: int) -> list[str]:
    if not found:
        return []
    more = [f"  and {len(found) - most} more"] if len(found) > most else []
    return [f"{name}:", *(f"  {line}" for line in found[:most]), *more]


def _words(foreign: str) -> str:
    """Somebody's words as one short line without control characters, which a messenger could obey."""
    line = " ".join("".join(c if c.isprintable() else " " for c in foreign).split())
    return line if len(line) <= 160 else f"{line[:159]}…"


def _said_change(change: Change) -> str:
    verb = "rolled back" if change.rolled_back else "promoted"
    return f"{change.at:%d %b %H:%M} {change.parameter} {said(change.before)} -> {said(change.value)} {verb}"


def _said_experiment(record: ExperimentRecord) -> str:
    design, reading = record.design, record.reading
    arms = f" ({_percent(reading.control)} -> {_percent(reading.treatment)})" if reading else ""
    return f"{design.parameter} {said(design.control)} -> {said(design.treatment)}: {outcome(record)}{arms}"


def _percent(counts: Counts) -> str:
    return f"{counts.successes / counts.tasks:.0%} of {counts.tasks}" if counts.tasks else "no task"


class ReportActivities:
    """Publishes the report of the night."""

    def __init__(self, database: Database, platform: Platform) -> None:
        self._database = database
        self._platform = platform

    @activity.defn
    def publish(self, at: datetime) -> str:
        """Announce what the past day changed, once per date; a retry returns what was announced."""
        night = f"{at.astimezone(UTC):%Y-%m-%d}"
        told = text(report(self._database, self._platform, at - NIGHT, at))
        with self._database.transaction() as session:
            emit(session, EventType.REPORT_PUBLISHED, "report", night, at, title=f"Nautilus, {night}", text=told)
            key = f"{EventType.REPORT_PUBLISHED.value}:{night}"
            return str(session.exec(select(EventRow).where(EventRow.key == key)).one().data["text"])
