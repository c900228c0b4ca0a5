"""The improvement cycle: one workflow from an anomaly to a promoted fix, or to an honest other ending.

It asks activities for facts, rules for decisions, and activities to record them. Whatever an agent or a person sends is
taken or refused by the window that is open; nothing anybody sends can stop the cycle. Every wait has a deadline and
every ending is in the ledger. The workflow id is the lock: one cycle at a time is about one subject.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.experiment import ExperimentActivities
    from activities.market import MarketActivities
    from activities.proposals import ProposalActivities

from rules import bidding
from rules import design as designs
from rules.rewards import result_of
from schema import wire
from schema.messages.cycle import (
    Abort,
    Briefing,
    CycleEnd,
    CycleOpening,
    CycleRequest,
    CycleResult,
    CycleStatus,
    Ending,
    Phase,
    Receipt,
    VoteRecord,
)
from schema.messages.experiment import ExperimentDesign, Look, Promotion, PromotionResult, Purpose, Reading
from schema.messages.market import Award, AwardResult, Bid, RankedBid, Standing
from schema.messages.platform import ParameterState
from schema.messages.proposals import Ballot, Electorate, Proposal
from workflows.calls import call, start
from workflows.page import render
from workflows.receipts import Receipts
from workflows.windows import BallotBox, BidWindow, ProposalWindow, Window, proposal_refusal

Result = TypeVar("Result")
AgentWord = Bid | Proposal | Ballot


class CycleOver(Exception):
    """The story ends here. Not an error: every ending but the promotion is reached by it."""

    def __init__(self, ending: Ending, reason: str) -> None:
        super().__init__(reason)
        self.ending = ending
        self.reason = reason


@workflow.defn(name=wire.IMPROVEMENT_CYCLE, failure_exception_types=[Exception])
class ImprovementCycle:
    """Detect, open a meta-task, await bids, collect a proposal, wait for votes, experiment, promote, watch."""

    @workflow.init
    def __init__(self, request: CycleRequest) -> None:
        self._request = request
        self._task_type = request.anomaly.task_type if request.anomaly else ""
        self._phase = Phase.OPENING
        self._deadline: datetime | None = None
        self._receipts = Receipts()
        self._abort: Abort | None = None
        self._story: list[str] = []
        self._briefing: Briefing | None = None
        self._bid_window: BidWindow | None = None
        self._award: Award | None = None
        self._proposal_window: ProposalWindow | None = None
        self._proposal: Proposal | None = None
        self._ballot_box: BallotBox | None = None
        self._design: ExperimentDesign | None = None
        self._reading: Reading | None = None
        self._watch_reading: Reading | None = None
        self._end: CycleEnd | None = None

    # ---- the story

    @workflow.run
    async def run(self, request: CycleRequest) -> CycleResult:
        telling = asyncio.create_task(self._tell())
        while not telling.done():
            try:
                await asyncio.shield(telling)
            except asyncio.CancelledError:
                # `temporal workflow cancel` is a person who wants it to end: it ends in the ledger like all others.
                self._abort = Abort(message_id="temporal-cancel", who="temporal", why="the workflow was cancelled")
        await workflow.wait_condition(workflow.all_handlers_finished)
        return CycleResult(status=self.status(), end=self._end, page=self._page())

    async def _tell(self) -> None:
        if await self._open_meta_task():
            try:
                await self._await_bids_and_collect_proposal()
                await self._wait_for_votes()
                await self._run_experiment()
                await self._promote_the_winner()
                await self._watch_it()
                over = CycleOver(Ending.PROMOTED, "promoted, and the watch found no harm")
            except CycleOver as early:
                over = early
            await self._close(over)
        self._enter(Phase.ENDED)

    async def _open_meta_task(self) -> bool:
        """False where this request has had its cycle: events are delivered at least once."""
        info = workflow.info()
        self._upsert(wire.METRIC, self._metric)
        opening = CycleOpening(
            request=self._request, workflow_id=info.workflow_id, run_id=info.first_execution_run_id, at=workflow.now()
        )
        self._briefing = await call(MarketActivities.open_meta_task, opening, summary="open the meta-task")
        if self._known.duplicate:
            self._note("this request has had its cycle")
            return False
        if self._request.anomaly is not None:
            self._note(self._request.anomaly.reason)
        return True

    async def _await_bids_and_collect_proposal(self) -> None:
        rules = self._known.rules
        if self._known.failed_attempts >= rules.attempts_before_escalation:
            raise CycleOver(Ending.ESCALATED, f"{self._known.failed_attempts} attempts in a row promoted nothing")
        if not self._known.baseline.tasks:
            raise CycleOver(Ending.ESCALATED, "no outcome was recorded since the onset, so no change could be judged")
        if self._request.proposal is not None:
            self._adopt(self._request.proposal)
        else:
            await self._collect_proposal(await self._await_bids())

    async def _await_bids(self) -> tuple[RankedBid, ...]:
        window = BidWindow(self._known, self._in(self._known.rules.bid_window_s))
        self._bid_window = window
        self._enter(Phase.BIDDING, window.deadline)
        await self._until(window, lambda: window.complete, "bids close")
        if not window.bids:
            raise CycleOver(Ending.NO_BIDS, "nobody bid on the meta-task")
        agents = {agent.agent_id: agent for agent in self._known.agents}
        ranked = bidding.rank(self._known.cycle_id, tuple(window.bids.values()), agents, self._known.rules.reward)
        self._note(f"{len(ranked)} bids; best is {ranked[0].bid.agent_id} ({ranked[0].score:.2f}: {ranked[0].reason})")
        return ranked

    async def _collect_proposal(self, ranked: tuple[RankedBid, ...]) -> None:
        """Award to the best bid; who misses the deadline loses standing and the next one is awarded."""
        for candidate in ranked:
            award = await self._award_to(candidate)
            window = ProposalWindow(self._known, award, self._task_type)
            self._proposal_window = window
            self._enter(Phase.PROPOSING, window.deadline)
            await self._until(window, lambda w=window: w.proposal is not None, "proposal due")  # type: ignore[misc]
            if window.proposal is not None:
                self._accept(window.proposal)
                return
            await self._record_missed(award)
        raise CycleOver(Ending.NO_PROPOSAL, f"none of {len(ranked)} bidders handed in a proposal in time")

    async def _wait_for_votes(self) -> None:
        electorate: Electorate = await call(
            ProposalActivities.open_vote,
            self._known.cycle_id,
            self._proposed,
            workflow.now(),
            summary="freeze the electorate",
        )
        box = BallotBox(self._known, electorate, self._parameter.declaration.risk)
        self._ballot_box = box
        self._enter(Phase.VOTING, box.deadline)
        await self._until(box, lambda: box.tally.decided, "voting closes")
        tally = box.tally
        self._note(f"vote: {tally.approve} for, {tally.reject} against, {tally.abstain} abstained; {tally.reason}")
        record = VoteRecord(
            cycle_id=self._known.cycle_id,
            proposal_id=electorate.proposal_id,
            ballots=tuple(box.ballots.values()),
            tally=tally,
            at=workflow.now(),
        )
        await call(ProposalActivities.record_vote, record, summary="record the vote")
        if not tally.accepted:
            raise CycleOver(Ending.REJECTED, tally.reason)

    async def _run_experiment(self) -> None:
        design = designs.experiment(self._known, self._proposed, self._metric)
        until = self._in(self._known.rules.experiment_window_s)
        self._design = design
        self._enter(Phase.QUEUED, until)
        await self._poll(
            ExperimentActivities.open_experiment, design, workflow.now(), until=until, summary="register the design"
        )
        self._enter(Phase.EXPERIMENT, until)
        reading = await self._poll(
            ExperimentActivities.read_experiment,
            Look(design=design, until=until),
            summary="half the tasks on each value",
        )
        self._reading = reading
        self._note(reading.reason)
        await call(ExperimentActivities.conclude_experiment, design, reading, summary="record the verdict")
        match reading.decision:
            case "promote":
                return
            case "futile" | "harmful" | "inconclusive" | "invalid":
                raise CycleOver(Ending(reading.decision), reading.reason)
            case "continue":
                raise CycleOver(Ending.INCONCLUSIVE, f"undecided when its time ran out: {reading.reason}")
        raise ValueError(f"expected a decision, but {reading.decision!r} came")

    async def _promote_the_winner(self) -> None:
        design, reading = self._tested
        self._enter(Phase.PROMOTING)
        promotion = Promotion(
            cycle_id=self._known.cycle_id,
            parameter=design.parameter,
            expected_version=design.base_version,
            value=design.treatment,
            reason=reading.reason,
        )
        watch = designs.watch(design, self._known.rules.holdback_share)
        swap: PromotionResult = await call(
            ExperimentActivities.promote, promotion, watch, workflow.now(), summary=f"promote {design.treatment}"
        )
        if not swap.swapped:
            raise CycleOver(Ending.INVALID, f"stale: {swap.reason}")
        self._note(f"{design.parameter} is {design.treatment} in production (version {swap.version})")

    async def _watch_it(self) -> None:
        design, _ = self._tested
        until = self._in(self._known.rules.bake_window_s)
        self._enter(Phase.WATCHING, until)
        watch = designs.watch(design, self._known.rules.holdback_share)
        look = Look(design=watch, until=until, purpose=Purpose.WATCH)
        reading = await self._poll(ExperimentActivities.read_experiment, look, summary="watch for harm")
        self._watch_reading = reading
        if not designs.is_harmful(watch, reading):
            return
        back = Promotion(
            cycle_id=self._known.cycle_id,
            parameter=design.parameter,
            expected_version=design.base_version + 1,
            value=design.control,
            reason=reading.reason,
        )
        swap: PromotionResult = await call(
            ExperimentActivities.roll_back, back, workflow.now(), summary=f"roll back to {design.control}"
        )
        raise CycleOver(Ending.ROLLED_BACK, f"{reading.reason}; {swap.reason}" if not swap.swapped else reading.reason)

    async def _close(self, over: CycleOver) -> None:
        proposer = self._proposal.agent_id if self._proposal else None
        promoted = over.ending is Ending.PROMOTED
        reward = self._award.price if self._award else self._known.rules.reward
        self._end = CycleEnd(
            cycle_id=self._known.cycle_id,
            subject=self._request.subject,
            ending=over.ending,
            reason=over.reason,
            at=workflow.now(),
            agent_id=proposer,
            result=result_of(over.ending) if proposer else None,
            reward=reward if promoted and proposer else 0,
            proposal=self._proposal,
            tally=self._ballot_box.tally if self._ballot_box else None,
            reading=self._reading,
            watch=self._watch_reading,
        )
        await call(MarketActivities.end_cycle, self._end, summary=f"{over.ending.value}: write the ledger, settle")
        self._upsert(wire.OUTCOME, over.ending.value)
        self._note(f"{over.ending.value}: {over.reason}")

    # ---- steps of the story

    async def _award_to(self, candidate: RankedBid) -> Award:
        award = Award(
            cycle_id=self._known.cycle_id,
            agent_id=candidate.bid.agent_id,
            price=candidate.bid.price,
            score=candidate.score,
            reason=candidate.reason,
            deadline=self._in(self._known.rules.proposal_window_s),
        )
        await call(MarketActivities.record_award, award, workflow.now(), summary=f"award to {award.agent_id}")
        self._award = award
        self._note(f"awarded to {award.agent_id} for {award.price} credits")
        return award

    async def _record_missed(self, award: Award) -> None:
        missed = Standing(
            cycle_id=award.cycle_id, agent_id=award.agent_id, result=AwardResult.MISSED, at=workflow.now()
        )
        self._note(f"{award.agent_id} missed its deadline")
        await call(MarketActivities.record_missed_award, missed, summary=f"{award.agent_id} missed its deadline")

    def _adopt(self, proposal: Proposal) -> None:
        """An agent opened the cycle with a proposal of its own: it is held to the same bounds."""
        if (refusal := proposal_refusal(proposal, self._known, self._task_type)) is not None:
            raise CycleOver(Ending.INVALID, refusal)
        self._accept(proposal)

    def _accept(self, proposal: Proposal) -> None:
        self._proposal = proposal
        self._upsert(wire.PARAMETER, proposal.parameter)
        self._note(
            f"{proposal.agent_id} proposes {proposal.parameter} {self._parameter.value} -> {proposal.value} "
            f"(predicts {proposal.predicted_rate:.0%}): {proposal.root_cause}"
        )

    # ---- messages: each is one line onto a window

    @workflow.update(name=wire.PLACE_BID, description="Offer to investigate this meta-task.")
    async def place_bid(self, bid: Bid) -> Receipt:
        return await self._take(wire.PLACE_BID, bid)

    @place_bid.validator
    def _check_bid(self, bid: Bid) -> None:
        self._refuse_bad(wire.PLACE_BID, bid)

    @workflow.signal(name=wire.PLACE_BID, description="The same as the update; see the query receipts.")
    async def place_bid_signal(self, bid: Bid) -> None:
        await self._take(wire.PLACE_BID, bid)

    @workflow.update(name=wire.SUBMIT_PROPOSAL, description="Hand in the proposal that was awarded.")
    async def submit_proposal(self, proposal: Proposal) -> Receipt:
        return await self._take(wire.SUBMIT_PROPOSAL, proposal)

    @submit_proposal.validator
    def _check_proposal(self, proposal: Proposal) -> None:
        self._refuse_bad(wire.SUBMIT_PROPOSAL, proposal)

    @workflow.signal(name=wire.SUBMIT_PROPOSAL, description="The same as the update; see the query receipts.")
    async def submit_proposal_signal(self, proposal: Proposal) -> None:
        await self._take(wire.SUBMIT_PROPOSAL, proposal)

    @workflow.update(name=wire.CAST_BALLOT, description="Vote on the open proposal.")
    async def cast_ballot(self, ballot: Ballot) -> Receipt:
        return await self._take(wire.CAST_BALLOT, ballot)

    @cast_ballot.validator
    def _check_ballot(self, ballot: Ballot) -> None:
        self._refuse_bad(wire.CAST_BALLOT, ballot)

    @workflow.signal(name=wire.CAST_BALLOT, description="The same as the update; see the query receipts.")
    async def cast_ballot_signal(self, ballot: Ballot) -> None:
        await self._take(wire.CAST_BALLOT, ballot)

    @workflow.update(name=wire.ABORT, description="End the cycle; who and why go to the ledger.")
    async def abort(self, abort: Abort) -> Receipt:
        self._abort = abort
        return self._receipts.add(abort.message_id, wire.ABORT, None)

    @abort.validator
    def _check_abort(self, abort: Abort) -> None:
        if self._phase in (Phase.PROMOTING, Phase.ENDED):
            raise ApplicationError(f"expected a cycle that can still be aborted, but it is {self._phase.value}")

    @workflow.query(name=wire.STATUS, description="Where the cycle stands.")
    def status(self) -> CycleStatus:
        box = self._ballot_box
        briefing = self._briefing
        return CycleStatus(
            workflow_id=workflow.info().workflow_id,
            cycle_id=briefing.cycle_id if briefing else "",
            subject=self._request.subject,
            phase=self._phase,
            attempt=briefing.attempt if briefing else 0,
            deadline=self._deadline,
            anomaly=self._request.anomaly,
            bids=tuple(self._bid_window.bids.values()) if self._bid_window else (),
            award=self._award,
            proposal=self._proposal,
            ballots=tuple(box.ballots.values()) if box else (),
            voters=tuple(voter.agent_id for voter in box.electorate.voters) if box else (),
            tally=box.tally if box else None,
            design=self._design,
            reading=self._watch_reading or self._reading,
            ending=self._end.ending if self._end else None,
            reason=self._end.reason if self._end else "",
            story=tuple(self._story),
        )

    @workflow.query(name=wire.RECEIPTS, description="What became of each message, by its id; the latest ones.")
    def receipts(self) -> list[Receipt]:
        return self._receipts.latest

    def _refusal(self, word: AgentWord) -> str | None:
        """Why this word cannot be taken now, or None."""
        match word:
            case Bid() if self._bid_window is not None and self._bid_window.open:
                return self._bid_window.refusal(word)
            case Proposal() if self._proposal_window is not None and self._proposal_window.open:
                return self._proposal_window.refusal(word)
            case Ballot() if self._ballot_box is not None and self._ballot_box.open:
                return self._ballot_box.refusal(word)
        wanted = {Bid: Phase.BIDDING, Proposal: Phase.PROPOSING, Ballot: Phase.VOTING}[type(word)]
        stands = f"{self._phase.value}, and the window is closed" if self._phase is wanted else self._phase.value
        return f"expected a cycle in phase {wanted.value}, but {self._request.subject} is in phase {stands}"

    def _refuse_bad(self, kind: str, word: AgentWord) -> None:
        """A validator: refuses before anything enters history. What comes while the cycle opens waits in `_take`."""
        if self._phase is Phase.OPENING or self._receipts.of(word.message_id) is not None:
            return
        if (refusal := self._refusal(word)) is not None:
            raise ApplicationError(refusal, type=kind)

    async def _take(self, kind: str, word: AgentWord) -> Receipt:
        # A message may arrive before the first step of the story: it must not be lost for being early.
        await workflow.wait_condition(lambda: self._phase is not Phase.OPENING)
        if (known := self._receipts.of(word.message_id)) is not None:
            return known
        refusal = self._refusal(word)
        if refusal is None:
            match word:
                case Bid():
                    assert self._bid_window is not None
                    self._bid_window.take(word)
                case Proposal():
                    assert self._proposal_window is not None
                    self._proposal_window.take(word)
                case Ballot():
                    assert self._ballot_box is not None
                    self._ballot_box.take(word, workflow.now())
            self._show()
        return self._receipts.add(word.message_id, kind, refusal)

    # ---- waiting

    async def _until(self, window: Window, condition: Callable[[], bool], summary: str) -> None:
        """Wait for a condition or the window's deadline, which may move; then the window is closed."""
        while not condition() and (left := window.deadline - workflow.now()) > timedelta(0):
            seen = self._deadline = window.deadline
            with suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda s=seen: condition() or self._abort is not None or window.deadline != s,  # type: ignore[misc]
                    timeout=left,
                    timeout_summary=summary,
                )
            self._heed_abort()
        window.open = False

    async def _poll(
        self,
        activity: Callable[..., Awaitable[Result]] | Callable[..., Result],
        *args: object,
        until: datetime | None = None,
        summary: str,
    ) -> Result:
        """Wait for an activity that reports when it is ready; a person's abort cancels it."""
        handle = start(activity, *args, summary=summary)
        left = until - workflow.now() if until else None
        try:
            await workflow.wait_condition(
                lambda: handle.done() or self._abort is not None, timeout=left, timeout_summary=summary
            )
        except TimeoutError:
            handle.cancel()
            raise CycleOver(Ending.INCONCLUSIVE, f"time ran out: {summary}") from None
        if not handle.done():
            handle.cancel()
        self._heed_abort()
        result: Result = await handle
        return result

    def _heed_abort(self) -> None:
        if self._abort is not None:
            raise CycleOver(Ending.ABORTED, f"{self._abort.who}: {self._abort.why}")

    # ---- what everything above reads

    @property
    def _known(self) -> Briefing:
        assert self._briefing is not None
        return self._briefing

    @property
    def _proposed(self) -> Proposal:
        assert self._proposal is not None
        return self._proposal

    @property
    def _tested(self) -> tuple[ExperimentDesign, Reading]:
        assert self._design is not None
        assert self._reading is not None
        return self._design, self._reading

    @property
    def _parameter(self) -> ParameterState:
        return {state.declaration.key: state for state in self._known.parameters}[self._proposed.parameter]

    @property
    def _metric(self) -> str:
        return self._request.anomaly.metric if self._request.anomaly else "success_rate"

    def _in(self, seconds: float) -> datetime:
        return workflow.now() + timedelta(seconds=seconds)

    def _enter(self, phase: Phase, deadline: datetime | None = None) -> None:
        self._phase, self._deadline = phase, deadline
        self._upsert(wire.PHASE, phase.value)
        self._show()

    def _note(self, line: str) -> None:
        self._story.append(f"{workflow.now():%H:%M:%S} {line}")
        workflow.logger.info(
            "cycle.story", extra={"cycle_id": self._briefing.cycle_id if self._briefing else "", "line": line}
        )
        self._show()

    def _upsert(self, name: str, value: str) -> None:
        workflow.upsert_search_attributes([SearchAttributeKey.for_keyword(name).value_set(value)])

    def _show(self) -> None:
        workflow.set_current_details(self._page())

    def _page(self) -> str:
        return render(self.status())
