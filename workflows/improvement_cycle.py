"""The improvement cycle: one workflow from an anomaly to a promoted fix, or to an honest other ending.

It asks activities for facts, rules for decisions, and activities to record them. Whatever an agent or a person sends is
taken or refused by the window that is open; nothing anybody sends can stop the cycle. Every wait has a deadline and
every ending is in the ledger. The workflow id is the lock: one cycle at a time is about one subject.

Each step of the story fills in its product in the state and is not taken again where the product is there; so a cycle
that receives more messages than a history holds continues as new where it was.
"""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, get_args

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.experiment import ExperimentActivities
    from activities.market import MarketActivities
    from activities.proposals import ProposalActivities

from rules import bidding, rewards
from rules import design as designs
from schema import wire
from schema.messages.base import AgentMessage
from schema.messages.cycle import (
    Act,
    CycleEnd,
    CycleOpening,
    CycleRequest,
    CycleResult,
    CycleState,
    CycleStatus,
    Ending,
    Phase,
    Receipt,
    RecordedAct,
    VoteRecord,
)
from schema.messages.experiment import Look, Promotion, Purpose, Reading
from schema.messages.market import Award, AwardResult, RankedBid, Standing
from schema.messages.platform import Aim, Mode
from schema.messages.proposals import Ballot, Proposal
from workflows import receipts, windows
from workflows.calls import BUGS, call, poll, start, uncancelled
from workflows.intake import Intake, heard
from workflows.page import render


class CycleOver(Exception):
    """The story ends here. Not an error: every ending but the promotion is reached by it."""

    def __init__(self, ending: Ending, reason: str) -> None:
        super().__init__(reason)
        self.ending = ending
        self.reason = reason


def steered(kind: str, description: str) -> Any:
    """The update by which a person steers a cycle; it refuses before anything enters history."""

    @workflow.update(name=kind, description=description)
    async def update(self, act: Act) -> Receipt:  # type: ignore[no-untyped-def]
        receipt: Receipt = await self._act(kind, act)
        return receipt

    @update.validator
    def check(self, act: Act) -> None:  # type: ignore[no-untyped-def]
        self._refuse_bad_act(kind, act)

    return update


@workflow.defn(name=wire.IMPROVEMENT_CYCLE, failure_exception_types=BUGS)
class ImprovementCycle(Intake):
    """Detect, open a meta-task, await bids, collect a proposal, wait for votes, experiment, promote, watch."""

    @workflow.init
    def __init__(self, request: CycleRequest, carried: CycleState | None = None) -> None:
        self._state: CycleState = carried or CycleState(request=request)
        super().__init__()

    # ---- the story

    @workflow.run
    async def run(self, request: CycleRequest, carried: CycleState | None = None) -> CycleResult:
        async def story() -> None:
            await self._open_meta_task()
            await self._await_bids()
            await self._collect_proposal()
            await self._wait_for_votes()
            await self._run_experiment()
            await self._promote_the_winner()
            await self._watch_it()

        return await self._tell(story())

    async def _tell(self, story: Coroutine[Any, Any, None]) -> CycleResult:
        """Tell the story to its end, whichever it is, and write that to the ledger."""
        try:
            # A step that is being recorded is not torn: the story hears of a cancellation at its next wait.
            await uncancelled(story, self._state)
            over = CycleOver(Ending.PROMOTED, "promoted, and the watch found no harm")
        except CycleOver as early:
            over = early
        if not self._state.known.duplicate:
            await self._write_the_ledger(over)
        self._enter(Phase.ENDED)
        # The page is a query and needs a live worker; the memo stays.
        workflow.upsert_memo({"page": self._page().splitlines()})
        await workflow.wait_condition(workflow.all_handlers_finished)
        return CycleResult(status=self.status(), end=self._state.end, page=self._page())

    async def _open_meta_task(self) -> None:
        """Ends here where this request has had its cycle: events are delivered at least once."""
        state, info = self._state, workflow.info()
        if state.briefing is None:
            self._upsert(wire.METRIC, self._metric)
            opening = CycleOpening(
                request=state.request,
                workflow_id=info.workflow_id,
                run_id=info.first_execution_run_id,
                at=workflow.now(),
            )
            state.briefing = await call(MarketActivities.open_meta_task, opening, summary="open the meta-task")
            if state.known.duplicate:
                self._note("this request has had its cycle")
                raise CycleOver(Ending.ABORTED, "a duplicate")
            if state.request.anomaly is not None:
                self._note(state.request.anomaly.reason)

    async def _await_bids(self) -> None:
        state = self._state
        if state.ranked is not None or state.proposal is not None:
            return
        self._refuse_hopeless()
        if state.request.proposal is not None:
            self._adopt(state.request.proposal)
            return
        self._enter(Phase.BIDDING, state.known.rules.bid_window_s)
        await self._until(lambda: windows.bids_complete(state), "bids close")
        if not state.bids:
            raise CycleOver(Ending.NO_BIDS, "nobody bid on the meta-task")
        agents = {agent.agent_id: agent for agent in state.known.agents}
        ranked = bidding.rank(state.known.cycle_id, tuple(state.bids.values()), agents, state.known.rules.reward)
        state.ranked = list(ranked)
        self._note(f"{len(ranked)} bids; best is {ranked[0].bid.agent_id} ({ranked[0].score:.2f}: {ranked[0].reason})")

    async def _collect_proposal(self) -> None:
        """Award to the best bid; who misses the deadline loses standing and the next one is awarded."""
        state = self._state
        while state.proposal is None:
            if not state.ranked:
                raise CycleOver(Ending.NO_PROPOSAL, f"none of {len(state.bids)} bidders handed in a proposal in time")
            if state.award is None:
                await self._award_to(state.ranked[0])
            self._enter(Phase.PROPOSING, state.known.rules.proposal_window_s)
            await self._until(lambda: state.proposal is not None, "proposal due")
            if state.proposal is None:
                await self._pass_on_the_award()
            else:
                self._introduce(state.proposal)

    async def _wait_for_votes(self) -> None:
        state, rules = self._state, self._state.known.rules
        if state.tally is not None:
            return
        if state.electorate is None:
            state.electorate = await call(
                ProposalActivities.open_vote,
                state.known.cycle_id,
                state.proposed,
                workflow.now(),
                summary="freeze the electorate",
            )
        self._enter(Phase.VOTING, rules.voting_window_s)
        await self._until(lambda: windows.tally(state).decided, "voting closes")
        tally = windows.tally(state)
        record = VoteRecord(
            cycle_id=state.known.cycle_id,
            proposal_id=state.proposed.proposal_id,
            ballots=tuple(state.ballots.values()),
            tally=tally,
            at=workflow.now(),
        )
        await call(ProposalActivities.record_vote, record, summary="record the vote")
        state.tally = tally
        self._note(f"vote: {tally.approve} for, {tally.reject} against, {tally.abstain} abstained; {tally.reason}")
        if not tally.accepted:
            raise CycleOver(Ending.REJECTED, tally.reason)

    async def _run_experiment(self) -> None:
        state = self._state
        if state.reading is not None:
            return
        if state.design is None:
            state.design = designs.experiment(state.known, state.proposed, self._metric)
            state.exposure = state.design.exposure
        look = Look(design=state.design)
        if not state.registered:
            self._enter(Phase.QUEUED, state.known.rules.experiment_window_s)
            done, stale = await self._poll(
                ExperimentActivities.open_experiment,
                state.design,
                workflow.now(),
                summary="register the design",
                even_paused=True,
            )
            if not done:
                raise CycleOver(Ending.INCONCLUSIVE, "other experiments held its task types until its time ran out")
            if stale is not None:
                raise CycleOver(Ending.INVALID, f"stale: {stale}")
            state.registered = True
            held = False
            while held != (state.paused_at is not None):
                # Its turn came while a person holds the cycle, who may let it go on while that is being written.
                held = state.paused_at is not None
                await call(
                    ExperimentActivities.expose, state.design.experiment_id, state.exposure, held, summary="hold"
                )
            if state.paused_at is not None:
                state.paused_at = workflow.now()  # what it waited in the queue is no time of the experiment's
        self._enter(Phase.EXPERIMENT, state.known.rules.experiment_window_s)
        done, reading = await self._poll(
            ExperimentActivities.await_verdict, look, summary=f"half the tasks get {state.design.treatment}"
        )
        if not done:
            reading = await self._read_now(look)
        await self._learn(reading)

    async def _promote_the_winner(self) -> None:
        state, design = self._state, self._state.design
        if state.promotion is not None:
            return
        assert design is not None
        assert state.reading is not None
        if state.parameter.mode is Mode.RECOMMEND:
            await self._await_approval()
        self._enter(Phase.PROMOTING, state.known.rules.approval_window_s)
        thawed, _ = await self._poll(
            ExperimentActivities.await_thaw, design.parameter, summary="nobody keeps it frozen"
        )
        if not thawed:
            raise CycleOver(Ending.ESCALATED, f"the evidence is for the change, but {design.parameter} stayed frozen")
        promotion = Promotion(
            cycle_id=state.known.cycle_id,
            parameter=design.parameter,
            expected_version=design.base_version,
            value=design.treatment,
            reason=state.reading.reason,
        )
        watch = designs.watch(design, state.known.rules.holdback_share)
        state.promotion = await call(
            ExperimentActivities.promote, promotion, watch, workflow.now(), summary=f"promote {design.treatment}"
        )
        if not state.promotion.swapped:
            raise CycleOver(Ending.INVALID, f"stale: {state.promotion.reason}")
        self._note(f"{design.parameter} is {design.treatment} in production (version {state.promotion.version})")

    async def _watch_it(self) -> None:
        state, design = self._state, self._state.design
        assert design is not None
        watch = designs.watch(design, state.known.rules.holdback_share)
        look = Look(design=watch, purpose=Purpose.WATCH)
        self._enter(Phase.WATCHING, state.known.rules.bake_window_s)
        try:
            done, reading = await self._poll(ExperimentActivities.await_verdict, look, summary="watch for harm")
        except CycleOver as over:
            if state.veto is not None:
                await self._roll_back(over.reason)
            raise
        state.watch = reading if done else await self._read_now(look)
        broken = designs.breaks_something(watch, state.watch)
        # A history from before guardrails were heard here goes on as it did.
        if designs.is_harmful(watch, state.watch) or (broken and workflow.patched("guardrails-under-the-watch")):
            await self._roll_back(state.watch.reason)
        if done:
            raise CycleOver(Ending.ROLLED_BACK, f"a person rolled {design.parameter} back while it was watched")

    async def _write_the_ledger(self, over: CycleOver) -> None:
        state, proposal = self._state, self._state.proposal
        promoted = over.ending is Ending.PROMOTED
        design, watch = state.design, state.watch
        harmed = design is not None and watch is not None and designs.breaks_something(design, watch)
        reward = state.award.price if state.award else state.known.rules.reward
        state.end = CycleEnd(
            cycle_id=state.known.cycle_id,
            subject=state.request.subject,
            ending=over.ending,
            reason=over.reason,
            at=workflow.now(),
            agent_id=proposal.agent_id if proposal else None,
            result=rewards.result_of(over.ending) if proposal else None,
            reward=reward if promoted else 0,
            penalty=reward if over.ending is Ending.ROLLED_BACK and harmed else 0,
            proposal=proposal,
            tally=state.tally,
            reading=state.reading,
            watch=state.watch,
            bonus=rewards.improvement_bonus(state.reading, state.known.market.improvement_bonus) if promoted else 0,
            forecast=rewards.forecast_pay(state.design, state.reading, state.known.market.forecast_stake),
        )
        await call(MarketActivities.end_cycle, state.end, summary=f"{over.ending.value}: write the ledger, settle")
        self._upsert(wire.OUTCOME, over.ending.value)
        self._note(f"{over.ending.value}: {over.reason}")

    # ---- steps of the story

    def _refuse_hopeless(self) -> None:
        known = self._state.known
        if known.failed_attempts >= known.rules.attempts_before_escalation:
            raise CycleOver(Ending.ESCALATED, f"{known.failed_attempts} attempts in a row promoted nothing")
        if not known.baseline.tasks:
            raise CycleOver(Ending.ESCALATED, "no outcome was recorded since the onset, so no change could be judged")
        anomaly = self._state.request.anomaly
        if anomaly is not None and anomaly.metric in get_args(Aim) and anomaly.task_type not in known.objectives:
            raise CycleOver(Ending.ESCALATED, f"nothing before the onset tells what {anomaly.metric} should be")

    def _adopt(self, proposal: Proposal) -> None:
        """An agent opened the cycle with a proposal of its own: it is held to the same bounds."""
        if (refusal := windows.out_of_bounds(self._state, proposal)) is not None:
            raise CycleOver(Ending.INVALID, refusal)
        if all(proposal.agent_id != agent.agent_id for agent in self._state.known.agents):
            raise CycleOver(Ending.INVALID, f"expected a registered agent, but {proposal.agent_id} proposed")
        self._state.proposal = proposal
        self._introduce(proposal)

    def _introduce(self, proposal: Proposal) -> None:
        self._upsert(wire.PARAMETER, proposal.parameter)
        change = f"{proposal.parameter} {self._state.parameter.value} -> {proposal.value}"
        self._note(
            f"{proposal.agent_id} proposes {change} (predicts {proposal.predicted_rate:.0%}): {proposal.root_cause}"
        )

    async def _award_to(self, candidate: RankedBid) -> None:
        state = self._state
        award = Award(
            cycle_id=state.known.cycle_id,
            agent_id=candidate.bid.agent_id,
            price=candidate.bid.price,
            score=candidate.score,
            reason=candidate.reason,
            deadline=workflow.now() + timedelta(seconds=state.known.rules.proposal_window_s),
        )
        await call(MarketActivities.record_award, award, workflow.now(), summary=f"award to {award.agent_id}")
        state.award = award
        self._note(f"awarded to {award.agent_id} for {award.price} credits")

    async def _pass_on_the_award(self) -> None:
        state = self._state
        assert state.award is not None
        assert state.ranked is not None
        missed = Standing(
            cycle_id=state.known.cycle_id,
            agent_id=state.award.agent_id,
            result=AwardResult.MISSED,
            at=workflow.now(),
            penalty=rewards.missed_penalty(state.award.price),
        )
        await call(MarketActivities.record_missed_award, missed, summary=f"{missed.agent_id} missed its deadline")
        self._note(f"{missed.agent_id} missed its deadline")
        # Without a deadline, the next award opens a window of its own.
        state.award, state.deadline, state.ranked = None, None, state.ranked[1:]

    async def _learn(self, reading: Reading) -> None:
        """Record the verdict; only evidence for the change lets the story go on."""
        design = self._state.design
        assert design is not None
        await call(ExperimentActivities.conclude_experiment, design, reading, summary="record the verdict")
        self._state.reading = reading
        self._note(reading.reason)
        match reading.decision:
            case "promote":
                return
            case "futile" | "harmful" | "inconclusive" | "invalid":
                raise CycleOver(Ending(reading.decision), reading.reason)
            case "continue":
                raise CycleOver(Ending.INCONCLUSIVE, f"undecided when it was stopped: {reading.reason}")
        raise ValueError(f"expected a decision, but {reading.decision!r} came")

    async def _read_now(self, look: Look) -> Reading:
        reading: Reading = await call(
            ExperimentActivities.read_experiment, look, workflow.now(), summary="a last look at the deadline"
        )
        return reading

    async def _roll_back(self, reason: str) -> None:
        design = self._state.design
        assert design is not None
        back = Promotion(
            cycle_id=self._state.known.cycle_id,
            parameter=design.parameter,
            expected_version=design.base_version + 1,
            value=design.control,
            reason=reason,
        )
        swap = await call(
            ExperimentActivities.roll_back, back, workflow.now(), summary=f"roll back to {design.control}"
        )
        if not swap.swapped:
            raise CycleOver(Ending.ESCALATED, f"{reason}, but not rolled back: {swap.reason}")
        raise CycleOver(Ending.ROLLED_BACK, reason)

    async def _await_approval(self) -> None:
        state = self._state
        self._enter(Phase.APPROVAL, state.known.rules.approval_window_s)
        await self._until(lambda: state.approval is not None, "a person promotes")
        if state.approval is None:
            raise CycleOver(Ending.ESCALATED, "the evidence is for the change, but nobody promoted it in time")

    # ---- messages: each is one line onto the window that is open

    submit_proposal, submit_proposal_signal = heard(
        wire.SUBMIT_PROPOSAL, Proposal, "Hand in the proposal that was awarded."
    )
    cast_ballot, cast_ballot_signal = heard(wire.CAST_BALLOT, Ballot, "Vote on the open proposal.")
    pause = steered(wire.PAUSE, "Hold the cycle; its deadlines wait.")
    resume = steered(wire.RESUME, "Let a paused cycle go on.")
    abort = steered(wire.ABORT, "End the cycle.")
    veto = steered(wire.VETO, "Reject the proposal, whatever the vote or the evidence says.")
    extend = steered(wire.EXTEND, "Move the open deadline by some seconds.")
    promote = steered(wire.PROMOTE, "Promote what the evidence recommends (mode recommend).")
    widen = steered(wire.WIDEN, "Let a larger share of the tasks take part in the experiment.")

    @workflow.query(name=wire.STATUS, description="Where the cycle stands.")
    def status(self) -> CycleStatus:
        state = self._state
        voting = state.electorate is not None and state.tally is None
        return CycleStatus(
            workflow_id=workflow.info().workflow_id,
            cycle_id=state.briefing.cycle_id if state.briefing else "",
            subject=state.request.subject,
            phase=state.phase,
            attempt=state.briefing.attempt if state.briefing else 0,
            deadline=state.deadline,
            anomaly=state.request.anomaly,
            bids=tuple(state.bids.values()),
            award=state.award,
            proposal=state.proposal,
            ballots=tuple(state.ballots.values()),
            voters=tuple(voter.agent_id for voter in state.electorate.voters) if state.electorate else (),
            tally=windows.tally(state) if voting else state.tally,
            design=state.design,
            reading=state.reading,
            ending=state.end.ending if state.end else None,
            reason=state.end.reason if state.end else "",
            story=tuple(state.story),
            paused=state.paused_at is not None,
            refused=state.refused,
            unread=state.unread,
            baseline=state.briefing.baseline if state.briefing else None,
            minimum_effect=state.briefing.rules.minimum_effect if state.briefing else 0.05,
            reward=state.briefing.rules.reward if state.briefing else 100,
            watch=state.watch,
            objectives=state.briefing.objectives if state.briefing else {},
        )

    @property
    def _hears(self) -> bool:
        return self._state.tally is None

    def _go_by(self, keys: dict[str, str]) -> None:
        if changed := windows.heed(self._state, keys):
            self._note(f"keys have changed: {', '.join(changed)}")

    def _forgery(self, kind: str, word: AgentMessage) -> str | None:
        info = workflow.info()
        # The workflow id is used again for the next attempt; the first run's id never is.
        return windows.forgery(self._state, word, info.workflow_id, info.first_execution_run_id, kind)

    def _refusal(self, word: AgentMessage) -> str | None:
        return windows.refusal(self._state, word)

    def _accept(self, word: AgentMessage) -> None:
        windows.take(self._state, word, workflow.now())
        self._show()

    def _refuse_bad_act(self, kind: str, act: Act) -> None:
        if receipts.of(self._state, kind, act.who, act.message_id) is not None:
            return
        if (refusal := windows.act_refusal(self._state, kind, act)) is not None:
            raise ApplicationError(refusal, type=kind)

    async def _act(self, kind: str, act: Act) -> Receipt:
        """Do what a person asks, at once, and write it to the ledger before answering."""
        state = self._state
        if (known := receipts.of(state, kind, act.who, act.message_id)) is not None:
            return known
        refusal = windows.act_refusal(state, kind, act)
        receipt = receipts.add(state, kind, act.who, act.message_id, refusal)
        if refusal is None:
            windows.apply(state, kind, act, workflow.now())
            self._note(f"{act.who}: {kind} ({act.why})")
            recorded = RecordedAct(cycle_id=state.known.cycle_id, kind=kind, act=act, at=workflow.now())
            await call(MarketActivities.record_act, recorded, summary=f"{act.who}: {kind}")
            if state.phase is Phase.EXPERIMENT and state.design is not None:
                held = state.paused_at is not None
                await call(ExperimentActivities.expose, state.design.experiment_id, state.exposure, held, summary=kind)
        return receipt

    # ---- waiting

    async def _until(self, condition: Callable[[], bool], summary: str, even_paused: bool = False) -> None:
        """Wait for a condition or the deadline, which may move; then the window is closed.

        A pause lasts until somebody ends it, whatever comes meanwhile, but for a condition to be heard `even_paused`.
        """
        state = self._state

        def met() -> bool:
            return (even_paused or state.paused_at is None) and condition()

        while not met() and (state.paused_at is not None or workflow.now() < self._deadline):
            seen = (state.deadline, state.paused_at, self._nudges)
            left = None if state.paused_at is not None else self._deadline - workflow.now()
            with suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda s=seen: (
                        self._interrupted()  # type: ignore[misc]
                        or (state.deadline, state.paused_at, self._nudges) != s
                        or met()
                    ),
                    timeout=left,
                    timeout_summary=summary,
                )
            await self._heed()
        state.window_open = False

    async def _poll(
        self, activity: Callable[..., Any], *args: Any, summary: str, even_paused: bool = False
    ) -> tuple[bool, Any]:
        """Wait for an activity that reports when it is ready: (True, its result), or (False, None) at the deadline."""
        until = partial(self._until, even_paused=even_paused)
        return await poll(start(activity, *args, summary=summary), until, summary)

    def _interrupted(self) -> bool:
        state = self._state
        return state.abort is not None or state.veto is not None or workflow.info().is_continue_as_new_suggested()

    async def _heed(self) -> None:
        """What ends or interrupts every wait: a person's abort or veto, or a history that has grown long."""
        state = self._state
        if state.abort is not None:
            raise CycleOver(Ending.ABORTED, f"{state.abort.who}: {state.abort.why}")
        if state.veto is not None:
            raise CycleOver(Ending.REJECTED, f"vetoed by {state.veto.who}: {state.veto.why}")
        if workflow.info().is_continue_as_new_suggested():
            await workflow.wait_condition(workflow.all_handlers_finished)
            workflow.continue_as_new(args=[state.request, state])

    # ---- what everything above reads

    @property
    def _deadline(self) -> datetime:
        assert self._state.deadline is not None
        return self._state.deadline

    @property
    def _metric(self) -> str:
        return self._state.request.anomaly.metric if self._state.request.anomaly else "success_rate"

    def _enter(self, phase: Phase, window_s: float | None = None) -> None:
        """Open the window of a phase; a cycle that continues as new is in it already and keeps its deadline."""
        state = self._state
        if state.phase is not phase or state.deadline is None:
            state.phase, state.window_open = phase, window_s is not None
            state.deadline = workflow.now() + timedelta(seconds=window_s) if window_s is not None else None
            self._upsert(wire.PHASE, phase.value)
        self._show()

    def _note(self, line: str) -> None:
        self._state.story.append(f"{workflow.now():%H:%M:%S} {line}")
        workflow.logger.info("cycle.story", extra={"line": line})
        self._show()

    def _upsert(self, name: str, value: str) -> None:
        workflow.upsert_search_attributes([SearchAttributeKey.for_keyword(name).value_set(value)])

    def _show(self) -> None:
        workflow.set_current_details(self._page())

    def _page(self) -> str:
        return render(self.status())
