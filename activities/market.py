"""Market: meta-tasks, awards, decay, and the end of a cycle: the activities, and how an award is recorded.

The end of a cycle is one transaction: its ledger entry, the winner's reward, the standing it earned, the released locks
and the event. It is idempotent.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

from sqlalchemy import func, or_
from sqlmodel import Session, col, delete, select
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities import identity, ledger, people
from activities.accounts import TREASURY, transfer
from activities.agents import roster
from activities.changes import Values, in_short, past_endings, values_by_version
from activities.database import Database, insert_new, lock
from activities.diagnosis import stands_out
from activities.events import emit
from activities.experiment import release
from activities.guardrails import guardrails, objectives
from activities.history import counted_from, counts_since, healthy_counts
from activities.parameters import parameter_states
from activities.rollups import count_fill
from activities.standing import COUNTS, move_standing
from rules import rewards
from rules import standing as standings
from rules.opening import AIMS
from rules.rates import worst
from rules.standing import decayed
from schema import wire
from schema.messages.cycle import Briefing, CycleEnd, CycleOpening, Ending, RecordedAct
from schema.messages.diagnosis import StandsOut
from schema.messages.events import (
    AgentRestored,
    AwardMissed,
    CycleEnded,
    MetaTaskAwarded,
    MetaTaskOpened,
    PersonActed,
)
from schema.messages.ledger import EntryKind
from schema.messages.market import PLATFORM_META, Award, Standing
from schema.messages.observatory import Counts
from schema.messages.platform import Platform
from schema.messages.proposals import Proposal
from schema.messages.tasks import task_workflow_id
from schema.tables.market import AgentRow, AwardRow, MetaTaskRow, RecordRow, TaskRow
from schema.tables.proposals import ProposalRow


def was_awarded(session: Session, work_id: str) -> bool:
    """Whether any agent ever had this cycle's or task's award."""
    return session.exec(select(AwardRow.agent_id).where(AwardRow.cycle_id == work_id)).first() is not None


def write_award(
    session: Session,
    award: Award,
    body: dict[str, Any],
    task_type: str,
    at: datetime,
    interval_s: int,
    counted: bool = True,
) -> bool:
    """Record which agent got a task and why; False where it was recorded before.

    The first award of a task counts as a fill of the market, unless the task is not `counted`.
    """
    row = {"cycle_id": award.cycle_id, "agent_id": award.agent_id, "at": at, "body": body}
    is_first = not was_awarded(session, award.cycle_id)
    if not insert_new(session, AwardRow, [row], returning="agent_id"):
        return False
    if is_first and counted:
        count_fill(session, task_type, at, awarded=True, interval_s=interval_s)
    return True


class MarketActivities:
    """Opens, awards and closes meta-tasks, and keeps the agents' standing."""

    def __init__(self, database: Database, platform: Platform) -> None:
        self._database = database
        self._platform = platform

    @activity.defn
    def open_meta_task(self, opening: CycleOpening) -> Briefing:
        """Number the attempt and gather the cycle's briefing; the same request is opened once.

        A request that another run has opened comes back as a duplicate of that run's cycle.
        """
        request = opening.request
        with self._database.transaction() as session:
            lock(session, f"subject:{request.subject}")
            row = session.exec(select(MetaTaskRow).where(MetaTaskRow.request_id == request.request_id)).first()
            if row is None:
                refusal = identity.opening_refusal(session, opening, self._platform.unsigned_agents)
                if refusal is not None:
                    raise ApplicationError(refusal, type=wire.OPEN_CYCLE, non_retryable=True)
                row = self._new_meta_task(session, opening)
            values = values_by_version(session)
            briefing = self._briefing(session, opening, row, values)
        # After the transaction: to read thousands of outcomes must not keep a platform from recording its tasks.
        return briefing.model_copy(update={"stands_out": self._stands_out(opening, briefing, values)})

    def _briefing(self, session: Session, opening: CycleOpening, row: MetaTaskRow, values: Values) -> Briefing:
        """What the cycle is decided by: counts since the onset, or since the last change of a parameter after it."""
        request = opening.request
        at = opening.at
        observatory = self._platform.observatory
        task_types = self._task_types(opening)
        onset = self._onset(opening)
        # Normal is what was before the onset, however long the anomaly has been open.
        normal_until = onset if request.anomaly else at
        since = counted_from(session, self._platform, task_types, onset)
        aims = objectives(session, request.anomaly, observatory)
        names = [declared.name for declared in self._platform.task_types]
        endings = [in_short(ending) for ending in past_endings(session, request.subject, values)]
        earlier = _earlier_endings(session, row, request.proposal)
        without_bids = _in_a_row(earlier, lambda ending: ending is Ending.NO_BIDS)
        rules = self._platform.cycle
        return Briefing(
            cycle_id=row.cycle_id,
            attempt=row.attempt,
            failed_attempts=_in_a_row(earlier, lambda ending: ending is not Ending.PROMOTED),
            rules=rules.model_copy(update={"reward": rewards.offered(rules, without_bids)}),
            parameters=parameter_states(session, self._platform),
            agents=roster(session),
            baseline=counts_since(session, task_types, since, objectives=aims),
            baselines={name: counts_since(session, [name], since, objectives=aims) for name in names},
            healthy=healthy_counts(session, task_types, normal_until, observatory, aims),
            guardrails=guardrails(session, task_types, at, observatory, aims),
            objectives=aims,
            duplicate=row.run_id != opening.run_id,
            unsigned_agents=self._platform.unsigned_agents,
            market=self._platform.market,
            endings=tuple(endings),
            people=people.declared(self._platform),
        )

    def _stands_out(self, opening: CycleOpening, briefing: Briefing, values: Values) -> StandsOut | None:
        """What the records show of the affected task type, or of several of the one that fails most; None without."""
        task_types = self._task_types(opening)
        if not task_types or briefing.duplicate:
            return None
        task_type = worst({name: briefing.baselines.get(name, Counts()) for name in task_types})
        parameters = {p.key for p in self._platform.parameters if task_type in p.task_types}
        onset = self._onset(opening)
        with self._database.reading() as session:
            start = counted_from(session, self._platform, [task_type], onset)
            return stands_out(session, task_type, parameters, onset, start, opening.at, briefing.objectives, values)

    def _onset(self, opening: CycleOpening) -> datetime:
        """When the anomaly began; without one, the beginning of the trailing floor window."""
        if opening.request.anomaly:
            return opening.request.anomaly.onset
        return opening.at - timedelta(seconds=self._platform.observatory.floor_window_s)

    def _new_meta_task(self, session: Session, opening: CycleOpening) -> MetaTaskRow:
        """The next attempt on the subject, recorded with its event."""
        request = opening.request
        last = session.exec(select(func.max(MetaTaskRow.attempt)).where(MetaTaskRow.subject == request.subject)).one()
        attempt = (last or 0) + 1
        row = MetaTaskRow(
            cycle_id=f"{request.subject}#{attempt}",
            request_id=request.request_id,
            subject=request.subject,
            attempt=attempt,
            workflow_id=opening.workflow_id,
            run_id=opening.run_id,
            anomaly_id=request.anomaly.anomaly_id if request.anomaly else None,
            opened_at=opening.at,
        )
        session.add(row)
        emit(session, MetaTaskOpened(cycle_id=row.cycle_id), row.subject, row.cycle_id, opening.at)
        return row

    def _task_types(self, opening: CycleOpening) -> list[str]:
        """The task types whose counts are the baseline: the anomaly's, or all that the proposed parameter touches."""
        request = opening.request
        if request.anomaly is not None:
            task_type = request.anomaly.task_type
            return [task_type] if task_type else [declared.name for declared in self._platform.task_types]
        assert request.proposal is not None
        # A proposal may name a parameter that is not declared; the cycle refuses it later.
        task_types = {parameter.key: parameter.task_types for parameter in self._platform.parameters}
        return list(task_types.get(request.proposal.parameter, ()))

    @activity.defn
    def record_award(self, award: Award, at: datetime) -> None:
        """Record which agent got the meta-task and why."""
        body = award.model_dump(mode="json")
        interval_s = self._platform.observatory.interval_s
        with self._database.transaction() as session:
            if write_award(session, award, body, PLATFORM_META, at, interval_s, _tells_of_market(award.cycle_id)):
                key = f"{award.cycle_id}:{award.agent_id}"
                emit(session, MetaTaskAwarded(award=award), award.cycle_id, key, at)

    @activity.defn
    def record_missed_award(self, missed: Standing) -> None:
        """Take standing and a penalty, once, from a winner that missed its deadline, and free its task for another."""
        with self._database.transaction() as session:
            move_standing(session, missed)
            if missed.task_type != PLATFORM_META:
                task_id = missed.cycle_id.removeprefix(task_workflow_id(""))
                awarded = select(TaskRow).where(TaskRow.task_id == task_id, TaskRow.agent_id == missed.agent_id)
                for task in session.exec(awarded).all():
                    task.agent_id = None
                    session.add(task)
            key = f"{missed.cycle_id}:{missed.agent_id}"
            emit(session, AwardMissed(agent_id=missed.agent_id), missed.cycle_id, key, missed.at)

    @activity.defn
    def record_act(self, recorded: RecordedAct) -> None:
        """Record what a person did to a cycle, and why."""
        # As receipts have it: an id is its sender's own, and of one kind of act. By the id alone, an act under an id
        # that somebody used before would be done off the record.
        act = recorded.act
        key = f"{recorded.cycle_id}:{recorded.kind}:{act.who}:{act.message_id}"
        with self._database.transaction() as session:
            if ledger.append(session, EntryKind.PERSON_ACTED, key, recorded.cycle_id, recorded.at, recorded):
                emit(session, PersonActed(act=recorded), recorded.cycle_id, key, recorded.at)

    @activity.defn
    def end_cycle(self, end: CycleEnd) -> None:
        """Write the ending to the ledger and settle all that depends on it, in one transaction."""
        with self._database.transaction() as session:
            if not ledger.append(session, EntryKind.CYCLE_ENDED, f"{end.cycle_id}:ended", end.subject, end.at, end):
                return
            if end.agent_id is not None:
                _settle(session, end, end.agent_id)
            if end.ending is Ending.NO_BIDS and _tells_of_market(end.subject):
                interval_s = self._platform.observatory.interval_s
                count_fill(session, PLATFORM_META, end.at, awarded=False, interval_s=interval_s)
            release(session, end.cycle_id, end.at)
            task = session.get_one(MetaTaskRow, end.cycle_id)
            task.ended_at = end.at
            task.ending = end.ending.value
            session.add(task)
            ended = CycleEnded(cycle_id=end.cycle_id, ending=end.ending, reason=end.reason, dossier=end.dossier)
            emit(session, ended, end.subject, end.cycle_id, end.at)

    @activity.defn
    def restore_agents(self, at: datetime) -> str | None:
        """End the suspensions whose time is over, on probation; returns the agents' names in one line, or None.

        Their records start anew: with the old ones they would never win a task again, however well they now do.
        """
        due = at - timedelta(seconds=self._platform.market.suspension_s)
        with self._database.reading() as session:
            over = select(AgentRow.agent_id).where(col(AgentRow.suspended), col(AgentRow.suspended_at) <= due)
            names = session.exec(over).all()
        # One transaction each: the agent's lock comes before the event's, as everywhere.
        for name in names:
            with self._database.transaction() as session:
                _restore(session, name, due, at)
        return f"restored: {', '.join(names)}" if names else None

    @activity.defn
    def decay_idle(self, at: datetime) -> str | None:
        """Decay idle agents' standing towards a newcomer's, and their records towards zero.

        Idempotent: what counts is the time since the last result or the last decay.
        """
        half_life_s = self._platform.market.idle_half_life_s
        with self._database.reading() as session:
            names = session.exec(select(AgentRow.agent_id).where(~col(AgentRow.suspended))).all()
        for name in names:
            with self._database.transaction() as session:
                _decay(session, name, half_life_s, at)
        return None


def _tells_of_market(subject: str) -> bool:
    """Whether a meta-task without bids is a sign of a bad market, by its cycle's subject or id.

    Of speed, cost and quality many an honest agent knows no remedy: that nobody bids is no fault of the market, so
    neither is it to its credit that somebody does.
    """
    return subject.partition(":")[0] not in AIMS


def _restore(session: Session, name: str, due: datetime, at: datetime) -> None:
    """End the suspension of an agent, unless another run has, or it was suspended anew after `due`."""
    lock(session, f"standing:{name}")
    agent = session.get_one(AgentRow, name)
    if not agent.suspended or agent.suspended_at is None or agent.suspended_at > due:
        return
    key = f"{name}:{agent.suspended_at.isoformat()}"
    agent.suspended = False
    agent.suspended_at = None
    agent.failure_log_ratio = 0.0
    agent.standing = standings.RETURN_STANDING
    agent.active_at = at
    session.add(agent)
    session.exec(delete(RecordRow).where(col(RecordRow.agent_id) == name))
    emit(session, AgentRestored(agent_id=name), name, key, at)


def _decay(session: Session, name: str, half_life_s: float, at: datetime) -> None:
    """Decay the standing and the records of one agent by the time since its last result or decay."""
    lock(session, f"standing:{name}")
    agent = session.get_one(AgentRow, name)
    idle_s = (at - (agent.active_at or agent.registered_at)).total_seconds()
    if idle_s <= 0:
        return
    agent.standing = decayed(agent.standing, standings.NEWCOMER_STANDING, idle_s, half_life_s)
    agent.failure_log_ratio = decayed(agent.failure_log_ratio, 0.0, idle_s, half_life_s)
    agent.active_at = at
    session.add(agent)
    for record in session.exec(select(RecordRow).where(RecordRow.agent_id == name)).all():
        for count in COUNTS:
            setattr(record, count, decayed(getattr(record, count), 0.0, idle_s, half_life_s))
        session.add(record)


def _settle(session: Session, end: CycleEnd, agent_id: str) -> None:
    """Transfer what the proposer earns and pays, each under a reference of its own, and move its standing."""
    payments = {"reward": end.reward, "bonus": end.bonus, "forecast": end.forecast, "penalty": -end.penalty}
    for name, amount in payments.items():
        if amount:
            debit, credit = (TREASURY, agent_id) if amount > 0 else (agent_id, TREASURY)
            reference = f"{name}:{end.cycle_id}"
            transfer(session, reference, debit=debit, credit=credit, amount=abs(amount), at=end.at, memo=end.reason)
    if end.result is not None:
        move_standing(session, Standing(cycle_id=end.cycle_id, agent_id=agent_id, result=end.result, at=end.at))


def _earlier_endings(session: Session, opened: MetaTaskRow, proposal: Proposal | None) -> list[Ending]:
    """How the earlier attempts of the anomaly ended, the newest first.

    Against an agent's own proposal only its own attempts and promotions count: no agent can use up the attempts of
    others.
    """
    attempts = select(MetaTaskRow.ending).where(
        MetaTaskRow.subject == opened.subject,
        MetaTaskRow.attempt < opened.attempt,
        MetaTaskRow.anomaly_id == opened.anomaly_id,
        col(MetaTaskRow.ending).is_not(None),
    )
    if proposal is not None:
        voted_on = select(ProposalRow.cycle_id).where(ProposalRow.agent_id == proposal.agent_id)
        is_promoted = col(MetaTaskRow.ending) == Ending.PROMOTED.value
        attempts = attempts.where(or_(is_promoted, col(MetaTaskRow.cycle_id).in_(voted_on)))
    endings = session.exec(attempts.order_by(col(MetaTaskRow.attempt).desc())).all()
    return [Ending(ending) for ending in endings if ending]


def _in_a_row(endings: Sequence[Ending], holds: Callable[[Ending], bool]) -> int:
    """How many of the latest endings are of a kind, up to the first that is not."""
    return sum(1 for _ in takewhile(holds, endings))
