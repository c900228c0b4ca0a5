"""Experiment: opens, evaluates and concludes experiments, and swaps parameters by their evidence: the activities.

Beside them are functions that show the progress of an experiment, and that close what a cycle still has open.
"""

from datetime import datetime, timedelta
from typing import Any

from sqlmodel import Session, col, select
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities import ledger
from activities.assignments import close_experiment, counters, fail_lost, guard_counters
from activities.database import Database, insert_new, lock
from activities.events import emit
from activities.parameters import frozen, swap, why_stale
from rules.design import breaks_something
from rules.verdict import read
from schema.messages.base import format_value
from schema.messages.events import ExperimentConcluded, ExperimentStarted, ParameterPromoted, ParameterRolledBack
from schema.messages.experiment import (
    Decision,
    EvaluationRequest,
    ExperimentDesign,
    Promotion,
    PromotionResult,
    Purpose,
    Reading,
    Variant,
)
from schema.messages.ledger import EntryKind
from schema.messages.platform import Platform
from schema.tables.experiment import ArmRow, ExperimentRow, GuardRow, ParameterRow, TaskTypeLockRow, VerdictRow


class ExperimentActivities:
    """Opens, evaluates and closes experiments, and swaps parameters."""

    def __init__(self, database: Database, platform: Platform) -> None:
        self._database = database
        self._platform = platform

    @activity.defn
    def open_experiment(self, design: ExperimentDesign, at: datetime) -> str | None:
        """Write the design to the ledger and start assigning, once every task type it touches is free.

        Until then this asks to be retried: experiments take their turn by age, and one that touches several task types
        waits for all of them. Returns the reason where it must not begin at all: production has another value by now,
        so that the control would not be what production runs on; or a cycle that was set back has registered another
        design before, and what was tested would not be what is promoted.
        """
        with self._database.transaction() as session:
            lock(session, "experiments")
            insert_new(session, ExperimentRow, [_queued_row(design, at).model_dump()], returning="experiment_id")
            row = session.get_one(ExperimentRow, design.experiment_id)
            registered = ExperimentDesign.model_validate(row.design)
            if row.opened_at is not None:
                return None if registered == design else _another(registered, design)
            if registered != design:
                # A cycle that was set back before its turn has come to another change: nothing is registered yet.
                session.add(row.sqlmodel_update(_queued_row(design, row.queued_at)))
            obstacle = frozen(session, design.parameter) or _cycle_ahead(session, design)
            if obstacle is None:
                return _open_unless_stale(session, design, _this_attempt(at))
        # Raised outside of the transaction, which must commit: its row keeps the design's place in the queue.
        raise self._retry_later(f"queued: {obstacle}")

    @activity.defn
    def await_verdict(self, request: EvaluationRequest) -> Reading:
        """Evaluate the counters and decide; while undecided, ask to be retried, with the progress as the message.

        A verdict is a function of the design and the counts alone, so it can be computed again by anybody.
        """
        # The server's clock, which simulated time moves; the workflow's own is as old as the first attempt.
        reading = self.read_experiment(request, activity.info().current_attempt_scheduled_time)
        with self._database.reading() as session:
            # A person has rolled the parameter back: the experiment on it is over.
            stopped = session.get_one(ExperimentRow, request.design.experiment_id).closed_at is not None
        if not stopped and not _settled(request, reading):
            raise self._retry_later(progress(reading))
        return reading

    @activity.defn
    def read_experiment(self, request: EvaluationRequest, at: datetime) -> Reading:
        """One evaluation, settled or not: the last one stands when time has run out."""
        design = request.design
        with self._database.transaction() as session:
            fail_lost(session, design.experiment_id, at, timedelta(seconds=design.pending_cutoff_s))
            row = session.get_one(ExperimentRow, design.experiment_id)
            return read(
                design,
                counters(session, design.experiment_id),
                guard_counters(session, design.experiment_id),
                opened_at=row.opened_at or at,
                at=at,
                extended=row.extended,
            )

    @activity.defn
    def expose(self, experiment_id: str, exposure: float, held: bool) -> None:
        """Set the share of tasks that takes part; none while a person holds the cycle. The arms keep what they have."""
        with self._database.transaction() as session:
            row = session.get(ExperimentRow, experiment_id)
            if row is not None and row.closed_at is None:
                row.exposing = not held
                row.extended = row.extended or exposure != row.exposure
                row.exposure = exposure
                session.add(row)

    @activity.defn
    def conclude_experiment(self, design: ExperimentDesign, reading: Reading) -> None:
        """Stop assigning and announce the verdict; the task types stay locked until the cycle ends."""
        with self._database.transaction() as session:
            close_experiment(session, session.get_one(ExperimentRow, design.experiment_id), reading.at)
            concluded = ExperimentConcluded(
                experiment_id=design.experiment_id, cycle_id=design.cycle_id, reading=reading
            )
            verdict = {"experiment_id": design.experiment_id, "body": reading.model_dump(mode="json")}
            insert_new(session, VerdictRow, [verdict], returning="experiment_id")
            emit(session, concluded, design.parameter, design.experiment_id, reading.at)

    @activity.defn
    def await_thaw(self, parameter: str) -> None:
        """Return once the parameter is not frozen; until then, ask to be retried."""
        with self._database.reading() as session:
            reason = frozen(session, parameter)
        if reason is not None:
            raise self._retry_later(reason)

    @activity.defn
    def promote(self, promotion: Promotion, watch: ExperimentDesign, at: datetime) -> PromotionResult:
        """Swap the parameter from the version that was tested, and start the watch with its holdback.

        On a retry the promotion's own ledger row means that it succeeded.
        """
        with self._database.transaction() as session:
            result = swap(session, promotion, ParameterPromoted, at)
            if result.swapped and session.get(ExperimentRow, watch.experiment_id) is None:
                _start(session, watch, _this_attempt(at))
        return result

    @activity.defn
    def roll_back(self, promotion: Promotion, at: datetime) -> PromotionResult:
        """Swap the parameter back; refused, like a promotion, where it has been changed since.

        `activities.parameters.swap` writes the ledger entry and announces it, in the same transaction.
        """
        with self._database.transaction() as session:
            return swap(session, promotion, ParameterRolledBack, at)

    def _retry_later(self, reason: str) -> ApplicationError:
        """Ask to be retried. Attempts add no history and hold no worker; people see the reason as the progress."""
        delay = timedelta(seconds=self._platform.cycle.counter_poll_s)
        return ApplicationError(reason, next_retry_delay=delay, category=ApplicationErrorCategory.BENIGN)


def _settled(request: EvaluationRequest, reading: Reading) -> bool:
    match request.purpose:
        case Purpose.EXPERIMENT:
            return reading.decision is not Decision.CONTINUE
        case Purpose.WATCH:
            return breaks_something(request.design, reading)


def progress(reading: Reading) -> str:
    """One line for the web UI: where an undecided experiment stands."""
    control = reading.control
    treatment = reading.treatment
    return (
        f"collecting: control {control.successes}/{control.tasks}, treatment {treatment.successes}/{treatment.tasks}, "
        f"log e {reading.log_e:+.2f}"
    )


def progress_of(database: Database, design: ExperimentDesign) -> str:
    """One line: how many tasks each arm of a running experiment has, for people outside of Temporal."""
    with database.reading() as session:
        strata = counters(session, design.experiment_id)
    control = sum(stratum.control.tasks for stratum in strata)
    treatment = sum(stratum.treatment.tasks for stratum in strata)
    old = format_value(design.control)
    new = format_value(design.treatment)
    return f"experiment: {control} tasks with {old}, {treatment} with {new}"


def release(session: Session, cycle_id: str, at: datetime) -> None:
    """Close what a cycle still has open and free its task types."""
    for row in session.exec(select(ExperimentRow).where(ExperimentRow.cycle_id == cycle_id)).all():
        close_experiment(session, row, at)
    for task_type_lock in session.exec(select(TaskTypeLockRow).where(TaskTypeLockRow.cycle_id == cycle_id)).all():
        session.delete(task_type_lock)


def _queued_row(design: ExperimentDesign, at: datetime) -> ExperimentRow:
    return ExperimentRow(
        experiment_id=design.experiment_id,
        cycle_id=design.cycle_id,
        parameter=design.parameter,
        exposing=False,
        exposure=design.exposure,
        queued_at=at,
        design=design.model_dump(mode="json"),
    )


def _cycle_ahead(session: Session, design: ExperimentDesign) -> str | None:
    """Which cycle holds one of the design's task types, or has waited longer for one; None when they are free."""
    queued = session.get_one(ExperimentRow, design.experiment_id)
    locks = select(TaskTypeLockRow).where(col(TaskTypeLockRow.task_type).in_(design.task_types))
    if (held := session.exec(locks).first()) is not None:
        return f"{held.cycle_id} comes first"
    waiting = select(ExperimentRow).where(
        col(ExperimentRow.opened_at).is_(None), col(ExperimentRow.closed_at).is_(None)
    )
    for other in session.exec(waiting).all():
        is_older = (other.queued_at, other.experiment_id) < (queued.queued_at, queued.experiment_id)
        if is_older and set(other.design["task_types"]) & set(design.task_types):
            return f"{other.cycle_id} comes first"
    return None


def _another(registered: ExperimentDesign, design: ExperimentDesign) -> str:
    """Why a cycle that was set back may not go on with another change: its tasks test the one that is registered."""

    def change(of: ExperimentDesign) -> str:
        return f"{of.parameter} {format_value(of.control)} -> {format_value(of.treatment)}"

    if change(registered) == change(design):
        return f"{registered.experiment_id} is registered with another design of {change(design)}"
    new = change(design).removeprefix(f"{registered.parameter} ")
    return f"{registered.experiment_id} is registered for {change(registered)}, but {new} came"


def _this_attempt(first: datetime) -> datetime:
    """When this attempt of the activity is made: a retry has the arguments of the first, which may be days old."""
    return max(first, activity.info().current_attempt_scheduled_time) if activity.in_activity() else first


def _open_unless_stale(session: Session, design: ExperimentDesign, at: datetime) -> str | None:
    """Open the experiment, or return why production no longer has the value that is its control."""
    row = session.get_one(ParameterRow, design.parameter, with_for_update=True)
    reason = why_stale(row, design.base_version)
    if reason is None:
        _open(session, design, at)
    return reason


def _open(session: Session, design: ExperimentDesign, at: datetime) -> None:
    """Register the design, lock the task types and start assigning."""
    body = design.model_dump(mode="json") | {"design_hash": design.digest}
    ledger.append(session, EntryKind.EXPERIMENT_DESIGNED, design.experiment_id, design.parameter, at, body)
    for task_type in sorted(design.task_types):
        session.add(TaskTypeLockRow(task_type=task_type, cycle_id=design.cycle_id))
    _start(session, design, at)
    started = ExperimentStarted(experiment_id=design.experiment_id, cycle_id=design.cycle_id)
    emit(session, started, design.parameter, design.experiment_id, at)


def _start(session: Session, design: ExperimentDesign, at: datetime) -> None:
    """Begin to expose tasks, with counters at zero."""
    row = session.get(ExperimentRow, design.experiment_id) or _queued_row(design, at)
    row.exposing = True
    row.opened_at = at
    session.add(row)
    for variant in Variant:
        arm: dict[str, Any] = {
            "experiment_id": design.experiment_id,
            "treatment_share": design.treatment_share,
            "variant": variant.value,
        }
        session.add(ArmRow(**arm))
        session.add_all(GuardRow(**arm, guardrail=guardrail.kind.value) for guardrail in design.guardrails)
