"""Diagnosis: the recorded facts about one task type. Functions, no activities."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlmodel import Session, col, select

from schema.messages.diagnosis import DurationSample, PastEnding, TaskTypeDiagnosis
from schema.messages.observatory import Counts, FailureKind, Interval
from schema.tables.market import MetaTaskRow
from schema.tables.observatory import OutcomeRow
from schema.tables.proposals import ProposalRow

# All samples of one diagnosis, about 200 kB; Temporal warns at 256.
SAMPLES = 4_000
LONGEST_DIAGNOSIS = timedelta(days=90)


def diagnosis_of(
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
    failures = sum((Counter(interval.failures) for interval in intervals), Counter[FailureKind]())
    return TaskTypeDiagnosis(
        task_type=task_type,
        counts=since,
        before=before,
        failures={kind: failures[kind] for kind in FailureKind if failures[kind]},
        samples=tuple(
            DurationSample(duration_s=duration_s, failure=FailureKind(failure) if failure else None)
            for duration_s, failure in rows
        ),
    )


def past_endings(session: Session, subject: str) -> tuple[PastEnding, ...]:
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
