"""Evidence: brings both sides of a run into a trace, once everything has come to rest."""

from collections import Counter

from sqlalchemy import func
from sqlmodel import Session, col, select

from activities import texts
from benchmarks.chaos import trace
from benchmarks.chaos.conductor import Conductor
from benchmarks.chaos.declared import facts
from benchmarks.chaos.stage import Stage
from benchmarks.chaos.traffic import read_journal
from schema.messages.market import AwardResult
from schema.messages.observatory import TaskOutcome
from schema.messages.tasks import Settlement
from schema.tables.events import EventRow
from schema.tables.experiment import ArmRow, AssignmentRow, ExperimentRow, ParameterRow, VerdictRow
from schema.tables.ledger import LedgerRow
from schema.tables.market import AwardRow, StandingRow, TaskRow, TransferRow
from schema.tables.observatory import OutcomeRow, RollupRow
from schema.tables.proposals import ProposalRow


def gathered(stage: Stage, conductor: Conductor) -> trace.Trace:
    """The trace of a run: what was told, from the witness's files and memory, and what is recorded."""
    with stage.database.reading() as session:
        rows = session.exec(select(LedgerRow).order_by(col(LedgerRow.sequence))).all()
        events = session.exec(select(EventRow).order_by(col(EventRow.sequence))).all()
        transfers = session.exec(select(TransferRow).order_by(col(TransferRow.number))).all()
        return trace.Trace(
            acknowledged=_acknowledged(stage),
            outcomes=_outcomes(session),
            rolled_up=_rolled_up(session),
            experiments=_experiments(session),
            ledger=[row.model_dump() for row in rows],
            parameters=_parameters(session),
            cycles=[play.cycle for play in conductor.plays],
            proposals=list(session.exec(select(ProposalRow.cycle_id))),
            tasks=_tasks(session, conductor.tasks),
            awards=_awards(session),
            transfers=[trace.Transfer.model_validate(row.model_dump()) for row in transfers],
            events=[trace.Event(key=row.key, subject=row.subject) for row in events],
            received=stage.subscriber.arrivals,
        )


def _acknowledged(stage: Stage) -> dict[str, str]:
    """What recorders acknowledged, and the past, which the stage itself committed."""
    journal = read_journal(stage.journal)
    sent = [TaskOutcome.model_validate(entry.outcome) for entry in journal.values() if entry.fate is not None]
    return {done.task_id: facts(done.duration_s, done.failure) for done in (*stage.past, *sent)}


def _outcomes(session: Session) -> list[trace.Outcome]:
    rows = session.exec(select(OutcomeRow)).all()
    return [
        trace.Outcome(task_id=row.task_id, task_type=row.task_type, facts=facts(row.duration_s, row.failure))
        for row in rows
    ]


def _rolled_up(session: Session) -> dict[str, int]:
    rows = session.exec(select(RollupRow.task_type, func.sum(RollupRow.tasks)).group_by(RollupRow.task_type)).all()
    return {task_type: int(tasks) for task_type, tasks in rows}


def _experiments(session: Session) -> list[trace.Experiment]:
    counted: Counter[str] = Counter()
    for arm in session.exec(select(ArmRow)):
        counted[arm.experiment_id] += arm.finished
    finished = select(AssignmentRow.experiment_id, func.count()).where(col(AssignmentRow.success).is_not(None))
    by_id = dict(session.exec(finished.group_by(AssignmentRow.experiment_id)).all())
    verdicts = set(session.exec(select(VerdictRow.experiment_id)))
    return [
        trace.Experiment(
            experiment_id=row.experiment_id,
            # The watch after a promotion is announced by the promotion.
            opened=row.opened_at is not None and row.experiment_id == row.cycle_id,
            verdict=row.experiment_id in verdicts,
            counted=counted[row.experiment_id],
            finished=by_id.get(row.experiment_id, 0),
        )
        for row in session.exec(select(ExperimentRow))
    ]


def _parameters(session: Session) -> list[trace.Parameter]:
    rows = session.exec(select(ParameterRow)).all()
    values = texts.load(session, [row.value for row in rows])
    return [
        trace.Parameter(key=row.key, value=float(value), version=row.version)
        for row, value in zip(rows, values, strict=True)
    ]


def _tasks(session: Session, submitted: list[str]) -> list[trace.Task]:
    """The tasks that the market accepted; one without a row was accepted and never opened."""
    rows = {row.task_id: row for row in session.exec(select(TaskRow))}
    return [_task(task_id, rows.get(task_id)) for task_id in {**dict.fromkeys(submitted), **dict.fromkeys(rows)}]


def _task(task_id: str, row: TaskRow | None) -> trace.Task:
    if row is None or row.settlement is None:
        return trace.Task(task_id=task_id)
    settlement = Settlement.model_validate(row.settlement)
    return trace.Task(
        task_id=task_id,
        ending=row.ending,
        agent_id=settlement.agent_id,
        price=settlement.price,
        requester=row.requester,
    )


def _awards(session: Session) -> list[trace.Award]:
    missed = select(StandingRow).where(StandingRow.result == AwardResult.MISSED.value)
    missed_by = {(row.cycle_id, row.agent_id) for row in session.exec(missed)}
    return [
        trace.Award(
            work_id=row.cycle_id,
            agent_id=row.agent_id,
            price=row.body["price"],
            missed=(row.cycle_id, row.agent_id) in missed_by,
        )
        for row in session.exec(select(AwardRow))
    ]
