"""Exposures: what platforms outside report of the arms of their tasks, against what is recomputed. No activities.

An arm is a function of experiment and task, so nobody has to be believed: what is reported is compared, and a task
whose platform reports another arm is kept, counted, and no evidence.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from sqlmodel import Session, col, select

from activities.assignments import record_assignments
from activities.database import lock
from activities.parameters import frozen
from activities.recording import record_each
from rules.assignment import assigner
from schema.messages.experiment import IN_FORCE, Assignment, RunningExperiment, Variant
from schema.messages.reports import Exposed, Exposure, OutcomeReport, Recorded, Resolved
from schema.tables.experiment import AssignmentRow, ExperimentRow

# Built once, as each outcome that comes alone would pay for it.
OPEN = select(ExperimentRow).where(col(ExperimentRow.opened_at).is_not(None), col(ExperimentRow.closed_at).is_(None))


class _Open(NamedTuple):
    """An experiment that is open. Where it is held or its parameter is frozen, it `exposes` no task at the moment."""

    row: ExperimentRow
    running: RunningExperiment
    arm: Callable[[str], Variant | None]
    exposes: bool

    @property
    def experiment_id(self) -> str:
        return self.running.experiment_id


class _Comparison:
    """What is to be assigned, and which tasks of which experiment contradict what was recomputed."""

    def __init__(self) -> None:
        self.assignments: list[Assignment] = []
        self.contradicting: defaultdict[str, set[str]] = defaultdict(set)

    def assign(self, experiment: _Open, task_id: str, arm: Variant, report: Exposure | OutcomeReport) -> None:
        at = report.assigned_at if isinstance(report, Exposure) else report.started_at
        self.assignments.append(
            Assignment(
                experiment_id=experiment.experiment_id,
                task_id=task_id,
                variant=arm,
                treatment_share=experiment.running.treatment_share,
                assigned_at=at,
            )
        )

    def contradict(self, experiment: _Open, task_id: str) -> None:
        self.contradicting[experiment.experiment_id].add(task_id)

    def record(self, session: Session, interval_s: int) -> int:
        """Write it down; the number of tasks that contradict."""
        record_assignments(session, self.assignments, interval_s, self.contradicting)
        return len(set().union(*self.contradicting.values()))


def record_exposures(session: Session, exposures: Sequence[Exposure], interval_s: int) -> Exposed:
    """Record tasks that begin under experiments; those of an experiment that is not open are left out."""
    lock(session, "rollup")
    experiments = {experiment.experiment_id: experiment for experiment in _open_experiments(session)}
    comparison = _Comparison()
    for exposure in exposures:
        experiment = experiments.get(exposure.experiment_id)
        if experiment is None:
            continue
        arm = experiment.arm(exposure.task_id)
        comparison.assign(experiment, exposure.task_id, arm or exposure.variant, exposure)
        if arm is not exposure.variant:
            comparison.contradict(experiment, exposure.task_id)
    contradicting = comparison.record(session, interval_s)
    return Exposed(assigned=len(comparison.assignments), contradicting=contradicting)


def record_reports(session: Session, reports: Sequence[OutcomeReport], interval_s: int) -> Recorded:
    """Record outcomes, with the arms that their tasks had: recomputed, and compared with what they echo.

    A task that echoes nothing is taken to have resolved what its type declares, where it began while an experiment
    exposed tasks.
    """
    # One order for all writers: the roll-ups before the arms of experiments.
    lock(session, "rollup")
    experiments = _open_experiments(session)
    comparison = _Comparison()
    assigned = _assigned(session, experiments, [report.task_id for report in reports])
    for report in reports:
        for experiment in experiments:
            if report.task_type in experiment.running.task_types:
                _compare(experiment, report, assigned, comparison)
    contradicting = comparison.record(session, interval_s)
    # Without the echoes, which are no facts of the tasks.
    fates = record_each(session, [report.outcome for report in reports], interval_s)
    return Recorded(fates=tuple(fates), contradicting=contradicting)


def _compare(
    experiment: _Open, report: OutcomeReport, assigned: Collection[tuple[str, str]], comparison: _Comparison
) -> None:
    task_id = report.task_id
    arm = experiment.arm(task_id)
    echo = report.resolved.get(experiment.running.parameter)
    began_after = experiment.row.opened_at is not None and report.started_at >= experiment.row.opened_at
    if echo is None:
        if arm is not None and experiment.exposes and began_after:
            comparison.assign(experiment, task_id, arm, report)
        return

    is_assigned = (experiment.experiment_id, task_id) in assigned
    if not _may_be_of(experiment.running, echo):
        # Resolved before it opened, or while it was held. A task that was seen to begin under it contradicts itself.
        if is_assigned:
            comparison.contradict(experiment, task_id)
        return
    if echo.experiment is None and not began_after and not is_assigned:
        # An arm, but of which experiment? One that ended before this opened, on the same version, has its own.
        return
    echoed = Variant(echo.variant)
    comparison.assign(experiment, task_id, arm or echoed, report)
    if echoed is not arm:
        comparison.contradict(experiment, task_id)


def _may_be_of(experiment: RunningExperiment, echo: Resolved) -> bool:
    """Whether an arm of this experiment is what the task says that it resolved."""
    is_version = echo.version in (None, experiment.base_version)
    is_name = echo.experiment in (None, experiment.experiment_id)
    return is_version and is_name and echo.variant != IN_FORCE


def _open_experiments(session: Session) -> list[_Open]:
    experiments = []
    for row in session.exec(OPEN).all():
        running = RunningExperiment.model_validate(row.design | {"exposure": row.exposure})
        arm = assigner(running.experiment_id, running.exposure, running.treatment_share)
        exposes = row.exposing and frozen(session, row.parameter) is None
        experiments.append(_Open(row, running, arm, exposes))
    return experiments


def _assigned(session: Session, experiments: Sequence[_Open], task_ids: Sequence[str]) -> set[tuple[str, str]]:
    """Which of these tasks are assigned already: experiment and task."""
    if not experiments:
        return set()
    of_experiments = col(AssignmentRow.experiment_id).in_([experiment.experiment_id for experiment in experiments])
    query = select(AssignmentRow.experiment_id, AssignmentRow.task_id).where(
        of_experiments, col(AssignmentRow.task_id).in_(task_ids)
    )
    return {(experiment_id, task_id) for experiment_id, task_id in session.exec(query).all()}
