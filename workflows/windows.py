"""Windows: the open periods of a cycle, in which agents may send something.

Each window refuses with a reason or takes a message; it decides nothing and runs no command, so that it can be asked
from an update's validator. Deadlines are instants of the workflow's clock.
"""

from datetime import datetime, timedelta

from rules import bidding, bounds, consensus
from rules.design import baseline_rate
from schema.messages.cycle import Briefing
from schema.messages.market import Award, Bid
from schema.messages.platform import Risk
from schema.messages.proposals import Ballot, Electorate, Proposal, Tally


class Window:
    """Open from its making until the story goes on; what comes while the next step is being recorded comes too late."""

    def __init__(self, deadline: datetime) -> None:
        self.deadline = deadline
        self.open = True


class BidWindow(Window):
    """Bids on one meta-task: one per agent, the first one stands."""

    def __init__(self, briefing: Briefing, deadline: datetime) -> None:
        super().__init__(deadline)
        self.bids: dict[str, Bid] = {}
        self._agents = {agent.agent_id: agent for agent in briefing.agents}
        self._reward = briefing.rules.reward

    @property
    def complete(self) -> bool:
        """Whether every agent that may bid has done so."""
        return all(agent.suspended or agent.agent_id in self.bids for agent in self._agents.values())

    def refusal(self, bid: Bid) -> str | None:
        if bid.agent_id in self.bids:
            return f"expected one bid of {bid.agent_id}, but it has bid already"
        return bidding.refusal(bid, self._agents, self._reward)

    def take(self, bid: Bid) -> None:
        self.bids[bid.agent_id] = bid


class ProposalWindow(Window):
    """The awarded agent's time to hand in its proposal."""

    def __init__(self, briefing: Briefing, award: Award, task_type: str) -> None:
        super().__init__(award.deadline)
        self.proposal: Proposal | None = None
        self._award = award
        self._briefing = briefing
        self._task_type = task_type

    def refusal(self, proposal: Proposal) -> str | None:
        if proposal.agent_id != self._award.agent_id:
            return f"expected a proposal of {self._award.agent_id}, who has the award, but {proposal.agent_id} sent one"
        if self.proposal is not None:
            return f"expected one proposal, but {self.proposal.proposal_id} is there already"
        return proposal_refusal(proposal, self._briefing, self._task_type)

    def take(self, proposal: Proposal) -> None:
        self.proposal = proposal


def proposal_refusal(proposal: Proposal, briefing: Briefing, task_type: str) -> str | None:
    """Why a proposal cannot be put to the vote under this briefing, or None."""
    parameters = {state.declaration.key: state for state in briefing.parameters}
    rate = baseline_rate(briefing.baseline)
    return bounds.refusal(proposal, parameters, task_type, rate, briefing.rules.minimum_effect)


class BallotBox(Window):
    """Ballots on one proposal by a frozen electorate: one per voter, the first one stands.

    A quorum met late extends the vote once, so that nobody is outvoted in the last second.
    """

    def __init__(self, briefing: Briefing, electorate: Electorate, risk: Risk) -> None:
        super().__init__(electorate.opened_at + timedelta(seconds=briefing.rules.voting_window_s))
        self._rules = briefing.rules
        self._risk = risk
        self.electorate = electorate
        self.ballots: dict[str, Ballot] = {}
        self.extended = False
        self._voters = {voter.agent_id for voter in electorate.voters}

    @property
    def tally(self) -> Tally:
        return consensus.tally(self.electorate.voters, self.ballots, self._risk, self._rules)

    def refusal(self, ballot: Ballot) -> str | None:
        if ballot.proposal_id != self.electorate.proposal_id:
            return f"expected a ballot on proposal {self.electorate.proposal_id}, but it names {ballot.proposal_id}"
        if ballot.agent_id not in self._voters:
            return f"expected a voter of the electorate that was frozen when voting opened, but {ballot.agent_id} came"
        if ballot.agent_id in self.ballots:
            return f"expected one ballot of {ballot.agent_id}, but it has voted already"
        return None

    def take(self, ballot: Ballot, now: datetime) -> None:
        had_quorum = self.tally.quorum
        self.ballots[ballot.agent_id] = ballot
        extension = timedelta(seconds=self._rules.late_quorum_extension_s)
        if not had_quorum and self.tally.quorum and not self.extended and self.deadline - now < extension:
            self.extended, self.deadline = True, now + extension
