"""Experiment: production configuration, running experiments, their counters, promotion and rollback.

A promotion is a compare-and-swap on the parameter's version, in one transaction with its ledger entry and its event.
A decision reads the arms' counters; it never reads outcomes, so its cost does not grow with them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from math import isfinite

from sqlalchemy import func, update
from sqlmodel import Session, col, select
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities import ledger
from activities.database import Database, insert_new, lock
from activities.events import emit
from rules.decision import Arm, Decision, Design, Stratum, decide
from rules.design import is_harmful
from schema.messages.base import Value
from schema.messages.events import EventType
from schema.messages.experiment import (
    ArmCounts,
    Assignment,
    Configuration,
    ExperimentDesign,
    Look,
    Promotion,
    PromotionResult,
    Purpose,
    Reading,
    RunningExperiment,
    StratumCounts,
    Variant,
)
from schema.messages.ledger import EntryKind
from schema.messages.platform import ParameterState, Platform
from schema.tables.experiment import ArmRow, AssignmentRow, ExperimentRow, ParameterRow, TaskTypeLockRow


def declare_parameters(database: Database, platform: Platform, at: datetime) -> None:
    """Give every newly declared parameter its default as version 1; values in force stay as they are."""
    rows = [
        {"key": p.key, "value": p.default, "version": 1, "changed_at": at, "changed_by": "declaration"}
        for p in platform.parameters
    ]
    with database.transaction() as session:
        insert_new(session, ParameterRow, rows, returning="key")


def parameter_states(session: Session, platform: Platform) -> tuple[ParameterState, ...]:
    """The declared parameters with what production runs on; a value now out of bounds yields the default."""
    rows = {row.key: row for row in session.exec(select(ParameterRow)).all()}
    return tuple(
        ParameterState(
            declaration=p,
            value=in_force(p.refusal(rows[p.key].value), rows[p.key].value, p.default),
            version=rows[p.key].version,
            mode=p.mode or platform.mode,
        )
        for p in platform.parameters
        if p.key in rows
    )


def in_force(refusal: str | None, stored: Value, default: Value) -> Value:
    """The stored value where the declaration still allows it, else the default: bounds bind old promotions too."""
    return stored if refusal is None else default


def configuration(database: Database, platform: Platform) -> Configuration:
    """What resolvers work from."""
    with database.reading() as session:
        states = parameter_states(session, platform)
        rows = session.exec(select(ExperimentRow).where(col(ExperimentRow.open).is_(True))).all()
        experiments = tuple(
            RunningExperiment.model_validate(row.design | {"treatment_share": row.treatment_share}) for row in rows
        )
    return Configuration(values={s.declaration.key: s.value for s in states}, experiments=experiments)


class ExperimentActivities:
    """Opens, reads and closes experiments, and swaps parameters."""

    def __init__(self, database: Database, platform: Platform) -> None:
        self._database = database
        self._platform = platform

    @activity.defn
    def open_experiment(self, design: ExperimentDesign, at: datetime) -> None:
        """Write the design to the ledger and start assigning, once every task type it touches is free.

        While another experiment holds one of them this asks to be retried: its turn comes when that one closes.
        """
        with self._database.transaction() as session:
            if session.get(ExperimentRow, design.experiment_id) is not None:
                return
            locks = [{"task_type": t, "cycle_id": design.cycle_id} for t in sorted(design.task_types)]
            taken = insert_new(session, TaskTypeLockRow, locks, returning="task_type")
            if missing := sorted(set(design.task_types) - taken):
                holder = session.get_one(TaskTypeLockRow, missing[0]).cycle_id
                raise ApplicationError(
                    f"queued: {holder} is testing on {missing[0]}",
                    next_retry_delay=timedelta(seconds=self._platform.cycle.counter_poll_s),
                    category=ApplicationErrorCategory.BENIGN,
                )
            ledger.append(session, EntryKind.EXPERIMENT_DESIGNED, design.experiment_id, design.parameter, at, design)
            _start(session, design, at)
            emit(
                session,
                EventType.EXPERIMENT_STARTED,
                design.parameter,
                design.experiment_id,
                at,
                experiment_id=design.experiment_id,
                cycle_id=design.cycle_id,
            )

    @activity.defn
    def await_verdict(self, look: Look) -> Reading:
        """Look at the counters and decide; while undecided, ask to be retried with the progress as the message.

        A verdict is a function of the design and the counts alone, so it can be computed again by anybody.
        """
        # The server's clock, which simulated time moves; the workflow's own is as old as the first attempt.
        reading = self.read_experiment(look, activity.info().current_attempt_scheduled_time)
        if not _settled(look, reading):
            raise ApplicationError(
                progress(reading),
                next_retry_delay=timedelta(seconds=self._platform.cycle.counter_poll_s),
                category=ApplicationErrorCategory.BENIGN,
            )
        return reading

    @activity.defn
    def read_experiment(self, look: Look, at: datetime) -> Reading:
        """One look, settled or not: what stands when time has run out."""
        design = look.design
        with self._database.transaction() as session:
            _fail_lost(session, design.experiment_id, at - timedelta(seconds=design.pending_cutoff_s))
            strata = counters(session, design.experiment_id)
        return judged(design, strata, at)

    @activity.defn
    def hold_experiment(self, experiment_id: str, held: bool) -> None:
        """Stop assigning while a person has paused the cycle, or go on; the arms keep what they have."""
        with self._database.transaction() as session:
            row = session.get(ExperimentRow, experiment_id)
            if row is not None and row.closed_at is None:
                row.open = not held
                session.add(row)

    @activity.defn
    def conclude_experiment(self, design: ExperimentDesign, reading: Reading) -> None:
        """Stop assigning and announce the verdict; the task types stay locked until the cycle ends."""
        with self._database.transaction() as session:
            _close(session, session.get_one(ExperimentRow, design.experiment_id), reading.at)
            emit(
                session,
                EventType.EXPERIMENT_CONCLUDED,
                design.parameter,
                design.experiment_id,
                reading.at,
                experiment_id=design.experiment_id,
                cycle_id=design.cycle_id,
                reading=reading.model_dump(mode="json"),
            )

    @activity.defn
    def promote(self, promotion: Promotion, watch: ExperimentDesign, at: datetime) -> PromotionResult:
        """Swap the parameter from the version that was tested, and start the watch with its holdback.

        On a retry the promotion's own ledger row means that it succeeded.
        """
        with self._database.transaction() as session:
            result = _swap(session, promotion, EntryKind.PARAMETER_PROMOTED, EventType.PARAMETER_PROMOTED, at)
            if result.swapped and session.get(ExperimentRow, watch.experiment_id) is None:
                _start(session, watch, at)
        return result

    @activity.defn
    def roll_back(self, promotion: Promotion, at: datetime) -> PromotionResult:
        """Swap the parameter back; refused, like a promotion, where somebody else has changed it since."""
        with self._database.transaction() as session:
            return _swap(session, promotion, EntryKind.PARAMETER_ROLLED_BACK, EventType.PARAMETER_ROLLED_BACK, at)


def _settled(look: Look, reading: Reading) -> bool:
    match look.purpose:
        case Purpose.EXPERIMENT:
            return reading.decision != Decision.CONTINUE.value
        case Purpose.WATCH:
            return is_harmful(look.design, reading)


def judged(design: ExperimentDesign, strata: tuple[StratumCounts, ...], at: datetime) -> Reading:
    """The reading that `rules.decision` makes of these counts; the same counts always give the same one."""
    verdict = decide(
        design=Design(
            baseline_rate=design.baseline_rate,
            predicted_rate=design.predicted_rate,
            minimum_effect=design.minimum_effect,
            alpha=design.alpha,
            beta=design.beta,
            harm_alpha=design.harm_alpha,
            max_tasks=design.max_tasks,
        ),
        strata=[
            Stratum(treatment_share=s.treatment_share, control=_arm(s.control), treatment=_arm(s.treatment))
            for s in strata
        ],
    )
    finished = all(s.control.tasks and s.treatment.tasks for s in strata)
    decision, reason = verdict.decision, verdict.reason
    fewest = min((a.tasks for s in strata for a in (s.control, s.treatment)), default=0)
    if decision is Decision.PROMOTE and fewest < design.minimum_tasks:
        # Looking later is always valid; looking earlier would promote on a handful of tasks.
        decision, reason = Decision.CONTINUE, f"{reason}, but an arm has {fewest} of {design.minimum_tasks} tasks"
    return Reading(
        at=at,
        strata=strata,
        decision=decision.value,
        log_e=verdict.log_e,
        log_e_harm=verdict.log_e_harm,
        srm_e=min(verdict.srm_e, 1e300),
        effect=verdict.effect if verdict.effect is not None and isfinite(verdict.effect) else None,
        interval=tuple(verdict.interval) if finished and decision is not Decision.CONTINUE else None,
        reason=reason,
    )


def _arm(counts: ArmCounts) -> Arm:
    return Arm(tasks=counts.tasks, successes=counts.successes, pending=counts.pending)


def progress(reading: Reading) -> str:
    """One line for the web UI: where an undecided experiment stands."""
    control, treatment = reading.control, reading.treatment
    return (
        f"collecting: control {control.successes}/{control.tasks}, treatment {treatment.successes}/{treatment.tasks}, "
        f"log e {reading.log_e:+.2f}"
    )


def progress_of(database: Database, design: ExperimentDesign) -> str:
    """Where a running experiment stands, for whoever watches it outside of Temporal."""
    with database.reading() as session:
        strata = counters(session, design.experiment_id)
    control, treatment = (sum((getattr(s, v.value).tasks for s in strata), 0) for v in Variant)
    return f"experiment: {control} tasks with {design.control}, {treatment} with {design.treatment}"


def counters(session: Session, experiment_id: str) -> tuple[StratumCounts, ...]:
    """Both arms of every stratum, by ascending treatment share."""
    strata: dict[float, dict[str, ArmCounts]] = {}
    for row in session.exec(select(ArmRow).where(ArmRow.experiment_id == experiment_id)).all():
        arm = ArmCounts(tasks=row.finished, successes=row.successes, pending=row.assigned - row.finished)
        strata.setdefault(row.treatment_share, {})[row.variant] = arm
    return tuple(StratumCounts(treatment_share=share, **arms) for share, arms in sorted(strata.items()))


def count_finished(
    session: Session, experiment_id: str, share: float, variant: str, tasks: int, successes: int
) -> None:
    """Add finished tasks to an arm's counters."""
    session.execute(
        update(ArmRow)
        .where(
            col(ArmRow.experiment_id) == experiment_id,
            col(ArmRow.variant) == variant,
            col(ArmRow.treatment_share) == share,
        )
        .values(finished=ArmRow.finished + tasks, successes=ArmRow.successes + successes)
    )


def release(session: Session, cycle_id: str, at: datetime) -> None:
    """Close what a cycle still has open and free its task types."""
    for row in session.exec(select(ExperimentRow).where(ExperimentRow.cycle_id == cycle_id)).all():
        _close(session, row, at)
    for held in session.exec(select(TaskTypeLockRow).where(TaskTypeLockRow.cycle_id == cycle_id)).all():
        session.delete(held)


def _close(session: Session, row: ExperimentRow, at: datetime) -> None:
    if row.closed_at is None:
        row.open, row.closed_at = False, at
        session.add(row)


def _start(session: Session, design: ExperimentDesign, at: datetime) -> None:
    session.add(
        ExperimentRow(
            experiment_id=design.experiment_id,
            cycle_id=design.cycle_id,
            parameter=design.parameter,
            open=True,
            treatment_share=design.treatment_share,
            opened_at=at,
            design=design.model_dump(mode="json"),
        )
    )
    for variant in Variant:
        session.add(
            ArmRow(experiment_id=design.experiment_id, treatment_share=design.treatment_share, variant=variant.value)
        )


def _fail_lost(session: Session, experiment_id: str, before: datetime) -> None:
    """A task that was assigned long ago and never reported is a failure of its arm, not a gap in it."""
    lost = (
        select(AssignmentRow.treatment_share, AssignmentRow.variant, func.count())
        .where(
            AssignmentRow.experiment_id == experiment_id,
            col(AssignmentRow.success).is_(None),
            col(AssignmentRow.assigned_at) < before,
        )
        .group_by(col(AssignmentRow.treatment_share), col(AssignmentRow.variant))
    )
    for share, variant, count in session.exec(lost).all():
        count_finished(session, experiment_id, share, variant, tasks=count, successes=0)
    session.execute(
        update(AssignmentRow)
        .where(
            col(AssignmentRow.experiment_id) == experiment_id,
            col(AssignmentRow.success).is_(None),
            col(AssignmentRow.assigned_at) < before,
        )
        .values(success=False)
    )


def _swap(session: Session, promotion: Promotion, kind: EntryKind, type: EventType, at: datetime) -> PromotionResult:
    key = f"{promotion.cycle_id}:{kind.value}"
    row = session.get_one(ParameterRow, promotion.parameter, with_for_update=True)
    if ledger.recorded(session, key):
        return PromotionResult(swapped=True, version=row.version, reason="recorded before")
    if row.version != promotion.expected_version:
        return PromotionResult(
            swapped=False,
            version=row.version,
            reason=f"expected {row.key} at version {promotion.expected_version}, "
            f"but {row.changed_by} made it {row.version}",
        )
    ledger.append(session, kind, key, promotion.parameter, at, promotion)
    row.value, row.version = promotion.value, row.version + 1
    row.changed_at, row.changed_by = at, promotion.cycle_id
    session.add(row)
    emit(
        session,
        type,
        promotion.parameter,
        promotion.cycle_id,
        at,
        parameter=promotion.parameter,
        value=promotion.value,
        version=row.version,
        cycle_id=promotion.cycle_id,
        reason=promotion.reason,
    )
    return PromotionResult(swapped=True, version=row.version, reason=promotion.reason)


def record_assignments(session: Session, assignments: Iterable[Assignment]) -> None:
    """Write down who got which variant, once per task, and count it; tasks of closed experiments are not counted."""
    wanted = {(a.experiment_id, a.task_id): a for a in assignments}
    if not wanted:
        return
    open_ids = set(
        session.exec(
            select(ExperimentRow.experiment_id).where(
                col(ExperimentRow.experiment_id).in_({a.experiment_id for a in wanted.values()}),
                col(ExperimentRow.open).is_(True),
            )
        ).all()
    )
    for experiment_id in sorted(open_ids):
        lock(session, f"arms:{experiment_id}")
        rows = [a.model_dump() | {"success": None} for a in wanted.values() if a.experiment_id == experiment_id]
        new = insert_new(session, AssignmentRow, rows, returning="task_id")
        counts = Counter(
            (a.treatment_share, a.variant)
            for a in wanted.values()
            if a.experiment_id == experiment_id and a.task_id in new
        )
        for (share, variant), count in counts.items():
            session.execute(
                update(ArmRow)
                .where(
                    col(ArmRow.experiment_id) == experiment_id,
                    col(ArmRow.variant) == variant.value,
                    col(ArmRow.treatment_share) == share,
                )
                .values(assigned=ArmRow.assigned + count)
            )


def finish_assignments(session: Session, successes: Mapping[str, bool]) -> None:
    """Count how assigned tasks went, by task id; a task that was counted as lost stays lost."""
    pending = session.exec(
        select(AssignmentRow)
        .join(ExperimentRow, col(ExperimentRow.experiment_id) == AssignmentRow.experiment_id)
        .where(
            col(AssignmentRow.task_id).in_(successes),
            col(AssignmentRow.success).is_(None),
            col(ExperimentRow.open).is_(True),
        )
    ).all()
    counts: dict[tuple[str, float, str], list[bool]] = {}
    for row in pending:
        row.success = successes[row.task_id]
        session.add(row)
        counts.setdefault((row.experiment_id, row.treatment_share, row.variant), []).append(row.success)
    for (experiment_id, share, variant), results in sorted(counts.items()):
        count_finished(session, experiment_id, share, variant, tasks=len(results), successes=sum(results))
