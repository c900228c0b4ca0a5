"""Tasks: opens, awards and settles what users ask for, and keeps the task types that agents bring.

A settlement is one transaction: the outcome, the payment, the standing it earned, the records and the event. It is
idempotent, so a task has one outcome and is paid once, however often workers die.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlmodel import Session, select
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.accounts import REQUESTER, transfer
from activities.agents import roster
from activities.database import Database, insert_new, lock
from activities.events import emit
from activities.identity import keys
from activities.market import was_awarded, write_award
from activities.recording import record_outcomes
from activities.rollups import count_fill
from activities.standing import move_standing
from rules import bidding, identity, standing
from rules.redaction import redacted
from schema import wire
from schema.messages.events import TaskAwarded, TaskOpened, TaskSettled
from schema.messages.market import Agent, Award, AwardResult, RankedBid, Standing
from schema.messages.observatory import TaskOutcome, detail_of
from schema.messages.platform import Platform
from schema.messages.tasks import (
    AwardOrder,
    Settlement,
    TaskBriefing,
    TaskEnding,
    TaskOpening,
    TaskRequest,
    TaskTypeListing,
    TypeRegistration,
    task_workflow_id,
)
from schema.tables.market import AgentRow, AwardRow, TaskRow, TaskTypeRow

# How many of the bids are kept with an award, for whoever asks why.
KEPT_BIDS = 20
# While all bidders have as much work as they may have, look again this often.
ROOM_POLL = timedelta(seconds=1)
# Of a reason or a summary, in characters; the whole of a result is in its details.
LONGEST_TEXT = 2_000


def task_types(session: Session, platform: Platform) -> list[TaskTypeListing]:
    """The declared task types, which the platform does itself, and those that agents brought, by name."""
    declared = [TaskTypeListing(name=t.name, description=t.description, direct=t.direct) for t in platform.task_types]
    rows = session.exec(select(TaskTypeRow).order_by(TaskTypeRow.name)).all()
    brought = [TaskTypeListing(**row.model_dump(exclude={"agent_id"}), executor=row.agent_id) for row in rows]
    names = {t.name for t in declared}
    return declared + [t for t in brought if t.name not in names]


def settle(session: Session, settlement: Settlement, interval_s: int) -> Settlement:
    """Write how a task ended, with all that hangs on it. A task is settled once: returns the first settlement."""
    request = settlement.request
    agent_id = settlement.agent_id
    task = session.get_one(TaskRow, request.task_id, with_for_update=True)
    if task.settlement is not None:
        return Settlement.model_validate(task.settlement)

    # A task that no agent had has no outcome, unless it was awarded and no result came.
    if agent_id is not None or settlement.ending is TaskEnding.NO_RESULT:
        record_outcomes(session, [_outcome_of(settlement)], interval_s)
    settlement = without_credentials(settlement)
    if settlement.ending is TaskEnding.NO_BIDS and not was_awarded(session, task_workflow_id(request.task_id)):
        count_fill(session, request.task_type, settlement.at, awarded=False, interval_s=interval_s)
    if agent_id is not None:
        _reward(session, settlement, agent_id)

    task.ended_at = settlement.at
    task.ending = settlement.ending.value
    task.settlement = settlement.model_dump(mode="json")
    session.add(task)
    _announce(session, settlement)
    return settlement


def without_credentials(settlement: Settlement) -> Settlement:
    """The settlement as its requester sees it: why a task failed, without what looks like a credential.

    Only the outcome keeps the message as it came. What a task that is done hands in is not changed.
    """
    if settlement.ending is not TaskEnding.FAILED:
        return settlement
    # Cut again: a text without its credentials may be longer.
    shown = {
        "reason": redacted(settlement.reason)[:LONGEST_TEXT],
        "summary": redacted(settlement.summary)[:LONGEST_TEXT],
        "failure_detail": detail_of(redacted(settlement.failure_detail)),
    }
    return settlement.model_copy(update=shown)


def _outcome_of(settlement: Settlement) -> TaskOutcome:
    return TaskOutcome(
        task_id=settlement.request.task_id,
        task_type=settlement.request.task_type,
        started_at=settlement.started_at,
        finished_at=settlement.at,
        duration_s=settlement.duration_s,
        failure=settlement.failure,
        agent_id=settlement.agent_id or "",
        quality=settlement.quality,
        cost=settlement.price,
        reason=settlement.failure_reason,
        detail=settlement.failure_detail,
        attributes=settlement.attributes,
    )


def _reward(session: Session, settlement: Settlement, agent_id: str) -> None:
    """Pay the agent, and let the result move its standing."""
    request = settlement.request
    at = settlement.at
    work_id = task_workflow_id(request.task_id)
    if settlement.price:
        payer = f"{REQUESTER}{request.requester or 'unnamed'}"
        transfer(session, f"reward:{work_id}", payer, agent_id, settlement.price, at, settlement.reason)

    result = Standing(
        cycle_id=work_id,
        agent_id=agent_id,
        result=AwardResult.DONE if settlement.ending is TaskEnding.DONE else AwardResult.FAILED,
        at=at,
        task_type=request.task_type,
        quality=settlement.quality,
        duration_s=settlement.duration_s,
    )
    move_standing(session, result)


def _announce(session: Session, settlement: Settlement) -> None:
    """Emit the event that notifies the requester."""
    request = settlement.request
    title = f"{request.task_type} {request.task_id}: {settlement.ending.value}"
    if settlement.agent_id:
        title += f" by {settlement.agent_id}"
    settled = TaskSettled(
        task_id=request.task_id,
        task_type=request.task_type,
        agent_id=settlement.agent_id,
        success=settlement.ending is TaskEnding.DONE,
        requester=request.requester,
        notify=request.notify,
        title=title,
        text=_text_for_the_requester(settlement),
    )
    emit(session, settled, task_workflow_id(request.task_id), request.task_id, settlement.at)


def _text_for_the_requester(settlement: Settlement) -> str:
    """The report of a task that is done, or its summary where it has none; of any other task, the reason."""
    if settlement.ending is not TaskEnding.DONE:
        return settlement.reason
    report = settlement.details.get("report")
    return report if isinstance(report, str) else settlement.summary


def _write_down(session: Session, opening: TaskOpening) -> TaskRow:
    """The task's row, written with its event by the first opening of its id."""
    request = opening.request
    row = {
        "task_id": request.task_id,
        "task_type": request.task_type,
        "requester": request.requester,
        "run_id": opening.run_id,
        "opened_at": opening.at,
        "notify": request.notify,
    }
    if insert_new(session, TaskRow, [row], returning="task_id"):
        opened = TaskOpened(
            task_id=request.task_id, task_type=request.task_type, requester=request.requester, notify=request.notify
        )
        emit(session, opened, task_workflow_id(request.task_id), request.task_id, opening.at)
    return session.get_one(TaskRow, request.task_id)


class TaskActivities:
    """What a user task's workflow asks of the database."""

    def __init__(self, database: Database, platform: Platform) -> None:
        self._database = database
        self._platform = platform

    @activity.defn
    def open_task(self, opening: TaskOpening) -> TaskBriefing:
        """Write the task down and gather what its workflow must know; a direct type is awarded here, at once.

        A task whose id another run has had comes back as a duplicate of it.
        """
        request = opening.request
        with self._database.transaction() as session:
            task = _write_down(session, opening)
            briefing = self._briefing(request, duplicate=task.run_id != opening.run_id)
            available = task_types(session, self._platform)
            task_type = next((listed for listed in available if listed.name == request.task_type), None)
            if task_type is None:
                refusal = f"expected a task type of this platform, but there is no {request.task_type}"
                return briefing.model_copy(update={"refusal": refusal})
            if briefing.duplicate:
                return briefing
            return self._with_agents(session, opening, briefing, task, task_type)

    def _with_agents(
        self, session: Session, opening: TaskOpening, briefing: TaskBriefing, task: TaskRow, task_type: TaskTypeListing
    ) -> TaskBriefing:
        """The briefing with the agents that may do the task, or with the award of a direct type."""
        candidates = _candidates(task_type, roster(session, task_type.name))
        briefing = briefing.model_copy(update={"agents": candidates, "built_in": not task_type.executor})
        if task_type.direct:
            award = self._award_direct(session, opening, briefing, task)
            # The agents of a briefing are those that may send messages, and a built-in one sends nothing.
            senders = tuple(agent for agent in candidates if not agent.built_in)
            return briefing.model_copy(update={"agents": senders, "award": award, "most_awards": 1})
        if task_type.executor:
            return briefing
        # Only work that the platform can do itself can be done again, to compare.
        return briefing.model_copy(update={"check_share": self._platform.market.check_share})

    def _briefing(self, request: TaskRequest, *, duplicate: bool) -> TaskBriefing:
        rules = self._platform.market
        return TaskBriefing(
            bid_window_s=rules.bid_window_s,
            award_window_s=rules.award_window_s,
            result_window_s=rules.result_window_s,
            heartbeat_s=rules.heartbeat_s,
            most_awards=rules.most_awards,
            price=rules.price if request.price is None else request.price,
            duplicate=duplicate,
            unsigned_agents=self._platform.unsigned_agents,
        )

    def _award_direct(
        self, session: Session, opening: TaskOpening, briefing: TaskBriefing, task: TaskRow
    ) -> Award | None:
        """Award a task that has no bidding window; None where no candidate can take it."""
        # An earlier attempt may have awarded it, and loads have changed since: that award stands.
        if task.agent_id is not None:
            return _recorded_award(session, task.task_id, task.agent_id)
        best = bidding.direct(task.task_id, briefing.agents)
        if best is None:
            return None

        agent, score = best
        award = Award(
            cycle_id=task_workflow_id(task.task_id),
            agent_id=agent.agent_id,
            price=briefing.price,
            score=score,
            reason=f"direct: standing {agent.standing:.2f}, load {agent.load}",
            deadline=opening.at + timedelta(seconds=briefing.result_window_s),
            built_in=agent.built_in and briefing.built_in,
        )
        interval_s = self._platform.observatory.interval_s
        _record_award(session, task, award, ranking=(), at=opening.at, interval_s=interval_s)
        return award

    @activity.defn
    def award_task(self, order: AwardOrder) -> Award | None:
        """Give the task to the best bid whose agent has room now; None where all are suspended.

        While none has room it asks to be retried; the retries are not history.
        """
        request = order.request
        with self._database.transaction() as session:
            # Two awards at once must not both see an agent's last free place.
            lock(session, "award")
            task = session.get_one(TaskRow, request.task_id)
            if task.agent_id is not None:
                return _recorded_award(session, task.task_id, task.agent_id)

            everybody = roster(session, request.task_type)
            agents = {agent.agent_id: agent for agent in everybody if not agent.suspended}
            bids = [bid for bid in order.bids if bid.agent_id in agents]
            ranking = bidding.rank(task_workflow_id(request.task_id), bids, agents, order.price)
            if not ranking:
                return None
            with_room = [ranked for ranked in ranking if standing.has_room(agents[ranked.bid.agent_id])]
            if not with_room:
                raise _no_room(len(ranking))
            best = with_room[0]
            award = _award_of(order, best, agents[best.bid.agent_id])
            interval_s = self._platform.observatory.interval_s
            _record_award(session, task, award, ranking=ranking, at=order.at, interval_s=interval_s)
            return award

    @activity.defn
    def settle_task(self, settlement: Settlement) -> Settlement:
        """Write how a task ended; the settlement that stands, which an earlier attempt may have written."""
        with self._database.transaction() as session:
            return settle(session, settlement, self._platform.observatory.interval_s)

    @activity.defn
    def register_task_type(self, registration: TypeRegistration, at: datetime) -> TaskTypeListing:
        """Add a task type, or change one's own. What it may not be is refused and not retried."""
        with self._database.transaction() as session:
            lock(session, f"task_type:{registration.name}")
            agent = self._registering_agent(session, registration)
            self._check_type_name(session, registration.name, agent.operator)
            row = TaskTypeRow(
                name=registration.name,
                operator=agent.operator,
                agent_id=agent.agent_id,
                direct=registration.direct,
                description=registration.description,
                payload_schema=registration.payload_schema,
                registered_at=at,
            )
            row = session.merge(row)
            return TaskTypeListing(**row.model_dump(exclude={"agent_id"}), executor=row.agent_id)

    def _registering_agent(self, session: Session, registration: TypeRegistration) -> AgentRow:
        """The agent that a registration names, which signed it and may bring a task type; otherwise it is refused."""
        authentication_failure = identity.refusal(
            registration,
            registration.workflow_id,
            registration.message_id,
            wire.TYPE_REGISTRATION,
            keys(session).get(registration.agent_id),
            self._platform.unsigned_agents,
        )
        if authentication_failure is not None:
            raise _refused(authentication_failure)

        agent = session.get(AgentRow, registration.agent_id)
        if agent is None or agent.suspended or agent.built_in:
            raise _refused(
                f"expected a registered agent in good standing with an executor of its own, "
                f"but {registration.agent_id} is not one"
            )
        return agent

    def _check_type_name(self, session: Session, name: str, operator: str) -> None:
        """Refuse a task type that the platform declares, or that another operator brought."""
        if any(name == declared.name for declared in self._platform.task_types):
            raise _refused(f"expected a new task type, but the platform itself runs {name}")
        existing = session.get(TaskTypeRow, name)
        if existing is not None and existing.operator != operator:
            raise _refused(f"expected a task type of {operator}, but {name} is {existing.operator}'s")


def _candidates(task_type: TaskTypeListing, agents: Sequence[Agent]) -> tuple[Agent, ...]:
    """The agents that may be awarded a task of this type.

    One that an agent brought is for external executors: where it is direct, for that agent's own. A direct one that
    the platform does itself is for its built-in agents. For any other, every agent may bid.
    """
    if task_type.executor:
        external = tuple(agent for agent in agents if not agent.built_in)
        if task_type.direct:
            return tuple(agent for agent in external if agent.agent_id == task_type.executor)
        return external
    if task_type.direct:
        return tuple(agent for agent in agents if agent.built_in)
    return tuple(agents)


def _refused(reason: str) -> ApplicationError:
    return ApplicationError(reason, type="refused", non_retryable=True)


def _no_room(bidders: int) -> ApplicationError:
    """Ask to be retried, once an agent may have finished a task."""
    return ApplicationError(
        f"all {bidders} bidders have as many awards as they may have",
        next_retry_delay=ROOM_POLL,
        category=ApplicationErrorCategory.BENIGN,
    )


def _award_of(order: AwardOrder, ranked: RankedBid, agent: Agent) -> Award:
    return Award(
        cycle_id=task_workflow_id(order.request.task_id),
        agent_id=agent.agent_id,
        price=ranked.bid.price,
        score=ranked.score,
        reason=ranked.reason,
        deadline=order.at + timedelta(seconds=order.result_window_s),
        built_in=order.built_in and agent.built_in,
    )


def _recorded_award(session: Session, task_id: str, agent_id: str) -> Award:
    return Award.model_validate(session.get_one(AwardRow, (task_workflow_id(task_id), agent_id)).body)


def _record_award(
    session: Session, task: TaskRow, award: Award, *, ranking: Sequence[RankedBid], at: datetime, interval_s: int
) -> None:
    """Give the task to the agent, with the best bids of the `ranking` beside the award, and announce it."""
    task.agent_id = award.agent_id
    session.add(task)
    body = award.model_dump(mode="json")
    others = [{"agent_id": r.bid.agent_id, "score": r.score, "reason": r.reason} for r in ranking[:KEPT_BIDS]]
    write_award(session, award, body | {"ranking": others}, task.task_type, at, interval_s)
    key = f"{award.cycle_id}:{award.agent_id}"
    emit(session, TaskAwarded(task_id=task.task_id, award=award), award.cycle_id, key, at)
