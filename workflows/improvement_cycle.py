"""The improvement cycle: one workflow from an anomaly to a promoted fix, or to an honest other ending.

It asks activities for facts, rules for decisions, and activities to record them. Whatever an agent or a person sends is
accepted or refused by the window that is open; no message can stop the cycle. Every wait has a deadline and every
ending is in the ledger. The workflow id is the lock: one cycle at a time is about one subject.
"""

from datetime import datetime, timedelta
from typing import Any, assert_never, get_args

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.experiment import ExperimentActivities
    from activities.market import MarketActivities
    from activities.proposals import ProposalActivities
    from workflows.page import render

from rules import bidding, rewards
from rules import design as designs
from schema import wire
from schema.messages.base import AgentMessage, format_value
from schema.messages.cycle import (
    CycleOpening,
    CycleRequest,
    CycleResult,
    CycleState,
    CycleStatus,
    Ending,
    Phase,
    VoteRecord,
)
from schema.messages.experiment import Decision, EvaluationRequest, ExperimentDesign, Promotion, Purpose, Reading
from schema.messages.market import Award, AwardResult, RankedBid, Standing
from schema.messages.platform import Aim, Mode
from schema.messages.proposals import Ballot, Decline, Proposal
from workflows import windows
from workflows.calls import BUGS, call
from workflows.intake import message_handlers, opened_with
from workflows.shell import StoryOver
from workflows.steering import Steering


@workflow.defn(name=wire.IMPROVEMENT_CYCLE, failure_exception_types=BUGS)
class ImprovementCycle(Steering):
    """Detect, open a meta-task, await bids, collect a proposal, wait for votes, experiment, promote, watch."""

    _state: CycleState
    _updates = wire.UPDATES_OF_CYCLE

    @workflow.init
    def __init__(self, request: CycleRequest, carried: CycleState | None = None) -> None:
        self._state, self.start_error = opened_with(CycleRequest, CycleState, request, carried)
        super().__init__()

    # ---- the story

    @workflow.run
    async def run(self, request: CycleRequest, carried: CycleState | None = None) -> CycleResult:
        try:
            await self._run_to_its_end(self._story())
            over = StoryOver(Ending.PROMOTED, "promoted, and the watch found no harm")
        except StoryOver as early:
            over = early
        await self._end(over)
        return CycleResult(status=self.status(), end=self._state.end, page=self._page())

    async def _story(self) -> None:
        await self._open_meta_task()
        await self._await_bids()
        await self._collect_proposal()
        await self._wait_for_votes()
        await self._run_experiment()
        await self._promote_the_winner()
        await self._watch_it()

    async def _open_meta_task(self) -> None:
        """Ends here where this request has had its cycle: events are delivered at least once."""
        state = self._state
        if state.opened is not None:
            return
        info = workflow.info()
        self._list({wire.METRIC: self._metric})
        opening = CycleOpening(
            request=state.request, workflow_id=info.workflow_id, run_id=info.first_execution_run_id, at=workflow.now()
        )
        state.opened = await call(MarketActivities.open_meta_task, opening, summary="open the meta-task")
        if state.briefing.duplicate:
            self._note(f"this request has had its cycle, {state.briefing.cycle_id}")
            raise StoryOver(Ending.ABORTED, "a duplicate")
        if state.request.anomaly is not None:
            self._note(state.request.anomaly.reason)

    async def _await_bids(self) -> None:
        state = self._state
        if state.ranked is not None or state.proposal is not None:
            return
        if state.request.proposal is not None:
            self._adopt(state.request.proposal)
            return
        self._refuse_hopeless()
        self._enter(Phase.BIDDING, state.briefing.rules.bid_window_s)
        await self._until(lambda: windows.bids_complete(state), "bids close")
        if not state.bids:
            raise StoryOver(*windows.ending_without_bids(state))
        agents = {agent.agent_id: agent for agent in state.briefing.agents}
        bids = tuple(state.bids.values())
        state.ranked = list(bidding.rank(state.briefing.cycle_id, bids, agents, state.briefing.rules.reward))
        best = state.ranked[0]
        self._note(f"{len(bids)} bids; best is {best.bid.agent_id} ({best.score:.2f}: {best.reason})")

    async def _collect_proposal(self) -> None:
        """Award to the best bid; an agent that misses the deadline loses standing, and the next bid is awarded."""
        state = self._state
        while state.proposal is None:
            if not state.ranked:
                raise StoryOver(Ending.NO_PROPOSAL, f"none of {len(state.bids)} bidders handed in a proposal in time")
            if state.award is None:
                await self._award_to(state.ranked[0])
            self._enter(Phase.PROPOSING, state.briefing.rules.proposal_window_s)
            await self._until(lambda: state.proposal is not None, "proposal due")
            if state.proposal is None:
                await self._pass_on_the_award()
            else:
                self._introduce(state.proposal)

    async def _wait_for_votes(self) -> None:
        """Freeze the electorate, count its ballots until they decide, and record the vote."""
        state = self._state
        if state.voted:
            return
        cycle_id = state.briefing.cycle_id
        if state.electorate is None:
            state.electorate = await call(
                ProposalActivities.open_vote, cycle_id, state.proposed, workflow.now(), summary="freeze the electorate"
            )
            state.tally = windows.tally(state)

        self._enter(Phase.VOTING, state.briefing.rules.voting_window_s)
        await self._until(lambda: state.counted.decided, "voting closes")
        tally = state.counted
        record = VoteRecord(
            cycle_id=cycle_id,
            proposal_id=state.proposed.proposal_id,
            ballots=tuple(state.ballots.values()),
            tally=tally,
            at=workflow.now(),
        )
        await call(ProposalActivities.record_vote, record, summary="record the vote")
        state.voted = True
        self._note(f"vote: {tally.approve} for, {tally.reject} against, {tally.abstain} abstained; {tally.reason}")
        if not tally.accepted:
            raise StoryOver(Ending.REJECTED, tally.reason)

    async def _run_experiment(self) -> None:
        state = self._state
        if state.reading is not None:
            return
        if state.design is None:
            state.design = designs.experiment(state.briefing, state.proposed, self._metric)
            state.exposure = state.design.exposure
        if not state.registered:
            await self._await_its_turn(state.design)
        self._enter(Phase.EXPERIMENT, state.briefing.rules.experiment_window_s)
        summary = f"half the tasks get {format_value(state.design.treatment)}"
        _, reading = await self._await_verdict(EvaluationRequest(design=state.design), summary)
        await self._conclude(state.design, reading)

    async def _promote_the_winner(self) -> None:
        """Give production the treatment, once its parameter is thawed; after a person approved, where one must."""
        state = self._state
        if state.promotion is not None:
            return
        if state.parameter.mode is Mode.RECOMMEND:
            await self._await_approval()

        design = state.designed
        self._enter(Phase.PROMOTING, state.briefing.rules.approval_window_s)
        thawed, _ = await self._poll(ExperimentActivities.await_thaw, design.parameter, summary="wait for its thaw")
        if not thawed:
            raise StoryOver(Ending.ESCALATED, f"the evidence is for the change, but {design.parameter} stayed frozen")

        value = format_value(design.treatment)
        promotion = self._swap(design.base_version, design.treatment, state.verdict.reason)
        watch = designs.watch(design, state.briefing.rules.holdback_share)
        state.promotion = await call(
            ExperimentActivities.promote, promotion, watch, workflow.now(), summary=f"promote {value}"
        )
        if not state.promotion.swapped:
            raise StoryOver(Ending.INVALID, f"stale: {state.promotion.reason}")
        self._note(f"{design.parameter} is {value} in production (version {state.promotion.version})")

    async def _watch_it(self) -> None:
        state = self._state
        watch = designs.watch(state.designed, state.briefing.rules.holdback_share)
        self._enter(Phase.WATCHING, state.briefing.rules.bake_window_s)
        try:
            request = EvaluationRequest(design=watch, purpose=Purpose.WATCH)
            ended_early, state.watch = await self._await_verdict(request, "watch for harm")
        except StoryOver as over:
            if state.veto is not None:
                await self._roll_back(over.reason)
            raise
        if designs.breaks_something(watch, state.watch):
            await self._roll_back(state.watch.reason)
        if ended_early:
            raise StoryOver(Ending.ROLLED_BACK, f"a person rolled {watch.parameter} back while it was watched")

    async def _end(self, over: StoryOver) -> None:
        if not self._state.briefing.duplicate:
            await self._record_the_ending(Ending(over.ending), over.reason)
        self._enter(Phase.ENDED)
        # The page is a query and needs a live worker; the memo stays.
        workflow.upsert_memo({"page": self._page().splitlines()})
        await workflow.wait_condition(workflow.all_handlers_finished)

    async def _record_the_ending(self, ending: Ending, reason: str) -> None:
        state = self._state
        state.end = rewards.settle(state, ending, reason, workflow.now())
        await call(MarketActivities.end_cycle, state.end, summary=f"{ending.value}: write the ledger, settle")
        self._list({wire.OUTCOME: ending.value})
        self._note(f"{ending.value}: {reason}")

    # ---- steps of the story

    def _refuse_hopeless(self) -> None:
        briefing, anomaly = self._state.briefing, self._state.request.anomaly
        if briefing.failed_attempts >= briefing.rules.attempts_before_escalation:
            raise StoryOver(Ending.ESCALATED, f"{briefing.failed_attempts} attempts in a row promoted nothing")
        if not briefing.baseline.tasks:
            raise StoryOver(Ending.ESCALATED, "no outcome was recorded since the onset, so nothing could be judged")
        if anomaly is not None and anomaly.metric in get_args(Aim) and anomaly.task_type not in briefing.objectives:
            raise StoryOver(Ending.ESCALATED, f"nothing before the onset shows what {anomaly.metric} should be")

    def _adopt(self, proposal: Proposal) -> None:
        """An agent opened the cycle with a proposal of its own: the same bounds apply."""
        if (refusal := windows.out_of_bounds(self._state, proposal)) is not None:
            raise StoryOver(Ending.INVALID, refusal)
        if all(proposal.agent_id != agent.agent_id for agent in self._state.briefing.agents):
            raise StoryOver(Ending.INVALID, f"expected a registered agent, but {proposal.agent_id} proposed")
        self._refuse_hopeless()
        self._state.proposal = proposal
        self._introduce(proposal)

    def _introduce(self, proposal: Proposal) -> None:
        self._list({wire.PARAMETER: proposal.parameter})
        change = f"{proposal.parameter} {format_value(self._state.parameter.value)} -> {format_value(proposal.value)}"
        self._note(
            f"{proposal.agent_id} proposes {change} (predicts {proposal.predicted_rate:.0%}): {proposal.root_cause}"
        )

    async def _award_to(self, candidate: RankedBid) -> None:
        state = self._state
        award = Award(
            cycle_id=state.briefing.cycle_id,
            agent_id=candidate.bid.agent_id,
            price=candidate.bid.price,
            score=candidate.score,
            reason=candidate.reason,
            deadline=workflow.now() + timedelta(seconds=state.briefing.rules.proposal_window_s),
        )
        await call(MarketActivities.record_award, award, workflow.now(), summary=f"award to {award.agent_id}")
        state.award = award
        self._note(f"awarded to {award.agent_id} for {award.price} credits")

    async def _pass_on_the_award(self) -> None:
        state = self._state
        assert state.award is not None
        assert state.ranked is not None
        missed = Standing(
            cycle_id=state.briefing.cycle_id,
            agent_id=state.award.agent_id,
            result=AwardResult.MISSED,
            at=workflow.now(),
            penalty=rewards.missed_penalty(state.award.price),
        )
        await call(MarketActivities.record_missed_award, missed, summary=f"{missed.agent_id} missed its deadline")
        self._note(f"{missed.agent_id} missed its deadline")
        # Without a deadline, the next award opens a window of its own.
        state.award, state.deadline, state.ranked = None, None, state.ranked[1:]

    async def _await_its_turn(self, design: ExperimentDesign) -> None:
        """Register the design once no other experiment holds its task types."""
        state = self._state
        self._enter(Phase.QUEUED, state.briefing.rules.experiment_window_s)
        now = workflow.now()
        is_open, stale = await self._poll(
            ExperimentActivities.open_experiment, design, now, summary="register the design", even_on_hold=True
        )
        if not is_open:
            raise StoryOver(Ending.INCONCLUSIVE, "other experiments held its task types until its time ran out")
        if stale is not None:
            raise StoryOver(Ending.INVALID, f"stale: {stale}")
        state.registered = True
        await self._hold_if_paused(design)

    async def _hold_if_paused(self, design: ExperimentDesign) -> None:
        """Hold an experiment whose turn came during a pause; the pause may end while that is being written."""
        state, recorded_hold = self._state, False
        while recorded_hold != self._on_hold:
            recorded_hold = self._on_hold
            await call(ExperimentActivities.expose, design.experiment_id, state.exposure, recorded_hold, summary="hold")
        if self._on_hold:
            state.paused_at = workflow.now()  # the time in the queue is no time of the experiment's

    async def _await_verdict(self, request: EvaluationRequest, summary: str) -> tuple[bool, Reading]:
        """(True, the verdict), or (False, what is known at the deadline)."""
        is_settled, reading = await self._poll(ExperimentActivities.await_verdict, request, summary=summary)
        if not is_settled:
            reading = await call(
                ExperimentActivities.read_experiment, request, workflow.now(), summary="evaluate at the deadline"
            )
        return is_settled, reading

    async def _conclude(self, design: ExperimentDesign, reading: Reading) -> None:
        """Record the verdict; only evidence for the change lets the story go on."""
        await call(ExperimentActivities.conclude_experiment, design, reading, summary="record the verdict")
        self._state.reading = reading
        self._note(reading.reason)
        match reading.decision:
            case Decision.PROMOTE:
                return
            case Decision.FUTILE | Decision.HARMFUL | Decision.INCONCLUSIVE | Decision.INVALID:
                raise StoryOver(Ending(reading.decision.value), reading.reason)
            case Decision.CONTINUE:
                raise StoryOver(Ending.INCONCLUSIVE, f"undecided when it was stopped: {reading.reason}")
        assert_never(reading.decision)

    async def _roll_back(self, reason: str) -> None:
        design = self._state.designed
        back = self._swap(design.base_version + 1, design.control, reason)
        swap = await call(
            ExperimentActivities.roll_back, back, workflow.now(), summary=f"roll back to {format_value(design.control)}"
        )
        if not swap.swapped:
            raise StoryOver(Ending.ESCALATED, f"{reason}, but not rolled back: {swap.reason}")
        raise StoryOver(Ending.ROLLED_BACK, reason)

    async def _await_approval(self) -> None:
        state = self._state
        self._enter(Phase.APPROVAL, state.briefing.rules.approval_window_s)
        await self._until(lambda: state.approval is not None, "a person promotes")
        if state.approval is None:
            raise StoryOver(Ending.ESCALATED, "the evidence is for the change, but no person promoted it in time")

    def _swap(self, expected_version: int, value: Any, reason: str) -> Promotion:
        return Promotion(
            cycle_id=self._state.briefing.cycle_id,
            parameter=self._state.designed.parameter,
            expected_version=expected_version,
            value=value,
            reason=reason,
        )

    # ---- messages: each is one line onto the window that is open

    decline, decline_signal = message_handlers(wire.DECLINE, Decline, "Say that nothing is worth trying, and why.")
    submit_proposal, submit_proposal_signal = message_handlers(
        wire.SUBMIT_PROPOSAL, Proposal, "Hand in the proposal that was awarded."
    )
    cast_ballot, cast_ballot_signal = message_handlers(wire.CAST_BALLOT, Ballot, "Vote on the open proposal.")

    @workflow.query(name=wire.STATUS, description="Where the cycle stands.")
    def status(self) -> CycleStatus:
        info, state = workflow.info(), self._state
        fields = dict(state) | {"receipts": {}}
        if state.opened is not None:
            fields["opened"] = state.opened.model_copy(update={"agents": ()})
        return CycleStatus(workflow_id=info.workflow_id, run_id=info.first_execution_run_id, **fields)

    @property
    def _awaits_messages(self) -> bool:
        return not self._state.voted

    def _use_keys(self, keys: dict[str, str]) -> None:
        if changed := windows.use_keys(self._state, keys):
            self._note(f"keys have changed: {', '.join(changed)}")

    def _authentication_failure(self, kind: str, message: AgentMessage) -> str | None:
        info = workflow.info()
        # The workflow id is used again for the next attempt; the first run's id never is.
        return windows.authentication_failure(self._state, message, info.workflow_id, info.first_execution_run_id, kind)

    def _refusal(self, message: AgentMessage) -> str | None:
        return windows.refusal(self._state, message)

    def _accept(self, message: AgentMessage) -> None:
        windows.accept(self._state, message, workflow.now())
        self._show()

    # ---- what the shell asks

    @property
    def _due_at(self) -> datetime | None:
        return None if self._on_hold else self._state.deadline

    @property
    def _on_hold(self) -> bool:
        return self._state.paused_at is not None

    def _is_interrupted(self) -> bool:
        return self._state.veto is not None or super()._is_interrupted()

    def _raise_if_stopped(self) -> None:
        if (abort := self._state.abort) is not None:
            raise StoryOver(Ending.ABORTED, f"{abort.who}: {abort.why}")
        if (veto := self._state.veto) is not None:
            raise StoryOver(Ending.REJECTED, f"vetoed by {veto.who}: {veto.why}")

    def _entered(self) -> None:
        self._list({wire.PHASE: self._state.phase.value})

    def _page(self) -> str:
        return render(self.status())

    @property
    def _metric(self) -> str:
        anomaly = self._state.request.anomaly
        return anomaly.metric if anomaly else "success_rate"
