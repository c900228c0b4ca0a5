"""Anomalies: stores and announces what was detected, and closes what is over. Functions, no activities."""

from datetime import datetime

from sqlmodel import Session, col, select

from activities import ledger
from activities.database import Database, insert_new, lock
from activities.events import emit
from rules.cooldown import next_attempt_at
from rules.detection import Detection
from rules.opening import AIMS, ALWAYS, escalation, overdue
from schema.messages.cycle import Ending
from schema.messages.events import AnomalyClosed, AnomalyDetected
from schema.messages.ledger import EntryKind
from schema.messages.observatory import Anomaly
from schema.messages.platform import Mode, Platform
from schema.tables.market import MetaTaskRow
from schema.tables.observatory import AnomalyRow

# Endings that change production.
CHANGES = (Ending.PROMOTED, Ending.ROLLED_BACK)


def close_anomaly(database: Database, anomaly_id: str, who: str, why: str, at: datetime) -> str | None:
    """Close an anomaly by hand, for good; returns the workflow of the cycle that still works on it, or None.

    What is still wrong is raised anew. Raises ValueError where there is no such anomaly, or it is closed.
    """
    with database.transaction() as session:
        lock(session, "anomalies")
        row = session.get(AnomalyRow, anomaly_id)
        if row is None:
            raise ValueError(f"expected an anomaly, but {anomaly_id} came; `nautilus anomaly list --all` shows them")
        if row.closed_at is not None:
            raise ValueError(
                f"expected an open anomaly, but {anomaly_id} was closed at {row.closed_at:%Y-%m-%d %H:%M} UTC"
            )
        ledger.append(session, EntryKind.ANOMALY_CLOSED, anomaly_id, row.subject, at, {"who": who, "why": why})
        close(session, row, f"closed by {who}: {why}", at)
        working_on_it = select(MetaTaskRow.workflow_id).where(
            MetaTaskRow.anomaly_id == anomaly_id, col(MetaTaskRow.ended_at).is_(None)
        )
        return session.exec(working_on_it).first()


def close(session: Session, anomaly: AnomalyRow, reason: str, at: datetime) -> None:
    anomaly.closed_at = at
    session.add(anomaly)
    closed = AnomalyClosed(anomaly_id=anomaly.anomaly_id, reason=reason)
    emit(session, closed, anomaly.subject, anomaly.anomaly_id, at)


def announce(session: Session, platform: Platform, detection: Detection, at: datetime) -> list[Anomaly]:
    """Store what was raised, close what is over, and announce the rest: to people, and to cycles whose attempt is due.

    Returns the open anomalies that need a person, oldest first.
    """
    for anomaly in detection.raised:
        _store(session, anomaly, at)

    open_rows = session.exec(select(AnomalyRow).where(col(AnomalyRow.closed_at).is_(None))).all()
    by_turn = sorted(open_rows, key=_turn)
    closing_reasons = dict(detection.closed)
    attempted_types: set[str] = set()  # grows as attempts are announced: one at a time for a task type
    still_open: list[AnomalyRow] = []
    for row in by_turn:
        if row.anomaly_id in closing_reasons:
            close(session, row, closing_reasons[row.anomaly_id], at)
        else:
            _announce_to_people_and_cycles(session, platform, row, attempted_types, at)
            still_open.append(row)

    # Announcing has put into each body why the anomaly needs a person, if it does.
    return [Anomaly.model_validate(row.body) for row in still_open if row.body.get("escalation")]


def _announce_to_people_and_cycles(
    session: Session, platform: Platform, row: AnomalyRow, attempted_types: set[str], at: datetime
) -> None:
    """Announce an open anomaly to people where they are needed, and to a cycle where an attempt is due.

    A task type gets one attempt at a time: `attempted_types` grows by the type that gets one here.
    """
    task_type = row.body["task_type"]
    observing = platform.mode is Mode.OBSERVE
    why_no_cycle = escalation(row.body["metric"], task_type, platform.observatory)
    why_overdue = "" if observing else _why_overdue(session, platform, row, at)
    why_a_person = why_no_cycle or why_overdue
    _keep_escalation(session, row, why_a_person)
    if why_a_person or observing:
        _announce_open(session, row, attempt=None, at=at)
    if why_no_cycle or observing or task_type in attempted_types:
        return

    attempt = _due_attempt(session, platform, row, at)
    if attempt is not None:
        attempted_types.add(task_type)
        _announce_open(session, row, attempt, at)


def _keep_escalation(session: Session, row: AnomalyRow, why: str) -> None:
    """Keep why an anomaly needs a person (or that it needs none) with it, so that whatever shows it says so."""
    if why != row.body.get("escalation", ""):
        row.body = dict(row.body, escalation=why)
        session.add(row)


def _why_overdue(session: Session, platform: Platform, row: AnomalyRow, at: datetime) -> str:
    """Why a person is called beside the cycles on an anomaly: it has lasted, and no promotion stands."""
    cycles = session.exec(select(MetaTaskRow).where(MetaTaskRow.anomaly_id == row.anomaly_id)).all()
    for cycle in cycles:
        if cycle.ending == Ending.ESCALATED:
            return ""  # it has called a person, and no further attempt follows
        # One that runs may be watching what it has promoted.
        may_stand = cycle.ending in (None, Ending.PROMOTED)
        if may_stand and ledger.recorded(session, f"{cycle.cycle_id}:{EntryKind.PARAMETER_PROMOTED.value}"):
            return ""
    return overdue(row.detected_at, at, len(cycles), platform.cycle)


def _turn(row: AnomalyRow) -> tuple[datetime, bool, str]:
    """Of two anomalies of one task type, the older gets the attempt; of one age, that of failures."""
    return row.detected_at, row.body["metric"] not in ALWAYS, row.anomaly_id


def _store(session: Session, anomaly: Anomaly, at: datetime) -> None:
    row = {
        "anomaly_id": anomaly.anomaly_id,
        "subject": anomaly.subject,
        "detected_at": at,
        "body": anomaly.model_dump(mode="json"),
        "closed_at": None,
    }
    insert_new(session, AnomalyRow, [row], returning="anomaly_id")


def _announce_open(session: Session, row: AnomalyRow, attempt: int | None, at: datetime) -> None:
    anomaly = Anomaly.model_validate(row.body)
    if attempt is not None:
        anomaly = anomaly.model_copy(update={"escalation": ""})  # an attempt calls nobody
    detected = AnomalyDetected(anomaly=anomaly, attempt=attempt)
    emit(session, detected, row.subject, f"{row.anomaly_id}:{attempt or 'observed'}", at)


def _due_attempt(session: Session, platform: Platform, anomaly: AnomalyRow, at: datetime) -> int | None:
    """The number of the next attempt on an open anomaly, or None while one runs or cools down.

    What was given up is given up until the alarm closes: a new alarm is a new reason.
    """
    if _cause_is_in_work(session, platform, anomaly, at):
        return None
    last = _last_attempt(session, anomaly.subject)
    if last is None:
        return 1
    if last.ending is None or last.ended_at is None:
        return None
    start = next_attempt_at(Ending(last.ending), last.ended_at, platform.cycle)
    if start is None:
        return last.attempt + 1 if last.anomaly_id != anomaly.anomaly_id else None
    return last.attempt + 1 if at >= start else None


def _cause_is_in_work(session: Session, platform: Platform, anomaly: AnomalyRow, at: datetime) -> bool:
    """Whether a cycle on another metric of the same task type runs, or its effect is yet to show.

    Two metrics of a task type often have one cause.
    """
    metric, _, about = anomaly.subject.partition(":")
    for other in {*ALWAYS, *AIMS} - {metric}:
        related = _last_attempt(session, f"{other}:{about}")
        if related is not None and _is_pending(platform, related, at):
            return True
    return False


def _is_pending(platform: Platform, cycle: MetaTaskRow, at: datetime) -> bool:
    """Whether a cycle runs, or the effect of its change is yet to show."""
    if cycle.ending is None or cycle.ended_at is None:
        return True
    shown_at = next_attempt_at(Ending(cycle.ending), cycle.ended_at, platform.cycle)
    return cycle.ending in CHANGES and shown_at is not None and at < shown_at


def _last_attempt(session: Session, subject: str) -> MetaTaskRow | None:
    attempts = select(MetaTaskRow).where(MetaTaskRow.subject == subject)
    return session.exec(attempts.order_by(col(MetaTaskRow.attempt).desc()).limit(1)).first()
