"""Assignments: which task is in which arm, and how it ended, counted. Functions, no activities.

A decision reads the arms' counters and never outcomes, so its cost does not grow with them.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, update
from sqlmodel import Session, col, select

from activities.database import insert_new, lock
from activities.rollups import rearm
from rules.verdict import decided_by_ratings, is_counted, is_good, is_success
from schema.messages.experiment import ArmCounts, Assignment, GuardCounts, StratumCounts
from schema.messages.observatory import Counts, Guardrail, GuardrailKind, TaskOutcome
from schema.tables.experiment import ArmRow, AssignmentRow, ExperimentRow, GuardRow
from schema.tables.observatory import OutcomeRow

# SQLite takes at most 32,766 values in a statement.
READ_AT_A_TIME = 5_000
# An assignment whose task has not ended.
PENDING = (col(AssignmentRow.success).is_(None), ~col(AssignmentRow.excluded))
# Built once, as each outcome that comes alone would pay for it.
RUNNING_IDS = select(ExperimentRow.experiment_id).where(
    col(ExperimentRow.closed_at).is_(None), col(ExperimentRow.opened_at).is_not(None)
)


class _ArmKey(NamedTuple):
    """One arm in one stratum of an experiment."""

    experiment_id: str
    treatment_share: float
    variant: str


def counters(session: Session, experiment_id: str) -> tuple[StratumCounts, ...]:
    """Both arms of every stratum, by ascending treatment share."""
    strata: dict[float, dict[str, ArmCounts]] = {}
    for row in session.exec(select(ArmRow).where(ArmRow.experiment_id == experiment_id)).all():
        pending = row.assigned - row.finished - row.excluded
        arm = ArmCounts(
            tasks=row.finished,
            successes=row.successes,
            pending=pending,
            excluded=row.excluded,
            contradicting=row.contradicting,
        )
        strata.setdefault(row.treatment_share, {})[row.variant] = arm
    return tuple(StratumCounts(treatment_share=share, **arms) for share, arms in sorted(strata.items()))


def guard_counters(session: Session, experiment_id: str) -> tuple[GuardCounts, ...]:
    """Both arms of every guardrail and stratum."""
    arms_by_guard: dict[tuple[str, float], dict[str, Any]] = {}
    for row in session.exec(select(GuardRow).where(GuardRow.experiment_id == experiment_id)).all():
        arms = arms_by_guard.setdefault((row.guardrail, row.treatment_share), {})
        arms[row.variant] = Counts(tasks=row.tasks, successes=row.good)
        arms[f"judged_{row.variant}"] = row.judged
    return tuple(
        GuardCounts(kind=GuardrailKind(kind), treatment_share=share, **arms)
        for (kind, share), arms in sorted(arms_by_guard.items())
    )


def fail_lost(session: Session, experiment_id: str, at: datetime, cutoff: timedelta) -> None:
    """End each task that has been pending for longer than `cutoff`, and count it as a failure of its arm.

    Where ratings decide, such a lost task is excluded from its arm instead, because no failed task is rated.

    The time is measured by the clock of the evaluations, from the first one that finds the task pending: the platform's
    clock, which sets `assigned_at`, may be hours behind.
    """
    # The arms are locked first: a recorder may be finishing one of these tasks at this moment.
    lock(session, f"arms:{experiment_id}")
    experiment = session.get_one(ExperimentRow, experiment_id)
    by_ratings = decided_by_ratings(_objectives(experiment))
    ending = {"excluded": True} if by_ratings else {"success": False}
    lost_by_arm = _end_overdue(session, experiment_id, at, cutoff, ending)
    for arm_key, lost in lost_by_arm.items():
        arm = _arm_of(session, arm_key)
        if by_ratings:
            arm.excluded += lost
        else:
            arm.finished += lost
        _count_lost_in_guards(session, arm_key, lost)


def _count_lost_in_guards(session: Session, arm_key: _ArmKey, lost: int) -> None:
    """Count lost tasks in the totals alone: a task without an outcome cannot be judged, and is not good."""
    for guard in _guards_of(session, arm_key):
        # The share of rated tasks is a share of those that succeeded, and a lost one did not.
        if guard.guardrail != GuardrailKind.RATED.value:
            guard.tasks += lost


def _end_overdue(
    session: Session, experiment_id: str, at: datetime, cutoff: timedelta, ending: Mapping[str, bool]
) -> Counter[_ArmKey]:
    """Write the ending of each task that has been pending for too long; how many these are, by arm."""
    options = {"synchronize_session": False}
    pending = (col(AssignmentRow.experiment_id) == experiment_id, *PENDING)
    mark_seen = update(AssignmentRow).where(*pending, col(AssignmentRow.seen_at).is_(None)).values(seen_at=at)
    session.execute(mark_seen, execution_options=options)

    key = (col(AssignmentRow.experiment_id), col(AssignmentRow.treatment_share), col(AssignmentRow.variant))
    overdue = col(AssignmentRow.seen_at) < at - cutoff
    end = update(AssignmentRow).where(*pending, overdue).values(**ending).returning(*key)
    return Counter(_ArmKey(*ended) for ended in session.execute(end, execution_options=options))


def record_assignments(
    session: Session,
    assignments: Iterable[Assignment],
    interval_s: int,
    contradicting: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> None:
    """Record which task got which variant, once per task, and count it, up to the experiment's number of tasks.

    A task whose outcome is recorded already is finished at once: the two may come from different processes. The tasks
    in `contradicting`, by experiment, are no evidence: their platform reported another arm than theirs.
    """
    # Before the arms, as when outcomes are recorded: otherwise two recorders could deadlock.
    lock(session, "rollup")
    by_experiment: dict[str, dict[str, Assignment]] = {experiment_id: {} for experiment_id in contradicting}
    for assignment in assignments:
        by_experiment.setdefault(assignment.experiment_id, {}).setdefault(assignment.task_id, assignment)
    for experiment_id, by_task in sorted(by_experiment.items()):
        lock(session, f"arms:{experiment_id}")
        new_ids = _insert_assignments(session, experiment_id, by_task)
        _exclude(session, experiment_id, contradicting.get(experiment_id, ()))
        _finish_recorded(session, new_ids, interval_s)


def _insert_assignments(session: Session, experiment_id: str, by_task: Mapping[str, Assignment]) -> Collection[str]:
    """Record and count one experiment's new assignments, unless it no longer exposes tasks; the ids of their tasks."""
    experiment = session.get(ExperimentRow, experiment_id)
    if experiment is None or not experiment.exposing:
        return ()

    admitted = _admit(session, experiment, by_task)
    unfinished = {"success": None, "excluded": False, "contradicting": False}
    rows = [assignment.model_dump() | unfinished for assignment in admitted.values()]
    new_ids = insert_new(session, AssignmentRow, rows, returning="task_id")
    new = [admitted[task_id] for task_id in new_ids]
    new_by_arm = Counter(_ArmKey(experiment_id, added.treatment_share, added.variant.value) for added in new)
    for arm_key, count in new_by_arm.items():
        arm = _arm_of(session, arm_key)
        arm.assigned += count
    session.flush()
    return new_ids


def _exclude(session: Session, experiment_id: str, task_ids: Collection[str]) -> None:
    """End those of the contradicting tasks that are pending."""
    if not task_ids:
        return
    contradicting = (col(AssignmentRow.experiment_id) == experiment_id, col(AssignmentRow.task_id).in_(task_ids))
    for assignment in session.exec(select(AssignmentRow).where(*contradicting, *PENDING)).all():
        assignment.excluded = True
        assignment.contradicting = True
        arm = _arm_of(session, _ArmKey(experiment_id, assignment.treatment_share, assignment.variant))
        arm.excluded += 1
        arm.contradicting += 1
    session.flush()


def _finish_recorded(session: Session, task_ids: Collection[str], interval_s: int) -> None:
    """Finish the tasks whose outcome was recorded before their assignment came."""
    outcomes = recorded_outcomes(session, task_ids)
    if outcomes:
        arms = finish_assignments(session, outcomes)
        rearm(session, outcomes.values(), arms, interval_s)


def _admit(session: Session, experiment: ExperimentRow, by_task: Mapping[str, Assignment]) -> Mapping[str, Assignment]:
    """The assignments that the experiment has room for; it stops exposing tasks when they fill it.

    A threshold that is calibrated to a horizon holds for so many tasks; later ones are no evidence.
    """
    max_tasks = experiment.design["max_tasks"]
    if max_tasks is None:
        return by_task
    counted = select(func.sum(ArmRow.assigned)).where(ArmRow.experiment_id == experiment.experiment_id)
    assigned = int(session.exec(counted).one() or 0)
    room = max(0, max_tasks - assigned)
    if len(by_task) >= room:
        # A task that is reported again takes no room, or the experiment would end before it is full.
        assigned_ids = _assigned_among(session, experiment.experiment_id, by_task)
        by_task = {task_id: assignment for task_id, assignment in by_task.items() if task_id not in assigned_ids}
    admitted = dict(islice(by_task.items(), room))
    experiment.exposing = len(admitted) < room
    session.add(experiment)
    return admitted


def _assigned_among(session: Session, experiment_id: str, task_ids: Iterable[str]) -> set[str]:
    """Which of these tasks the experiment has already."""
    of_experiment = col(AssignmentRow.experiment_id) == experiment_id
    query = select(AssignmentRow.task_id).where(of_experiment, col(AssignmentRow.task_id).in_(list(task_ids)))
    return set(session.exec(query).all())


def recorded_outcomes(session: Session, task_ids: Collection[str]) -> dict[str, TaskOutcome]:
    """The recorded outcomes of these tasks."""
    table = OutcomeRow.__table__  # type: ignore[attr-defined]
    ids = list(task_ids)
    outcomes: dict[str, TaskOutcome] = {}
    for n in range(0, len(ids), READ_AT_A_TIME):
        query = select(table).where(table.c.task_id.in_(ids[n : n + READ_AT_A_TIME]))
        rows = session.connection().execute(query).mappings()
        outcomes |= {row["task_id"]: TaskOutcome.model_validate(dict(row)) for row in rows}
    return outcomes


def finish_assignments(session: Session, outcomes: Mapping[str, TaskOutcome]) -> dict[str, str]:
    """Count how assigned tasks went; returns their arms by task id. A task that was counted as lost stays lost."""
    running_ids = session.exec(RUNNING_IDS).all()
    if not running_ids:
        return {}

    reported = (col(AssignmentRow.experiment_id).in_(running_ids), col(AssignmentRow.task_id).in_(outcomes))
    arms = select(AssignmentRow.experiment_id, AssignmentRow.task_id, AssignmentRow.variant).where(*reported)
    assigned = session.exec(arms).all()
    experiment_ids = {experiment_id for experiment_id, _, _ in assigned}
    for experiment_id in sorted(experiment_ids):
        lock(session, f"arms:{experiment_id}")
    # Under the locks: an evaluation may have counted a task as lost, or closed an experiment, meanwhile.
    _count_pending(session, reported, outcomes)
    return {task_id: variant for _, task_id, variant in assigned}


def _count_pending(
    session: Session, reported: Sequence[ColumnElement[bool]], outcomes: Mapping[str, TaskOutcome]
) -> None:
    """Count the outcomes of the reported tasks that are still pending, for a caller that has locked their arms."""
    pending = (
        select(AssignmentRow, ExperimentRow)
        .join(ExperimentRow, col(ExperimentRow.experiment_id) == AssignmentRow.experiment_id)
        .where(*reported, *PENDING, col(ExperimentRow.closed_at).is_(None))
        .order_by(AssignmentRow.experiment_id)
    )
    counters: dict[str, _Counters] = {}
    for assignment, experiment in session.exec(pending).all():
        if experiment.experiment_id not in counters:
            counters[experiment.experiment_id] = _Counters(session, experiment)
        counters[experiment.experiment_id].count(assignment, outcomes[assignment.task_id])


class _Counters:
    """The counters of an experiment whose arms are locked: read once, however many tasks have ended."""

    def __init__(self, session: Session, experiment: ExperimentRow) -> None:
        of_experiment = {"experiment_id": experiment.experiment_id}
        self._objectives = _objectives(experiment)
        self._guardrails = [Guardrail.model_validate(declared) for declared in experiment.design["guardrails"]]
        arms = session.exec(select(ArmRow).filter_by(**of_experiment)).all()
        guards = session.exec(select(GuardRow).filter_by(**of_experiment)).all()
        self._arms = {(arm.treatment_share, arm.variant): arm for arm in arms}
        self._guards = {(guard.treatment_share, guard.variant, guard.guardrail): guard for guard in guards}

    def count(self, assignment: AssignmentRow, outcome: TaskOutcome) -> None:
        """Count one task in its arm, or as excluded from it, and in each of the arm's guardrails."""
        self._count_in_arm(assignment, is_success(self._objectives, outcome))
        for guardrail in self._guardrails:
            if is_counted(guardrail, self._objectives, outcome):
                self._count_in_guard(assignment, guardrail, is_good(guardrail, outcome))

    def _count_in_arm(self, assignment: AssignmentRow, success: bool | None) -> None:
        """None where the task was not rated: it is evidence neither for its arm nor against it."""
        assignment.success = success
        assignment.excluded = success is None
        arm = self._arms[assignment.treatment_share, assignment.variant]
        if success is None:
            arm.excluded += 1
        else:
            arm.finished += 1
        if success:
            arm.successes += 1

    def _count_in_guard(self, assignment: AssignmentRow, guardrail: Guardrail, good: bool | None) -> None:
        """None where the guardrail cannot judge the task, which then counts in the total alone."""
        guard = self._guards[assignment.treatment_share, assignment.variant, guardrail.kind.value]
        guard.tasks += 1
        if good is not None:
            guard.judged += 1
        if good:
            guard.good += 1


def _objectives(experiment: ExperimentRow) -> dict[str, Guardrail]:
    """What a good task of each type is."""
    stored = experiment.design.get("objectives", {})  # an experiment that runs may be older than this field
    return {task_type: Guardrail.model_validate(objective) for task_type, objective in stored.items()}


def _arm_of(session: Session, key: _ArmKey) -> ArmRow:
    """An arm's counters, for a caller that has locked the experiment's arms."""
    return session.get_one(ArmRow, key)


def _guards_of(session: Session, key: _ArmKey) -> Sequence[GuardRow]:
    """The counters of an arm's guardrails, for a caller that has locked the experiment's arms."""
    return session.exec(select(GuardRow).filter_by(**key._asdict())).all()


def close_experiment(session: Session, row: ExperimentRow, at: datetime) -> None:
    """No further task is assigned to it."""
    if row.closed_at is None:
        row.exposing = False
        row.closed_at = at
        session.add(row)
