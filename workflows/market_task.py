"""The market task: one workflow from what a user asks to what it came to, and what that was worth.

Open, await bids, award, wait for the work, settle. The work is done in house, in the winner's name, or by the winner's
own executor, which must not fall silent: silence forfeits, costs standing and a penalty, and the next best bid is
awarded. A direct type has no window: it is awarded as it opens. Every wait has a deadline, every ending is settled in
one transaction, and nothing anybody sends can stop a task. The workflow id is made from the task's own: a task that is
submitted twice is done once.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.market import MarketActivities
    from activities.task_work import TaskWork
    from activities.tasks import TaskActivities

from rules import bidding, identity, rewards
from schema import wire
from schema.messages.base import AgentMessage
from schema.messages.cycle import Act, Receipt
from schema.messages.market import AwardResult, Bid, Standing
from schema.messages.observatory import FailureKind
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
from workflows.calls import BUGS, PATIENT, call, poll, start, uncancelled
from workflows.intake import Intake, heard

# The runner kills work at its own limit, of a week at most; this only bounds what a lost timer could cost.
LONGEST_WORK = timedelta(days=8)
# A worker beats every few seconds; one that does not is dead, and the work begins again on another.
DEAD_AFTER = timedelta(seconds=30)


class TaskOver(Exception):
    """The story ends here without a result. Not an error."""

    def __init__(self, ending: TaskEnding, reason: str) -> None:
        super().__init__(reason)
        self.ending = ending
        self.reason = reason


@workflow.defn(name=wire.MARKET_TASK, failure_exception_types=BUGS)
class MarketTask(Intake):
    """Open, await bids, award, execute, check, settle."""

    @workflow.init
    def __init__(self, request: TaskRequest, carried: TaskState | None = None) -> None:
        self._state: TaskState = carried or TaskState(request=request)
        super().__init__()

    # ---- the story

    @workflow.run
    async def run(self, request: TaskRequest, carried: TaskState | None = None) -> TaskStatus:
        try:
            await uncancelled(self._story(), self._state)
        except TaskOver as over:
            await self._settle(over.ending, over.reason)
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
            if state.award.house:
                await self._work_in_house()
            else:
                await self._wait_for_the_executor()

    async def _open(self) -> None:
        state = self._state
        if state.briefing is None:
            opening = TaskOpening(
                request=state.request, run_id=workflow.info().first_execution_run_id, at=workflow.now()
            )
            state.briefing = await call(TaskActivities.open_task, opening)
            state.award, state.awarded_at = state.known.award, workflow.now()
        if state.known.duplicate:
            raise ApplicationError(f"expected a new task, but {state.request.task_id} has been done", type="duplicate")
        if state.known.refusal:
            raise TaskOver(TaskEnding.REFUSED, state.known.refusal)
        if not state.known.agents and state.award is None:
            raise TaskOver(TaskEnding.NO_BIDS, "no agent is there that could do it")

    async def _await_bids(self) -> None:
        state = self._state
        if state.award is not None or state.bids_closed:
            return
        self._enter(TaskPhase.BIDDING, state.known.bid_window_s)
        await self._until(self._bids_complete, "bids close")
        state.bids_closed = True
        if not state.bids:
            raise TaskOver(TaskEnding.NO_BIDS, "nobody bid on the task")

    async def _award(self) -> None:
        """Give the task to the best bid that is left, as soon as its agent has room for it."""
        state = self._state
        if state.award is not None:
            return
        left = tuple(bid for bid in state.bids.values() if bid.agent_id not in state.missed)
        if not left or len(state.missed) >= state.known.most_awards:
            if not state.missed:
                raise TaskOver(TaskEnding.NO_BIDS, "no bidder is left whose key is in force")
            raise TaskOver(TaskEnding.NO_RESULT, f"{', '.join(state.missed)} handed in nothing in time")
        self._enter(TaskPhase.AWARDING, state.known.award_window_s)
        order = AwardOrder(
            request=state.request,
            bids=left,
            price=state.known.price,
            at=workflow.now(),
            result_window_s=state.known.result_window_s,
            house=state.known.house,
        )
        award = await self._poll(start(TaskActivities.award_task, order, summary=f"award to one of {len(left)}"))
        if award is None:
            raise TaskOver(TaskEnding.NO_BIDS, "no bidder had room for the task, or all have been suspended")
        state.award, state.awarded_at, state.heard_at = award, workflow.now(), None
        self._note(f"awarded to {award.agent_id} for {award.price} credits: {award.reason}")

    async def _work_in_house(self) -> None:
        """The platform does the work in the winner's name; what does it also settles it, in one go."""
        state = self._state
        assert state.award is not None
        self._enter(TaskPhase.EXECUTING)
        order = WorkOrder(request=state.request, award=state.award)
        state.settlement = await self._poll(self._work(TaskWork.execute, order))

    async def _wait_for_the_executor(self) -> None:
        """The winner's own executor has it: it beats, and hands in before the deadline; or the next one gets it."""
        state = self._state
        assert state.award is not None
        self._enter(TaskPhase.EXECUTING, state.known.result_window_s)
        state.heard_at = state.heard_at or workflow.now()
        while state.result is None and workflow.now() < self._silent_at:
            await self._until(lambda: state.result is not None, "result due", lambda: self._silent_at)
        if state.result is None:
            await self._pass_on_the_award()
            return
        result, doubt = state.result, await self._check(state.result)
        if result.failure is not None or doubt is not None:
            failure = result.failure or FailureKind.INVALID_RESULT
            await self._settle(TaskEnding.FAILED, doubt or f"{failure}: {result.summary}"[:2_000], failure)
        else:
            await self._settle(TaskEnding.DONE, f"done by {state.award.agent_id}")

    # ---- steps of the story

    async def _check(self, result: WorkResult) -> str | None:
        """Some of what is handed in is done again in house; nobody outside knows which."""
        state = self._state
        if result.failure is not None or workflow.random().random() >= state.known.check_share:
            return None
        doubt: str | None = await self._work(TaskWork.check, state.request, result, summary="do it again, to compare")
        self._note(doubt or "done again in house, with the same result")
        return doubt

    async def _pass_on_the_award(self) -> None:
        state, award = self._state, self._state.award
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
        state.award, state.deadline = None, None

    async def _settle(self, ending: TaskEnding, reason: str, failure: FailureKind | None = None) -> None:
        """Settle what was not done in house. Who has the award answers only for what it handed in."""
        state, result = self._state, self._state.result
        done, answered = ending is TaskEnding.DONE, ending in (TaskEnding.DONE, TaskEnding.FAILED)
        began = state.awarded_at or workflow.now()
        settlement = Settlement(
            request=state.request,
            ending=ending,
            reason=reason,
            started_at=began,
            at=workflow.now(),
            duration_s=(workflow.now() - began).total_seconds() if answered else 0.0,
            agent_id=state.award.agent_id if state.award and answered else None,
            price=state.award.price if state.award and done else 0,
            failure=FailureKind.LOST if ending is TaskEnding.NO_RESULT else failure,
            quality=result.quality if result and done else None,
            summary=result.summary if result and answered else "",
            details=result.details if result and answered else {},
        )
        self._enter(TaskPhase.SETTLING)
        # What stands may be another: the work may have been settled while a person aborted it.
        state.settlement = await call(TaskActivities.settle_task, settlement, summary=f"{ending.value}: settle")

    def _work(
        self, activity: Callable[..., Any], *args: Any, summary: str | None = None
    ) -> workflow.ActivityHandle[Any]:
        """Work takes the processor: it runs on workers, and on a queue, of its own."""
        return workflow.start_activity_method(
            activity,
            args=args,
            task_queue=f"{workflow.info().task_queue}-tasks",
            start_to_close_timeout=LONGEST_WORK,
            heartbeat_timeout=DEAD_AFTER,
            retry_policy=PATIENT,
            summary=summary,
        )

    # ---- messages: the same names as a cycle's, and what an executor outside says

    heartbeat, heartbeat_signal = heard(wire.HEARTBEAT, Heartbeat, "The executor is at work.")
    submit_result, submit_result_signal = heard(
        wire.SUBMIT_RESULT, WorkResult, "Hand in the result of the awarded task."
    )

    @workflow.update(name=wire.ABORT, description="End the task, as a person.")
    async def abort(self, act: Act) -> Receipt:
        self._state.abort = self._state.abort or act
        return receipts.add(self._state, wire.ABORT, act.who, act.message_id, None)

    @abort.validator
    def _check_abort(self, act: Act) -> None:
        if self._state.phase in (TaskPhase.SETTLING, TaskPhase.ENDED):
            raise ApplicationError("expected a task that has not ended, but this one is settled", type=wire.ABORT)

    @workflow.query(name=wire.STATUS, description="Where the task stands.")
    def status(self) -> TaskStatus:
        state = self._state
        return TaskStatus(
            workflow_id=workflow.info().workflow_id,
            request=state.request,
            phase=state.phase,
            deadline=state.deadline,
            price=state.briefing.price if state.briefing else 0,
            bids=tuple(state.bids.values()),
            award=state.award,
            missed=tuple(state.missed),
            progress=state.progress,
            settlement=state.settlement,
            agents=state.briefing.agents if state.briefing and state.phase is TaskPhase.BIDDING else (),
            story=tuple(state.story),
            refused=state.refused,
            unread=state.unread,
            house=state.briefing.house if state.briefing else False,
        )

    def _accept(self, word: AgentMessage) -> None:
        state = self._state
        state.heard_at = workflow.now()
        match word:
            case Bid():
                state.bids[word.agent_id] = word
            case Heartbeat():
                state.progress = word.progress
            case WorkResult():
                state.result = word
            case _:
                raise ValueError(f"expected a bid, a heartbeat or a result, but {type(word).__name__} came")

    @property
    def _hears(self) -> bool:
        return self._state.phase in (TaskPhase.BIDDING, TaskPhase.AWARDING, TaskPhase.EXECUTING)

    def _go_by(self, keys: dict[str, str]) -> None:
        """What is taken stands, but the task is not awarded to who has lost its key; who has it falls silent."""
        state = self._state
        state.keys = keys
        state.bids = {name: bid for name, bid in state.bids.items() if keys.get(name) != identity.REVOKED}

    def _forgery(self, kind: str, word: AgentMessage) -> str | None:
        info, known = workflow.info(), self._state.known
        key = identity.key_of(word.agent_id, known.agents, self._state.keys)
        run_id = info.first_execution_run_id
        return identity.refusal(word, info.workflow_id, run_id, kind, key, known.unsigned_agents)

    def _refusal(self, word: AgentMessage) -> str | None:
        """Why what an agent sent cannot be taken now, or None."""
        state, stands = self._state, f"but {self._state.request.task_id} is in phase {self._state.phase.value}"
        if isinstance(word, Bid):
            if state.phase is not TaskPhase.BIDDING or state.bids_closed:
                return f"expected a task that awaits bids, {stands}"
            if word.agent_id in state.bids:
                return f"expected one bid of {word.agent_id}, but it has bid already"
            return bidding.refusal(word, {a.agent_id: a for a in state.known.agents}, state.known.price)
        if state.phase is not TaskPhase.EXECUTING or state.award is None or state.award.house:
            return f"expected a task that an executor outside is at, {stands}"
        if word.agent_id != state.award.agent_id:
            return f"expected a word of {state.award.agent_id}, who has the award, but {word.agent_id} sent one"
        if state.result is not None:
            return f"expected one result of {word.agent_id}, but it has handed in already"
        return None

    # ---- waiting

    def _bids_complete(self) -> bool:
        """Whether every agent that may bid has done so."""
        return all(a.suspended or a.agent_id in self._state.bids for a in self._state.known.agents)

    @property
    def _silent_at(self) -> datetime:
        """When the executor outside has been silent for too long, or has run out of time."""
        state = self._state
        assert state.deadline is not None
        assert state.heard_at is not None
        return min(state.deadline, state.heard_at + timedelta(seconds=state.known.heartbeat_s))

    async def _until(
        self, condition: Callable[[], bool], summary: str, until: Callable[[], datetime] | None = None
    ) -> None:
        """Wait for a condition, or the deadline, or a person who aborts."""
        state = self._state
        while state.abort is None and not condition():
            at, nudges = until() if until else state.deadline, self._nudges
            if at is not None and workflow.now() >= at:
                return
            with suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda seen=nudges: (
                        condition()  # type: ignore[misc]
                        or state.abort is not None
                        or self._nudges != seen
                        or workflow.info().is_continue_as_new_suggested()
                    ),
                    timeout=at - workflow.now() if at is not None else None,
                    timeout_summary=summary,
                )
            if workflow.info().is_continue_as_new_suggested() and not condition():
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(args=[state.request, state])
        if state.abort is not None:
            raise TaskOver(TaskEnding.ABORTED, f"{state.abort.who}: {state.abort.why}")

    async def _poll(self, handle: workflow.ActivityHandle[Any]) -> Any:
        """An activity's result, or None at the deadline."""
        return (await poll(handle, self._until, "the activity"))[1]

    def _enter(self, phase: TaskPhase, window_s: float | None = None) -> None:
        """Open a phase; a task that continues as new is in it already and keeps its deadline."""
        state = self._state
        if state.phase is phase and state.deadline is not None:
            return
        state.phase = phase
        state.deadline = workflow.now() + timedelta(seconds=window_s) if window_s is not None else None
        # A direct task is listed once, when it has ended: nobody waits for its phases.
        if phase is TaskPhase.ENDED or state.known.award is None:
            shown = {wire.PHASE: phase.value}
            if state.award is not None:
                shown[wire.AGENT] = state.award.agent_id
            if phase is TaskPhase.ENDED and state.settlement is not None:
                shown[wire.OUTCOME] = state.settlement.ending.value
            workflow.upsert_search_attributes(
                [SearchAttributeKey.for_keyword(name).value_set(value) for name, value in shown.items()]
            )
        self._show()

    def _note(self, line: str) -> None:
        self._state.story.append(f"{workflow.now():%H:%M:%S} {line}")
        self._show()

    def _show(self) -> None:
        state = self._state
        lines = [f"**{state.request.task_type}** {state.request.task_id}: {state.phase.value}", *state.story]
        if state.settlement is not None:
            lines.append(f"**{state.settlement.ending.value}**: {state.settlement.reason}")
        workflow.set_current_details("\n\n".join(lines))
