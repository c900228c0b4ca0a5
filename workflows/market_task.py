"""The market task: one workflow from a user's request to its result, its price and its effect on standing.

Open, await bids, award, wait for the work, settle. The platform does the work itself, in the winner's name, or the
winner's own executor does, which must not fall silent: silence forfeits, costs standing and a penalty, and the next
best bid is awarded. A direct type has no window: it is awarded as it opens. Every wait has a deadline, every ending is
settled in one transaction, and no message can stop a task. The workflow id is made from the task's own: a task that is
submitted twice is done once.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.market import MarketActivities
    from activities.task_work import TaskWork
    from activities.tasks import TaskActivities

from rules import bidding, identity, rewards
from rules.redaction import beginning, redacted
from schema import display, wire
from schema.display import markdown
from schema.failure_kinds import FailureKind
from schema.messages.base import AgentMessage
from schema.messages.market import AwardResult, Bid, Standing
from schema.messages.observatory import detail_of
from schema.messages.story import Act, Receipt
from schema.messages.tasks import (
    AwardOrder,
    Heartbeat,
    Settlement,
    TaskEnding,
    TaskOpening,
    TaskPhase,
    TaskRequest,
    TaskState,
    TaskStatus,
    WorkOrder,
    WorkResult,
)
from workflows import receipts
from workflows.calls import BUGS, PATIENT, call
from workflows.intake import message_handlers, opened_with
from workflows.shell import Shell, StoryOver

# The runner kills work at its own limit, of a week at most; this only bounds what a lost timer could cost.
LONGEST_WORK = timedelta(days=8)
# What people read of a line of the page; the whole is in the query `status`.
LONGEST_LINE = 300
# A worker beats every few seconds; one that does not is dead, and the work begins again on another.
DEAD_AFTER = timedelta(seconds=30)


def _handed_in(result: WorkResult, ending: TaskEnding, reason: str) -> dict[str, Any]:
    """The fields of a settlement that the executor's result fills.

    Why it failed is what the executor reported, or, where the platform's check refuted the result, `reason`.
    """
    fields = {"summary": result.summary, "details": result.details, "attributes": result.attributes}
    if result.failure is not None:
        detail = result.detail or beginning(result.summary, 500)
        return fields | {"failure_reason": result.reason, "failure_detail": detail_of(detail)}
    if ending is TaskEnding.FAILED:
        return fields | {"failure_reason": "result_refuted", "failure_detail": detail_of(reason)}
    return fields


def _without_credentials(failed: WorkResult) -> WorkResult:
    """A failure, or a result that the check refuted, as everybody who asks for the status sees it."""
    shown = {"summary": redacted(failed.summary)[:2_000], "detail": detail_of(redacted(failed.detail))}
    return failed.model_copy(update=shown)


@workflow.defn(name=wire.MARKET_TASK, failure_exception_types=BUGS)
class MarketTask(Shell):
    """Open, await bids, award, execute, check, settle."""

    _state: TaskState
    _updates = wire.UPDATES_OF_TASK

    @workflow.init
    def __init__(self, request: TaskRequest, carried: TaskState | None = None) -> None:
        self._state, self.start_error = opened_with(TaskRequest, TaskState, request, carried)
        super().__init__()

    # ---- the story

    @workflow.run
    async def run(self, request: TaskRequest, carried: TaskState | None = None) -> TaskStatus:
        try:
            await self._run_to_its_end(self._story())
        except StoryOver as over:
            await self._settle(TaskEnding(over.ending), over.reason)
        self._enter(TaskPhase.ENDED)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self.status()

    async def _story(self) -> None:
        state = self._state
        await self._open()
        await self._await_bids()
        while state.settlement is None:
            await self._award()
            assert state.award is not None
            if state.award.built_in:
                await self._run_built_in_executor()
            else:
                await self._wait_for_the_executor()

    async def _open(self) -> None:
        """Write the task down and learn who may do it; a direct type comes back awarded."""
        state = self._state
        if state.opened is None:
            run_id = workflow.info().first_execution_run_id
            opening = TaskOpening(request=state.request, run_id=run_id, at=workflow.now())
            state.opened = await call(TaskActivities.open_task, opening)
            state.award = state.briefing.award
            state.awarded_at = workflow.now()
        if state.briefing.duplicate:
            raise ApplicationError(f"expected a new task, but {state.request.task_id} has been done", type="duplicate")
        if state.briefing.refusal:
            raise StoryOver(TaskEnding.REFUSED, state.briefing.refusal)
        if not state.briefing.agents and state.award is None:
            raise StoryOver(TaskEnding.NO_BIDS, "there is no agent that could do it")

    async def _await_bids(self) -> None:
        state = self._state
        if state.award is not None or state.bids_closed:
            return
        self._enter(TaskPhase.BIDDING, state.briefing.bid_window_s)
        await self._until(self._bids_complete, "bids close")
        state.bids_closed = True
        if not state.bids:
            raise StoryOver(TaskEnding.NO_BIDS, "no agent bid on the task")

    async def _award(self) -> None:
        """Give the task to the best bid that is left, as soon as its agent has room for it."""
        state = self._state
        if state.award is not None:
            return
        remaining = self._remaining_bids()
        self._enter(TaskPhase.AWARDING, state.briefing.award_window_s)
        order = AwardOrder(
            request=state.request,
            bids=remaining,
            price=state.briefing.price,
            at=workflow.now(),
            result_window_s=state.briefing.result_window_s,
            built_in=state.briefing.built_in,
        )
        summary = f"award to one of {len(remaining)}"
        answered, award = await self._poll(TaskActivities.award_task, order, summary=summary)
        if not answered or award is None:
            raise StoryOver(TaskEnding.NO_BIDS, "no bidder had room for the task, or all have been suspended")
        state.award = award
        state.awarded_at = workflow.now()
        state.last_message_at = None
        self._note(f"awarded to {award.agent_id} for {award.price} credits: {award.reason}")

    async def _run_built_in_executor(self) -> None:
        """The platform does the work in the winner's name; the same activity settles it, in one transaction."""
        state = self._state
        assert state.award is not None
        self._enter(TaskPhase.EXECUTING)
        work = self._work(TaskWork.execute, WorkOrder(request=state.request, award=state.award))
        _, state.settlement = await self._await_activity(work, "the work is done")

    async def _wait_for_the_executor(self) -> None:
        """The winner's own executor beats and hands in before the deadline, or the next best bid is awarded."""
        state = self._state
        assert state.award is not None
        self._enter(TaskPhase.EXECUTING, state.briefing.result_window_s)
        state.last_message_at = state.last_message_at or workflow.now()
        await self._until(lambda: state.result is not None, "result due")
        result = state.result
        if result is None:
            await self._pass_on_the_award()
            return
        if result.failure is not None:
            # Redacted before it is cut: half a key is not recognised.
            reason = redacted(f"{result.failure}: {result.summary}")[:2_000]
            await self._settle(TaskEnding.FAILED, reason, result.failure)
            return
        difference = await self._check(result)
        if difference is not None:
            await self._settle(TaskEnding.FAILED, difference, FailureKind.INVALID_RESULT)
        else:
            await self._settle(TaskEnding.DONE, f"done by {state.award.agent_id}")

    # ---- steps of the story

    def _remaining_bids(self) -> tuple[Bid, ...]:
        """The bids of agents that have not missed the deadline; the story is over where none may be awarded."""
        state = self._state
        remaining = tuple(bid for bid in state.bids.values() if bid.agent_id not in state.missed)
        if remaining and len(state.missed) < state.briefing.most_awards:
            return remaining
        if state.missed:
            raise StoryOver(TaskEnding.NO_RESULT, f"{', '.join(state.missed)} handed in nothing in time")
        raise StoryOver(TaskEnding.NO_BIDS, "no bidder is left whose key is in force")

    async def _check(self, result: WorkResult) -> str | None:
        """Repeat a random share of what is handed in, to compare; returns how this one differs, or None."""
        state = self._state
        if workflow.random().random() >= state.briefing.check_share:
            return None
        check = self._work(TaskWork.check, state.request, result, summary="do it again, to compare")
        difference: str | None = await check
        self._note(difference or "done again by the platform, with the same result")
        return difference

    async def _pass_on_the_award(self) -> None:
        """Record that the winner missed its deadline; the story goes on with the next best bid."""
        state = self._state
        award = state.award
        assert award is not None
        missed = Standing(
            cycle_id=award.cycle_id,
            agent_id=award.agent_id,
            result=AwardResult.MISSED,
            at=workflow.now(),
            task_type=state.request.task_type,
            penalty=rewards.missed_penalty(award.price),
        )
        await call(MarketActivities.record_missed_award, missed, summary=f"{award.agent_id} fell silent")
        self._note(f"{award.agent_id} fell silent")
        state.missed.append(award.agent_id)
        state.award = None
        state.deadline = None

    async def _settle(self, ending: TaskEnding, reason: str, failure: FailureKind | None = None) -> None:
        """Record how the task ended, once. Work of a built-in executor is settled by its own activity."""
        state = self._state
        now = workflow.now()
        started_at = state.awarded_at or now
        settlement = Settlement(
            request=state.request,
            ending=ending,
            reason=reason,
            started_at=started_at,
            at=now,
            **self._agents_part(ending, reason, failure, now - started_at),
        )

        self._enter(TaskPhase.SETTLING)
        # The recorded settlement may be another: the work may have been settled while a person aborted it.
        state.settlement = await call(TaskActivities.settle_task, settlement, summary=f"{ending.value}: settle")

    def _agents_part(
        self, ending: TaskEnding, reason: str, failure: FailureKind | None, took: timedelta
    ) -> dict[str, Any]:
        """The fields of a settlement that the agents answer for: the awarded one only for what it handed in."""
        if ending is TaskEnding.NO_RESULT:
            return {"failure": FailureKind.LOST}
        if ending not in (TaskEnding.DONE, TaskEnding.FAILED):
            return {}

        award = self._state.award
        result = self._state.result
        assert award is not None
        assert result is not None
        part = {"agent_id": award.agent_id, "failure": failure, "duration_s": took.total_seconds()}
        part |= _handed_in(result, ending, reason)
        if ending is TaskEnding.DONE:
            part |= {"price": award.price, "quality": result.quality}
        return part

    def _work(self, activity: Callable[..., Any], *args: Any, summary: str = "") -> workflow.ActivityHandle[Any]:
        """Work takes the processor: it runs on workers, and on a queue, of its own."""
        return workflow.start_activity_method(
            activity,
            args=args,
            task_queue=f"{workflow.info().task_queue}-tasks",
            start_to_close_timeout=LONGEST_WORK,
            heartbeat_timeout=DEAD_AFTER,
            retry_policy=PATIENT,
            summary=display.summary(summary) or None,
        )

    # ---- messages: the same names as a cycle's, and those of an external executor

    heartbeat, heartbeat_signal = message_handlers(wire.HEARTBEAT, Heartbeat, "The executor is at work.")
    submit_result, submit_result_signal = message_handlers(
        wire.SUBMIT_RESULT, WorkResult, "Hand in the result of the awarded task."
    )

    @workflow.update(name=wire.ABORT, description="End the task, as a person.")
    async def abort(self, act: Act) -> Receipt:
        self._state.abort = self._state.abort or act
        return receipts.add(self._state, wire.ABORT, act.who, act.message_id, refusal=None)

    @abort.validator
    def _check_abort(self, act: Act) -> None:
        if self._state.phase in (TaskPhase.SETTLING, TaskPhase.ENDED):
            raise ApplicationError("expected a task that has not ended, but this one is settled", type=wire.ABORT)

    @workflow.query(name=wire.STATUS, description="Where the task stands.")
    def status(self) -> TaskStatus:
        info = workflow.info()
        state = self._state
        fields = dict(state) | {"receipts": {}}
        if state.opened is not None and state.phase is not TaskPhase.BIDDING:
            fields["opened"] = state.opened.model_copy(update={"agents": ()})
        refuted = state.settlement is not None and state.settlement.ending is TaskEnding.FAILED
        if state.result is not None and (refuted or state.result.failure is not None):
            fields["result"] = _without_credentials(state.result)
        return TaskStatus(workflow_id=info.workflow_id, run_id=info.first_execution_run_id, **fields)

    def _accept(self, message: AgentMessage) -> None:
        state = self._state
        state.last_message_at = workflow.now()
        match message:
            case Bid():
                state.bids[message.agent_id] = message
            case Heartbeat():
                state.progress = message.progress
            case WorkResult():
                state.result = message
            case _:
                raise ValueError(f"expected a bid, a heartbeat or a result, but {type(message).__name__} came")

    @property
    def _awaits_messages(self) -> bool:
        return self._state.phase in (TaskPhase.BIDDING, TaskPhase.AWARDING, TaskPhase.EXECUTING)

    def _use_keys(self, keys: dict[str, str]) -> None:
        """What was accepted stands, but an agent whose key was revoked is awarded nothing, and cannot hand in."""
        state = self._state
        state.current_keys = keys
        state.bids = {name: bid for name, bid in state.bids.items() if keys.get(name) != identity.REVOKED}

    def _authentication_failure(self, kind: str, message: AgentMessage) -> str | None:
        info = workflow.info()
        briefing = self._state.briefing
        key = identity.key_of(message.agent_id, briefing.agents, self._state.current_keys)
        run_id = info.first_execution_run_id
        return identity.refusal(message, info.workflow_id, run_id, kind, key, briefing.unsigned_agents)

    def _refusal(self, message: AgentMessage) -> str | None:
        """Why a message cannot be accepted now, or None."""
        state = self._state
        but = f"but {state.request.task_id} is in phase {state.phase.value}"
        if isinstance(message, Bid):
            if state.phase is not TaskPhase.BIDDING or not state.window_open:
                return f"expected a task that awaits bids, {but}"
            if message.agent_id in state.bids:
                return f"expected one bid of {message.agent_id}, but it has bid already"
            agents = {agent.agent_id: agent for agent in state.briefing.agents}
            return bidding.refusal(message, agents, state.briefing.price)
        if state.phase is not TaskPhase.EXECUTING or state.award is None or state.award.built_in:
            return f"expected a task that an external executor works on, {but}"
        if message.agent_id != state.award.agent_id:
            holder = state.award.agent_id
            return f"expected a message of {holder}, who has the award, but {message.agent_id} sent one"
        if state.result is not None:
            return f"expected one result of {message.agent_id}, but it has handed in already"
        return None

    def _bids_complete(self) -> bool:
        """Whether every agent that may bid has done so."""
        return all(agent.suspended or agent.agent_id in self._state.bids for agent in self._state.briefing.agents)

    # ---- what the shell asks

    @property
    def _due_at(self) -> datetime | None:
        """The deadline, or when an external executor has been silent for too long."""
        state = self._state
        if state.phase is not TaskPhase.EXECUTING or state.deadline is None or state.last_message_at is None:
            return state.deadline
        return min(state.deadline, state.last_message_at + timedelta(seconds=state.briefing.heartbeat_s))

    def _raise_if_stopped(self) -> None:
        if (abort := self._state.abort) is not None:
            raise StoryOver(TaskEnding.ABORTED, f"{abort.who}: {abort.why}")

    def _entered(self) -> None:
        state = self._state
        # A direct task is listed once, when it has ended: no agent waits for its phases.
        if state.phase is not TaskPhase.ENDED and state.briefing.award is not None:
            return
        attributes = {wire.PHASE: state.phase.value}
        if state.award is not None:
            attributes[wire.AGENT] = state.award.agent_id
        if state.phase is TaskPhase.ENDED and state.settlement is not None:
            attributes[wire.OUTCOME] = state.settlement.ending.value
        self._list(attributes)

    def _page(self) -> str:
        state = self._state
        task_id = markdown(state.request.task_id, LONGEST_LINE)
        lines = [f"**{state.request.task_type}** {task_id}: {state.phase.value}"]
        lines += [markdown(line, LONGEST_LINE) for line in state.story]
        if state.settlement is not None:
            lines.append(f"**{state.settlement.ending.value}**: {markdown(state.settlement.reason, LONGEST_LINE)}")
        return "\n\n".join(lines)
