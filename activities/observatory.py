"""Observatory: takes snapshots, and reads the facts that agents get: the activities.

A snapshot reads roll-ups and never raw outcomes. A snapshot, the anomalies it raises and their events are one
transaction, keyed by the snapshot's instant.
"""

from datetime import datetime, timedelta

from sqlmodel import Session, col, select
from temporalio import activity

from activities.anomalies import announce
from activities.database import Database, lock
from activities.diagnosis import (
    LONGEST_DIAGNOSIS,
    changes,
    diagnosis_of,
    past_endings,
    values_by_version,
    windows_of,
)
from activities.events import emit
from activities.guardrails import objectives
from activities.history import baseline_window, counts_since, failures_by_reason, history
from activities.memory import recall
from activities.parameters import parameter_states
from activities.recording import EXPIRED_AT_A_TIME, expire_outcomes
from activities.rollups import SHARES, histories, interval_start, rollups
from activities.snapshots import (
    active_agents,
    activity_intervals,
    market_fills,
    measure,
    recorded_states,
    unusual_spans,
)
from activities.symptoms import symptom_of
from rules.detection import detect_all
from rules.elevation import after
from rules.fit import fitted
from rules.series import PLATFORM
from schema.messages.diagnosis import Diagnosis, DiagnosisRequest, TaskTypeDiagnosis
from schema.messages.events import SchedulesElevated, SchedulesRestored
from schema.messages.observatory import Anomaly, Counts, Snapshot
from schema.messages.platform import Platform
from schema.messages.schedules import Elevation
from schema.tables.observatory import AnomalyRow, SnapshotRow

# A snapshot stays small; `nautilus anomaly list` shows all.
MOST_ESCALATIONS = 20


class ObservatoryActivities:
    """Takes snapshots, expires outcomes and reads the facts for a diagnosis."""

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
            lock(session, "anomalies")
            if (recorded := session.get(SnapshotRow, at)) is not None:
                return Snapshot.model_validate(recorded.body)

            tracks = rollups(session, since, until)
            series = histories(tracks, *baseline_window(until, rules))
            active = active_agents(session, since, until, rules.interval_s)
            fills = market_fills(session, since, until)
            # A series without an interval must not take a share of the false-alarm budget.
            series |= {
                "market_fill_rate": fills,
                "active_agents": {PLATFORM: activity_intervals(session, active)} if active else {},
            }

            last = session.exec(select(SnapshotRow).order_by(col(SnapshotRow.at).desc()).limit(1)).first()
            states = recorded_states(session, last, rules) if last else {}
            unusual = unusual_spans(session, self._platform, since, until)
            detection = detect_all(until, series, states, rules, unusual)
            measured = last.body.get("measured", ()) if last else ()
            snapshot = measure(
                session, at, rules, tracks=tracks, active=active, fills=fills, detection=detection, measured=measured
            )

            earlier = Snapshot.model_validate(last.body).elevation if last else Elevation()
            elevation = after(earlier, snapshot.health, at, self._platform.elevation)
            reasons = failures_by_reason(session, until - timedelta(seconds=rules.floor_window_s), until)
            snapshot = snapshot.model_copy(update={"elevation": elevation, "reasons": reasons})
            if elevation.elevated != earlier.elevated:
                event_type = SchedulesElevated if elevation.elevated else SchedulesRestored
                event = event_type(health=snapshot.health, reason=elevation.reason)
                emit(session, event, "schedules", at.isoformat(), at)

            escalated = announce(session, self._platform, detection, at)
            needs = tuple(f"{a.anomaly_id}: {a.escalation}" for a in escalated[:MOST_ESCALATIONS])
            snapshot = snapshot.model_copy(update={"escalations": needs})
            body = snapshot.model_dump(mode="json")
            detector = {name: state.model_dump(mode="json") for name, state in detection.states.items()}
            session.add(SnapshotRow(at=at, health=snapshot.health, body=body, detector=detector))
        return snapshot

    @activity.defn
    def expire(self, at: datetime) -> int:
        """Forget some of the outcomes that are older than the retention; call it until it returns 0."""
        before = at - timedelta(seconds=self._platform.observatory.outcome_retention_s)
        with self._database.transaction() as session:
            return expire_outcomes(session, before, EXPIRED_AT_A_TIME)

    @activity.defn
    def diagnose(self, request: DiagnosisRequest, at: datetime) -> Diagnosis:
        """The recorded facts of the trailing window, or since an instant, set against those of the window before."""
        window = timedelta(seconds=request.window_s)
        start = min(at, max(request.since or at - window, at - LONGEST_DIAGNOSIS))
        rules = self._platform.observatory
        _, _, subject_type = request.subject.partition(":")
        with self._database.reading() as session:
            tracks = history(session, start, at)
            names = [declared.name for declared in self._platform.task_types]
            if subject_type in tracks and subject_type not in names:
                names.append(subject_type)  # one that an agent has registered
            aims = objectives(session, _anomaly(session, request.subject, start, at), rules)
            windows = windows_of(names, subject_type, start - window, start, request.samples)
            symptom = symptom_of(session, self._platform, request.subject, start, at, aims)

            def diagnosis(name: str) -> TaskTypeDiagnosis:
                return diagnosis_of(
                    session,
                    name,
                    intervals=tracks.get(name, []),
                    window=windows[name],
                    counts=counts_since(session, [name], start, at, aims),
                    counts_before=counts_since(session, [name], start - window, start, aims),
                    objectives=aims,
                    share_details=rules.share_details,
                )

            values = values_by_version(session)
            whole = Diagnosis(
                at=at,
                window_start=start,
                task_types=tuple(diagnosis(name) for name in names),
                parameters=parameter_states(session, self._platform),
                endings=past_endings(session, request.subject, values),
                memory=recall(session, symptom, at),
                changes=changes(session, at, values),
            )
        return fitted(whole, subject_type if subject_type in names else "")


def _anomaly(session: Session, subject: str, start: datetime, at: datetime) -> Anomaly | None:
    """The latest anomaly on the subject, or what it would be from `start` on; None where no metric is named."""
    about = select(AnomalyRow).where(AnomalyRow.subject == subject)
    row = session.exec(about.order_by(col(AnomalyRow.detected_at).desc()).limit(1)).first()
    if row is not None:
        return Anomaly.model_validate(row.body)
    metric, _, task_type = subject.partition(":")
    if metric not in SHARES:
        return None
    return Anomaly(
        anomaly_id=metric,
        metric=metric,
        task_type=task_type,
        onset=start,
        detected_at=at,
        observed=Counts(),
        baseline=None,
        reason="",
    )
