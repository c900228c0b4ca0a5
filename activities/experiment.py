"""Experiment: production configuration, running experiments, their counters, promotion and rollback.

A promotion is a compare-and-swap on the parameter's version, in one transaction with its ledger entry and its event.
A decision reads the arms' counters; it never reads outcomes, so its cost does not grow with them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, update
from sqlmodel import Session, col, select
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities import ledger, reading
from activities.database import Database, insert_new, lock
from activities.events import emit
from rules.decision import Decision
from rules.design import breaks_something
from rules.verdict import is_good, is_success, read
from schema.messages.events import EventType
from schema.messages.experiment import (
    ArmCounts,
    Assignment,
    Configuration,
    ExperimentDesign,
    GuardCounts,
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
from schema.messages.observatory import Counts, Guardrail, GuardrailKind, TaskOutcome
from schema.messages.platform import ParameterState, Platform
from schema.tables.experiment import (
    ArmRow,
    AssignmentRow,
    ExperimentRow,
    FreezeRow,
    GuardRow,
    ParameterRow,
    TaskTypeLockRow,
)
from schema.tables.ledger import LedgerRow
from schema.wire import EVERYTHING


def declare_parameters(database: Database, platform: Platform, at: datetime) -> None:
    """Give every newly declared parameter its default as version 1; values in force stay as they are."""
    first = {"version": 1, "changed_at": at, "changed_by": "declaration"}
    rows = [{"key": p.key, "value": p.default, "previous": p.default, **first} for p in platform.parameters]
    with database.transaction() as session:
        insert_new(session, ParameterRow, rows, returning="key")


def parameter_states(session: Session, platform: Platform) -> tuple[ParameterState, ...]:
    """The declared parameters with what production runs on."""
    rows = session.exec(select(ParameterRow)).all()
    return reading.parameter_states(platform, {row.key: (row.value, row.version) for row in rows})


def configuration(database: Database, platform: Platform) -> Configuration:
    """What resolvers work from."""
    with database.reading() as session:
        states = parameter_states(session, platform)
        exposing = session.exec(select(ExperimentRow).where(col(ExperimentRow.exposing).is_(True))).all()
        rows = [row for row in exposing if frozen(session, row.parameter) is None]
        experiments = tuple(RunningExperiment.model_validate(row.design | {"exposure": row.exposure}) for row in rows)
    return Configuration(values={s.declaration.key: s.value for s in states}, experiments=experiments)


def frozen(session: Session, parameter: str) -> str | None:
    """Who froze a parameter, or everything, and why; None where nobody did."""
    row = session.get(FreezeRow, EVERYTHING) or session.get(FreezeRow, parameter)
    return f"frozen by {row.who}: {row.why}" if row else None


def freeze(database: Database, scope: str, who: str, why: str, at: datetime) -> bool:
    """Freeze a parameter or everything, at once: tasks get production values only. False where it was frozen."""
    with database.transaction() as session:
        row = {"scope": scope, "who": who, "why": why, "at": at}
        if not insert_new(session, FreezeRow, [row], returning="scope"):
            return False
        _record_freeze(session, EventType.PARAMETER_FROZEN, scope, who, why, at)
    return True


def thaw(database: Database, scope: str, who: str, why: str, at: datetime) -> bool:
    """End a freeze; False where there is none."""
    with database.transaction() as session:
        row = session.get(FreezeRow, scope)
        if row is None:
            return False
        session.delete(row)
        _record_freeze(session, EventType.PARAMETER_THAWED, scope, who, why, at)
    return True


def _record_freeze(session: Session, type: EventType, scope: str, who: str, why: str, at: datetime) -> None:
    key = f"{scope}:{type.value}:{at.isoformat()}"
    ledger.append(session, EntryKind(type.value), key, scope, at, {"who": who, "why": why})
    emit(session, type, scope, key, at, who=who, why=why)


def roll_back_by_hand(database: Database, parameter: str, who: str, why: str, at: datetime) -> PromotionResult:
    """Give a parameter the value it had before its last promotion, at once; through the same compare-and-swap.

    Raises ValueError where nothing was promoted, or that was taken back: doing it twice is doing it once.
    """
    with database.transaction() as session:
        row = session.get(ParameterRow, parameter)
        if row is None or row.version == 1:
            raise ValueError(f"expected a parameter that was changed, but {parameter} has its first value")
        kinds = (EntryKind.PARAMETER_PROMOTED.value, EntryKind.PARAMETER_ROLLED_BACK.value)
        swaps = select(LedgerRow.kind).where(LedgerRow.subject == parameter, col(LedgerRow.kind).in_(kinds))
        if session.exec(swaps.order_by(col(LedgerRow.sequence).desc()).limit(1)).first() == kinds[1]:
            raise ValueError(f"expected a promotion to take back, but {parameter} was rolled back to {row.value}")
        back = Promotion(
            cycle_id=f"person:{who}:{row.version}",
            parameter=parameter,
            expected_version=row.version,
            value=row.previous,
            reason=f"{who}: {why}",
        )
        return _swap(session, back, EventType.PARAMETER_ROLLED_BACK, at)


class ExperimentActivities:
    """Opens, reads and closes experiments, and swaps parameters."""

    def __init__(self, database: Database, platform: Platform) -> None:
        self._database = database
        self._platform = platform

    @activity.defn
    def open_experiment(self, design: ExperimentDesign, at: datetime) -> str | None:
        """Write the design to the ledger and start assigning, once every task type it touches is free.

        Until then this asks to be retried: experiments take their turn by age, and one that touches several task types
        waits for all of them. Says why where it must not begin at all: another value is in production by now, and the
        control would be one that nobody runs on.
        """
        with self._database.transaction() as session:
            lock(session, "experiments")
            insert_new(session, ExperimentRow, [_row(design, at)], returning="experiment_id")
            if session.get_one(ExperimentRow, design.experiment_id).opened_at is not None:
                return None
            waits_for = frozen(session, design.parameter) or _ahead(session, design)
            if waits_for is None:
                row = session.get_one(ParameterRow, design.parameter, with_for_update=True)
                stale = _stale(row, design.base_version)
                if stale is None:
                    _open(session, design, at)
                return stale
        raise self._later(f"queued: {waits_for}")

    @activity.defn
    def await_verdict(self, look: Look) -> Reading:
        """Look at the counters and decide; while undecided, ask to be retried with the progress as the message.

        A verdict is a function of the design and the counts alone, so it can be computed again by anybody.
        """
        # The server's clock, which simulated time moves; the workflow's own is as old as the first attempt.
        reading = self.read_experiment(look, activity.info().current_attempt_scheduled_time)
        with self._database.reading() as session:
            # A person has rolled the parameter back: what was tested against its value is over.
            stopped = session.get_one(ExperimentRow, look.design.experiment_id).closed_at is not None
        if not stopped and not _settled(look, reading):
            raise self._later(progress(reading))
        return reading

    @activity.defn
    def read_experiment(self, look: Look, at: datetime) -> Reading:
        """One look, settled or not: what stands when time has run out."""
        design = look.design
        with self._database.transaction() as session:
            _fail_lost(session, design.experiment_id, at - timedelta(seconds=design.pending_cutoff_s))
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
                row.exposing, row.extended = not held, row.extended or exposure != row.exposure
                row.exposure = exposure
                session.add(row)

    @activity.defn
    def conclude_experiment(self, design: ExperimentDesign, reading: Reading) -> None:
        """Stop assigning and announce the verdict; the task types stay locked until the cycle ends."""
        with self._database.transaction() as session:
            _close(session, session.get_one(ExperimentRow, design.experiment_id), reading.at)
            verdict = reading.model_dump(mode="json")
            emit(
                session,
                EventType.EXPERIMENT_CONCLUDED,
                design.parameter,
                design.experiment_id,
                reading.at,
                experiment_id=design.experiment_id,
                cycle_id=design.cycle_id,
                reading=verdict,
            )

    @activity.defn
    def await_thaw(self, parameter: str) -> None:
        """Done when nobody keeps the parameter frozen; until then this asks to be retried."""
        with self._database.reading() as session:
            reason = frozen(session, parameter)
        if reason is not None:
            raise self._later(reason)

    @activity.defn
    def promote(self, promotion: Promotion, watch: ExperimentDesign, at: datetime) -> PromotionResult:
        """Swap the parameter from the version that was tested, and start the watch with its holdback.

        On a retry the promotion's own ledger row means that it succeeded.
        """
        with self._database.transaction() as session:
            result = _swap(session, promotion, EventType.PARAMETER_PROMOTED, at)
            if result.swapped and session.get(ExperimentRow, watch.experiment_id) is None:
                _start(session, watch, at)
        return result

    @activity.defn
    def roll_back(self, promotion: Promotion, at: datetime) -> PromotionResult:
        """Swap the parameter back; refused, like a promotion, where somebody else has changed it since."""
        with self._database.transaction() as session:
            return _swap(session, promotion, EventType.PARAMETER_ROLLED_BACK, at)

    def _later(self, reason: str) -> ApplicationError:
        """Ask to be retried. Attempts are not history, and hold no worker; the reason is the progress people see."""
        delay = timedelta(seconds=self._platform.cycle.counter_poll_s)
        return ApplicationError(reason, next_retry_delay=delay, category=ApplicationErrorCategory.BENIGN)


def _settled(look: Look, reading: Reading) -> bool:
    match look.purpose:
        case Purpose.EXPERIMENT:
            return reading.decision != Decision.CONTINUE.value
        case Purpose.WATCH:
            return breaks_something(look.design, reading)


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


def guard_counters(session: Session, experiment_id: str) -> tuple[GuardCounts, ...]:
    """Both arms of every guardrail and stratum."""
    found: dict[tuple[str, float], dict[str, Any]] = {}
    for row in session.exec(select(GuardRow).where(GuardRow.experiment_id == experiment_id)).all():
        arms = found.setdefault((row.guardrail, row.treatment_share), {})
        arms[row.variant] = Counts(tasks=row.tasks, successes=row.good)
        arms[f"judged_{row.variant}"] = row.judged
    return tuple(
        GuardCounts(kind=GuardrailKind(kind), treatment_share=share, **arms)
        for (kind, share), arms in sorted(found.items())
    )


def release(session: Session, cycle_id: str, at: datetime) -> None:
    """Close what a cycle still has open and free its task types."""
    for row in session.exec(select(ExperimentRow).where(ExperimentRow.cycle_id == cycle_id)).all():
        _close(session, row, at)
    for held in session.exec(select(TaskTypeLockRow).where(TaskTypeLockRow.cycle_id == cycle_id)).all():
        session.delete(held)


def _close(session: Session, row: ExperimentRow, at: datetime) -> None:
    if row.closed_at is None:
        row.exposing, row.closed_at = False, at
        session.add(row)


def _row(design: ExperimentDesign, at: datetime) -> dict[str, Any]:
    return {
        "experiment_id": design.experiment_id,
        "cycle_id": design.cycle_id,
        "parameter": design.parameter,
        "exposing": False,
        "exposure": design.exposure,
        "extended": False,
        "queued_at": at,
        "opened_at": None,
        "closed_at": None,
        "design": design.model_dump(mode="json"),
    }


def _ahead(session: Session, design: ExperimentDesign) -> str | None:
    """Which cycle holds one of the design's task types, or has waited longer for one; None when they are free."""
    mine = session.get_one(ExperimentRow, design.experiment_id)
    held = select(TaskTypeLockRow).where(col(TaskTypeLockRow.task_type).in_(design.task_types))
    if (holder := session.exec(held).first()) is not None:
        return f"{holder.cycle_id} comes first"
    waiting = select(ExperimentRow).where(
        col(ExperimentRow.opened_at).is_(None), col(ExperimentRow.closed_at).is_(None)
    )
    older = [
        row
        for row in session.exec(waiting).all()
        if (row.queued_at, row.experiment_id) < (mine.queued_at, mine.experiment_id)
        and set(row.design["task_types"]) & set(design.task_types)
    ]
    return f"{older[0].cycle_id} comes first" if older else None


def _open(session: Session, design: ExperimentDesign, at: datetime) -> None:
    """Register the design, take the task types and let assigning begin."""
    body = design.model_dump(mode="json") | {"design_hash": design.digest}
    ledger.append(session, EntryKind.EXPERIMENT_DESIGNED, design.experiment_id, design.parameter, at, body)
    for task_type in sorted(design.task_types):
        session.add(TaskTypeLockRow(task_type=task_type, cycle_id=design.cycle_id))
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


def _start(session: Session, design: ExperimentDesign, at: datetime) -> None:
    """Begin to expose tasks, with counters at zero."""
    row = session.get(ExperimentRow, design.experiment_id) or ExperimentRow(**_row(design, at))
    row.exposing, row.opened_at = True, at
    session.add(row)
    for variant in Variant:
        arm: dict[str, Any] = {
            "experiment_id": design.experiment_id,
            "treatment_share": design.treatment_share,
            "variant": variant.value,
        }
        session.add(ArmRow(**arm))
        session.add_all(GuardRow(**arm, guardrail=guardrail.kind.value) for guardrail in design.guardrails)


def _fail_lost(session: Session, experiment_id: str, before: datetime) -> None:
    """A task that was assigned long ago and never reported is a failure of its arm, not a gap in it."""
    # The arms are locked first: a recorder may be finishing one of these tasks at this moment.
    lock(session, f"arms:{experiment_id}")
    lost = session.execute(
        update(AssignmentRow)
        .where(
            col(AssignmentRow.experiment_id) == experiment_id,
            col(AssignmentRow.success).is_(None),
            col(AssignmentRow.assigned_at) < before,
        )
        .values(success=False)
        .returning(col(AssignmentRow.treatment_share), col(AssignmentRow.variant))
        .execution_options(synchronize_session=False)
    ).all()
    for (share, variant), count in Counter((row[0], row[1]) for row in lost).items():
        _arm_of(session, experiment_id, share, variant).finished += count
        guards = select(GuardRow).where(
            GuardRow.experiment_id == experiment_id,
            GuardRow.treatment_share == share,
            GuardRow.variant == variant,
        )
        for guard in session.exec(guards).all():
            guard.tasks += count
            session.add(guard)


def _stale(row: ParameterRow, expected_version: int) -> str | None:
    """Say that a parameter has moved on from the version that somebody looked at, or None."""
    if row.version == expected_version:
        return None
    return f"expected {row.key} at version {expected_version}, but {row.changed_by} made it {row.version}"


def _swap(session: Session, promotion: Promotion, type: EventType, at: datetime) -> PromotionResult:
    key = f"{promotion.cycle_id}:{type.value}"
    row = session.get_one(ParameterRow, promotion.parameter, with_for_update=True)
    if ledger.recorded(session, key):
        return PromotionResult(swapped=True, version=row.version, reason="recorded before")
    if (stale := _stale(row, promotion.expected_version)) is not None:
        return PromotionResult(swapped=False, version=row.version, reason=stale)
    ledger.append(session, EntryKind(type.value), key, promotion.parameter, at, promotion)
    opened = col(ExperimentRow.opened_at).is_not(None)
    for tested in session.exec(select(ExperimentRow).where(ExperimentRow.parameter == row.key, opened)).all():
        # Or its tasks, nine in ten under a watch, would go on getting the value that was just taken back.
        _close(session, tested, at)
    row.previous, row.value, row.version = row.value, promotion.value, row.version + 1
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
    """Write down who got which variant, once per task, and count it, up to the tasks that the experiment is to have."""
    by_experiment: dict[str, dict[str, Assignment]] = defaultdict(dict)
    for assignment in assignments:
        by_experiment[assignment.experiment_id].setdefault(assignment.task_id, assignment)
    for experiment_id, wanted in sorted(by_experiment.items()):
        lock(session, f"arms:{experiment_id}")
        row = session.get(ExperimentRow, experiment_id)
        if row is None or not row.exposing:
            continue
        most = row.design["max_tasks"]
        if most is not None:
            assigned = select(func.sum(ArmRow.assigned)).where(ArmRow.experiment_id == experiment_id)
            room = most - int(session.exec(assigned).one() or 0)
            # A threshold that is calibrated to a horizon holds for so many tasks; later ones are nobody's evidence.
            wanted = dict(list(wanted.items())[: max(0, room)])
            row.exposing = room > len(wanted)
            session.add(row)
        rows = [a.model_dump() | {"success": None} for a in wanted.values()]
        new = insert_new(session, AssignmentRow, rows, returning="task_id")
        counts = Counter((wanted[task_id].treatment_share, wanted[task_id].variant.value) for task_id in new)
        for (share, variant), count in counts.items():
            _arm_of(session, experiment_id, share, variant).assigned += count


def finish_assignments(session: Session, outcomes: Mapping[str, TaskOutcome]) -> dict[str, str]:
    """Count how assigned tasks went, by task id, and tell their arms; a task that was counted as lost stays lost."""
    running = select(ExperimentRow.experiment_id).where(
        col(ExperimentRow.closed_at).is_(None), col(ExperimentRow.opened_at).is_not(None)
    )
    experiment_ids = session.exec(running).all()
    if not experiment_ids:
        return {}
    mine = (col(AssignmentRow.experiment_id).in_(experiment_ids), col(AssignmentRow.task_id).in_(outcomes))
    assigned = session.exec(
        select(AssignmentRow.experiment_id, AssignmentRow.task_id, AssignmentRow.variant).where(*mine)
    ).all()
    for experiment_id in sorted({experiment_id for experiment_id, _, _ in assigned}):
        lock(session, f"arms:{experiment_id}")
    rows = session.exec(
        select(AssignmentRow, ExperimentRow)
        .join(ExperimentRow, col(ExperimentRow.experiment_id) == AssignmentRow.experiment_id)
        .where(*mine, col(AssignmentRow.success).is_(None), col(ExperimentRow.closed_at).is_(None))
        .order_by(AssignmentRow.experiment_id)
    ).all()
    for assignment, experiment in rows:
        outcome = outcomes[assignment.task_id]
        objectives = experiment.design.get("objectives", {})  # an experiment that runs may be older than they are
        assignment.success = is_success({t: Guardrail.model_validate(g) for t, g in objectives.items()}, outcome)
        session.add(assignment)
        arm = _arm_of(session, assignment.experiment_id, assignment.treatment_share, assignment.variant)
        arm.finished += 1
        arm.successes += assignment.success
        for guardrail in (Guardrail.model_validate(g) for g in experiment.design["guardrails"]):
            good = is_good(guardrail, outcome)
            key = (assignment.experiment_id, assignment.treatment_share, assignment.variant, guardrail.kind.value)
            guard = session.get_one(GuardRow, key)
            guard.tasks += 1
            guard.judged += good is not None
            guard.good += bool(good)
            session.add(guard)
    return {task_id: variant for _, task_id, variant in assigned}


def _arm_of(session: Session, experiment_id: str, share: float, variant: str) -> ArmRow:
    """An arm's counters, for a caller that has locked the experiment's arms."""
    return session.get_one(ArmRow, (experiment_id, share, variant))
