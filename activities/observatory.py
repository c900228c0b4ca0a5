"""Observatory: takes snapshots, and reads the facts that agents get: the activities.

A snapshot reads roll-ups and never raw outcomes. A snapshot, the anomalies it raises and their events are one
transaction, keyed by the snapshot's instant.
"""

from datetime import datetime, timedelta

from sqlmodel import Session, col, select
from temporalio import activity

from activities.anomalies import announce
from activities.changes import changes, past_endings, values_by_version
from activities.database import Database, lock
from activities.diagnosis import LONGEST_DIAGNOSIS, diagnosis_of, windows_of
from activities.events import emit
from activities.guardrails import objectives
from activities.history import baseline_window, counted_from, failures_by_reason, history
from activities.memory import recall
from activities.parameters import parameter_states
from activities.recording import EXPIRED_AT_A_TIME, expire_outcomes
from activities.rollups import SHARES, histories, interval_start
from activities.snapshots import Records, activity_intervals, measure, recorded_states, records_of, unusual_spans
from activities.symptoms import symptom_of
from rules.detection import Detection, detect_all
from rules.elevation import after
from rules.fit import fitted
from rules.rates import worst
from rules.series import PLATFORM
from schema.messages.diagnosis import Diagnosis, DiagnosisRequest
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
        """Detect anomalies, measure the platform and announce what changed, in one transaction.

        Idempotent by `at`: a retry returns the snapshot that is recorded.
        """
        rules = self._platform.observatory
        until = interval_start(at, rules.interval_s)  # only intervals that are over
        recent_since = until - timedelta(seconds=rules.floor_window_s)
        since = recent_since - timedelta(seconds=rules.guard_s + rules.baseline_s)
        with self._database.transaction() as session:
            lock(session, "anomalies")  # against another snapshot, and a person who closes an anomaly
            recorded = session.get(SnapshotRow, at)
            if recorded is not None:
                return Snapshot.model_validate(recorded.body)

            last = session.exec(select(SnapshotRow).order_by(col(SnapshotRow.at).desc()).limit(1)).first()
            records = records_of(session, since, until, rules.interval_s)
            detection = self._detect(session, records, last, since, until)
            measured_before = last.body.get("measured", ()) if last else ()
            measurement = measure(session, at, rules, records, detection, measured_before)

            elevation = self._elevate(session, last, measurement.health, at)
            need_a_person = announce(session, self._platform, detection, at)[:MOST_ESCALATIONS]
            escalations = tuple(f"{anomaly.anomaly_id}: {anomaly.escalation}" for anomaly in need_a_person)
            reasons = failures_by_reason(session, recent_since, until)

            snapshot = measurement.model_copy(
                update={"elevation": elevation, "escalations": escalations, "reasons": reasons}
            )
            session.add(_row(snapshot, detection))
            return snapshot

    def _detect(
        self, session: Session, records: Records, last: SnapshotRow | None, since: datetime, until: datetime
    ) -> Detection:
        """The anomalies that the records show, by what the detector knew at the last snapshot."""
        rules = self._platform.observatory
        window_start, window_end = baseline_window(until, rules)
        series = histories(records.tracks, window_start, window_end)
        series["market_fill_rate"] = records.fills
        # A series without an interval must not take a share of the false-alarm budget.
        if records.active:
            series["active_agents"] = {PLATFORM: activity_intervals(session, records.active)}
        states = recorded_states(session, last, rules) if last else {}
        return detect_all(until, series, states, rules, unusual_spans(session, self._platform, since, until))

    def _elevate(self, session: Session, last: SnapshotRow | None, health: float | None, at: datetime) -> Elevation:
        """Whether schedules are elevated by the platform's health; a change is announced."""
        earlier = Snapshot.model_validate(last.body).elevation if last else Elevation()
        elevation = after(earlier, health, at, self._platform.elevation)
        if elevation.elevated != earlier.elevated:
            event_type = SchedulesElevated if elevation.elevated else SchedulesRestored
            event = event_type(health=health, reason=elevation.reason)
            emit(session, event, "schedules", at.isoformat(), at)
        return elevation

    @activity.defn
    def expire(self, at: datetime) -> int:
        """Forget some of the outcomes that are older than the retention; call it until it returns 0."""
        before = at - timedelta(seconds=self._platform.observatory.outcome_retention_s)
        with self._database.transaction() as session:
            return expire_outcomes(session, before, EXPIRED_AT_A_TIME)

    @activity.defn
    def diagnose(self, request: DiagnosisRequest, at: datetime) -> Diagnosis:
        """The recorded facts from the onset until `at`, set against those of the window before the onset.

        The onset is the instant that the request names, or the beginning of the trailing window. Where a parameter was
        changed after it, the facts are those since the latest change.
        """
        asked_for = request.since or at - timedelta(seconds=request.window_s)
        onset = min(at, max(asked_for, at - LONGEST_DIAGNOSIS))
        with self._database.reading() as session:
            return self._diagnosis(session, request, onset, at)

    def _diagnosis(self, session: Session, request: DiagnosisRequest, onset: datetime, at: datetime) -> Diagnosis:
        """The facts about every task type, cut to what a message holds; the one in question keeps most."""
        rules = self._platform.observatory
        _, _, subject_type = request.subject.partition(":")
        names = [declared.name for declared in self._platform.task_types]
        touched = {declared.key: list(declared.task_types) for declared in self._platform.parameters}
        # A cycle that opens with an agent's own proposal has the parameter in its subject.
        concerned = [subject_type] if subject_type in names else touched.get(subject_type, names)
        start = counted_from(session, self._platform, concerned, onset)
        tracks = history(session, start, at)
        if subject_type in tracks and subject_type not in names:
            names.append(subject_type)  # one that an agent has registered
        anomaly = _anomaly(session, request.subject, onset, at)
        aims = objectives(session, anomaly, rules)
        before = onset - timedelta(seconds=request.window_s)
        windows = windows_of(names, subject_type, before, onset, start, request.samples)
        symptom = symptom_of(session, self._platform, request.subject, onset, at, aims)
        values = values_by_version(session)
        task_types = [
            diagnosis_of(session, name, tracks.get(name, []), windows[name], at, aims, rules.share_details)
            for name in names
        ]
        whole = Diagnosis(
            at=at,
            window_start=start,
            task_types=tuple(task_types),
            parameters=parameter_states(session, self._platform),
            endings=past_endings(session, request.subject, values),
            memory=recall(session, symptom, at),
            changes=changes(session, at, values),
        )
        counts = {facts.task_type: facts.counts for facts in task_types if facts.task_type in concerned}
        in_question = subject_type if subject_type in names else worst(counts)
        return fitted(whole, in_question, parameter=subject_type)


def _row(snapshot: Snapshot, detection: Detection) -> SnapshotRow:
    body = snapshot.model_dump(mode="json")
    detector = {name: state.model_dump(mode="json") for name, state in detection.states.items()}
    return SnapshotRow(at=snapshot.at, health=snapshot.health, body=body, detector=detector)


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
