"""Audit of experiments: anybody can compute a verdict again, from the stored design and the stored tasks.

Nothing here writes. The counters that a decision read are checked against the tasks that they counted.
"""

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel
from sqlmodel import Session, col, select

from activities.assignments import counters, guard_counters
from activities.database import Database
from rules.verdict import read
from schema.messages.experiment import ArmCounts, ExperimentDesign, Reading, StratumCounts, Variant
from schema.tables.experiment import AssignmentRow, ExperimentRow, VerdictRow

# Points of a drawing: a terminal is not wide enough for more.
POINTS = 60


class Replay(BaseModel):
    """A verdict as it was recorded and as it is computed now; `same` only where they agree to the last digit."""

    experiment_id: str
    recorded: Reading | None
    computed: Reading
    recount: bool
    same: bool


def replay(database: Database, experiment_id: str) -> Replay:
    """Compute the verdict of an experiment again; raises ValueError where no experiment has this id."""
    with database.reading() as session:
        row = _row(session, experiment_id)
        recorded = verdict(session, experiment_id)
        strata = recorded.strata if recorded else counters(session, experiment_id)
        guards = recorded.guards if recorded else guard_counters(session, experiment_id)
        at = recorded.at if recorded else max(filter(None, (row.closed_at, row.opened_at, row.queued_at)))
        computed = read(
            ExperimentDesign.model_validate(row.design),
            strata,
            guards,
            opened_at=row.opened_at or row.queued_at,
            at=at,
            extended=recorded.extended if recorded else row.extended,
        )
        recount = _recounted(session, experiment_id) == counters(session, experiment_id)
    same = recorded is not None and computed.model_dump_json() == recorded.model_dump_json()
    return Replay(experiment_id=experiment_id, recorded=recorded, computed=computed, recount=recount, same=same)


def verdict(session: Session, experiment_id: str) -> Reading | None:
    """The verdict as it was recorded; None where there is none yet."""
    row = session.get(VerdictRow, experiment_id)
    return Reading.model_validate(row.body) if row else None


def trajectory(database: Database, experiment_id: str) -> list[Reading]:
    """The readings that evaluations at about POINTS moments would have given, in order of assignment."""
    with database.reading() as session:
        experiment = _row(session, experiment_id)
        has_ended = col(AssignmentRow.success).is_not(None) | col(AssignmentRow.excluded)
        tasks = select(AssignmentRow).where(AssignmentRow.experiment_id == experiment_id, has_ended)
        in_order = tasks.order_by(col(AssignmentRow.assigned_at), col(AssignmentRow.task_id))
        ended = session.exec(in_order).all()
    design = ExperimentDesign.model_validate(experiment.design)
    opened_at = experiment.opened_at or experiment.queued_at
    every = max(1, len(ended) // POINTS)
    readings = []
    for index, last in enumerate(ended):
        is_point = index % every == 0 or index == len(ended) - 1
        if is_point:
            strata = _strata(ended[: index + 1])
            # Evidence does not depend on the threshold, and calibrating one takes seconds: the general one will do.
            reading = read(design, strata, guards=(), opened_at=opened_at, at=last.assigned_at, extended=True)
            readings.append(reading)
    return readings


def _row(session: Session, experiment_id: str) -> ExperimentRow:
    row = session.get(ExperimentRow, experiment_id)
    if row is None:
        raise ValueError(f"expected an experiment, but there is none with the id {experiment_id}")
    return row


def _recounted(session: Session, experiment_id: str) -> tuple[StratumCounts, ...]:
    rows = session.exec(select(AssignmentRow).where(AssignmentRow.experiment_id == experiment_id)).all()
    # An arm that never had a task has counters of zero and no assignment to count.
    return _strata(rows) or counters(session, experiment_id)


def _strata(rows: Sequence[AssignmentRow]) -> tuple[StratumCounts, ...]:
    """The counts of both arms by treatment share, as they would be had only these tasks been assigned."""
    excluded = Counter((row.treatment_share, row.variant) for row in rows if row.excluded)
    contradicting = Counter((row.treatment_share, row.variant) for row in rows if row.contradicting)
    # A success of None: the task is pending.
    counted = Counter((row.treatment_share, row.variant, row.success) for row in rows if not row.excluded)
    shares = sorted({row.treatment_share for row in rows})

    def arm(share: float, variant: Variant) -> ArmCounts:
        successes = counted[share, variant.value, True]
        failures = counted[share, variant.value, False]
        return ArmCounts(
            tasks=successes + failures,
            successes=successes,
            pending=counted[share, variant.value, None],
            excluded=excluded[share, variant.value],
            contradicting=contradicting[share, variant.value],
        )

    return tuple(
        StratumCounts(
            treatment_share=share, control=arm(share, Variant.CONTROL), treatment=arm(share, Variant.TREATMENT)
        )
        for share in shares
    )
