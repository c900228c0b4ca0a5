"""Windows: what a cycle accepts from agents and people, and why it refuses the rest.

One window at a time is open and the phase says which. Nothing here runs a command, so an update's validator may ask
everything; only `use_keys`, `accept` and `apply` change the state. Deadlines are instants of the workflow's clock.
"""

from datetime import datetime, timedelta

from rules import bidding, bounds, consensus, identity
from rules.design import affected, baseline_rate
from schema import wire
from schema.messages.base import AgentMessage
from schema.messages.cycle import CycleState, Ending, Phase
from schema.messages.market import Agent, Bid
from schema.messages.proposals import Ballot, Decline, Proposal, Tally, Voter
from schema.messages.story import Act

# What a person can do in some phases only; pause, resume, extend and abort are open in every one that waits.
ACTS = {
    wire.PROMOTE: (Phase.APPROVAL,),
    wire.VETO: (Phase.VOTING, Phase.QUEUED, Phase.EXPERIMENT, Phase.APPROVAL, Phase.WATCHING),
    wire.WIDEN: (Phase.EXPERIMENT,),
}
WANTED = {Bid: Phase.BIDDING, Decline: Phase.BIDDING, Proposal: Phase.PROPOSING, Ballot: Phase.VOTING}


def authentication_failure(
    state: CycleState, message: AgentMessage, workflow_id: str, run_id: str, kind: str
) -> str | None:
    """Why this is not proved to be a message of the agent that it names, or None.

    The keys are those in the cycle's state, never the message's own.
    """
    agents: list[Agent | Voter] = list(state.briefing.agents)
    if isinstance(message, Ballot) and state.electorate is not None:
        # The electorate's first. An agent without a vote is refused for that, and not as unknown.
        agents = [*state.electorate.voters, *agents]
    key = identity.key_of(message.agent_id, agents, state.current_keys)
    return identity.refusal(message, workflow_id, run_id, kind, key, state.briefing.unsigned_agents)


def use_keys(state: CycleState, keys: dict[str, str]) -> list[str]:
    """Use these keys from now on; returns the agents whose key has changed.

    What was accepted stands, but the meta-task is not awarded to an agent whose key was revoked.
    """
    opening_keys = {agent.agent_id: agent.public_key for agent in state.briefing.agents}
    before = opening_keys if state.current_keys is None else state.current_keys
    state.current_keys = keys
    revoked = {agent_id for agent_id, key in keys.items() if key == identity.REVOKED}
    if state.ranked is None:
        state.bids = {agent_id: bid for agent_id, bid in state.bids.items() if agent_id not in revoked}
        state.declines = {agent_id: said for agent_id, said in state.declines.items() if agent_id not in revoked}
    else:
        # The first has the award, or is being given it; without a key it can only let the deadline pass.
        state.ranked[1:] = [ranked for ranked in state.ranked[1:] if ranked.bid.agent_id not in revoked]
    return sorted(agent_id for agent_id, key in keys.items() if before.get(agent_id) != key)


def refusal(state: CycleState, message: AgentMessage) -> str | None:
    """Why a message cannot be accepted now, or None."""
    wanted = WANTED[type(message)]
    if state.phase is not wanted:
        return f"expected a cycle in phase {wanted.value}, but {state.request.subject} is in phase {state.phase.value}"
    if not state.window_open:
        here = f"{state.request.subject} is in phase {state.phase.value}, and the window is closed"
        return f"expected a cycle in phase {wanted.value}, but {here}"
    match message:
        case Bid():
            return _bid_refusal(state, message)
        case Decline():
            return _decline_refusal(state, message)
        case Proposal():
            return _proposal_refusal(state, message)
        case Ballot():
            return _ballot_refusal(state, message)
    raise ValueError(f"expected a bid, a decline, a proposal or a ballot, but {type(message).__name__} came")


def accept(state: CycleState, message: AgentMessage, now: datetime) -> None:
    """Accept a message that was not refused: the first one of each agent stands."""
    match message:
        case Bid():
            state.bids[message.agent_id] = message
        case Decline():
            state.declines[message.agent_id] = message
        case Proposal():
            state.proposal = message
        case Ballot():
            _cast(state, message, now)
        case _:
            raise ValueError(f"expected a bid, a decline, a proposal or a ballot, but {type(message).__name__} came")


def bids_complete(state: CycleState) -> bool:
    """Whether every agent that may bid has bid or declined."""
    answered = state.bids.keys() | state.declines.keys()
    return all(agent.suspended or agent.agent_id in answered for agent in state.briefing.agents)


def ending_without_bids(state: CycleState) -> tuple[Ending, str]:
    """How a cycle ends on which nobody bid, and why: for a person where enough agents say that nothing would help."""
    hopeless = consensus.nothing_worth_trying(state.briefing.agents, state.declines, state.briefing.rules)
    if hopeless is not None:
        return Ending.ESCALATED, hopeless
    return Ending.NO_BIDS, "no agent bid on the meta-task"


def tally(state: CycleState) -> Tally:
    """Where the vote stands, by the electorate that was frozen when it opened."""
    assert state.electorate is not None
    return consensus.tally(
        state.electorate.voters,
        state.ballots,
        state.parameter.declaration.risk,
        state.briefing.rules,
        state.electorate.abstentions_count,
    )


def out_of_bounds(state: CycleState, proposal: Proposal) -> str | None:
    """Why a proposal cannot be put to the vote under this cycle's briefing, or None."""
    briefing = state.briefing
    anomaly = state.request.anomaly
    parameters = {parameter.declaration.key: parameter for parameter in briefing.parameters}
    task_type = anomaly.task_type if anomaly else ""
    state_of = parameters.get(proposal.parameter)
    baseline = affected(briefing, state_of.declaration) if state_of else briefing.baseline
    return bounds.refusal(proposal, parameters, task_type, baseline_rate(baseline), briefing.rules.minimum_effect)


def _bid_refusal(state: CycleState, bid: Bid) -> str | None:
    if bid.agent_id in state.bids:
        return f"expected one bid of {bid.agent_id}, but it has bid already"
    if bid.agent_id in state.declines:
        return f"expected one answer of {bid.agent_id}, a bid or a decline, but it has declined already"
    agents = {agent.agent_id: agent for agent in state.briefing.agents}
    return bidding.refusal(bid, agents, state.briefing.rules.reward)


def _decline_refusal(state: CycleState, decline: Decline) -> str | None:
    """The first answer counts: an agent that has offered to investigate cannot call it hopeless too."""
    if decline.agent_id in state.declines:
        return f"expected one decline of {decline.agent_id}, but it has declined already"
    if decline.agent_id in state.bids:
        return f"expected one answer of {decline.agent_id}, a bid or a decline, but it has bid already"
    agents = {agent.agent_id: agent for agent in state.briefing.agents}
    return bidding.membership_refusal(decline.agent_id, agents)


def _proposal_refusal(state: CycleState, proposal: Proposal) -> str | None:
    assert state.award is not None
    if proposal.agent_id != state.award.agent_id:
        return f"expected a proposal of {state.award.agent_id}, who has the award, but {proposal.agent_id} sent one"
    if state.proposal is not None:
        return f"expected one proposal, but {state.proposal.proposal_id} is there already"
    return out_of_bounds(state, proposal)


def _ballot_refusal(state: CycleState, ballot: Ballot) -> str | None:
    assert state.electorate is not None
    if ballot.proposal_id != state.electorate.proposal_id:
        return f"expected a ballot on proposal {state.electorate.proposal_id}, but it names {ballot.proposal_id}"
    if all(ballot.agent_id != voter.agent_id for voter in state.electorate.voters):
        return f"expected a voter of the electorate that was frozen when voting opened, but {ballot.agent_id} came"
    if ballot.agent_id in state.ballots:
        return f"expected one ballot of {ballot.agent_id}, but it has voted already"
    return None


def _cast(state: CycleState, ballot: Ballot, now: datetime) -> None:
    """Count a ballot. A quorum met late extends the vote once, so that no agent is outvoted in the last second."""
    assert state.deadline is not None
    had_quorum = state.counted.quorum
    state.ballots[ballot.agent_id] = ballot
    state.tally = tally(state)
    extension = timedelta(seconds=state.briefing.rules.late_quorum_extension_s)
    is_late = state.deadline - now < extension
    if state.tally.quorum and not had_quorum and is_late and not state.extended:
        state.extended, state.deadline = True, now + extension


def name_of_act(kind: str, act: Act) -> str:
    """What a signed act is known by, in the cycle that it is for."""
    return f"{kind} {act.who} {act.message_id}"


def act_refusal(state: CycleState, kind: str, act: Act) -> str | None:
    """Why a person's act cannot be done now, or None. Raises ValueError on an unknown kind."""
    if name_of_act(kind, act) in state.signed_acts:
        return f"expected a new act, but {act.message_id} of {act.who} was done before"
    now = f"{state.request.subject} is in phase {state.phase.value}"
    if state.phase in (Phase.OPENING, Phase.PROMOTING, Phase.ENDED):
        return f"expected a cycle that can be steered, but {now}"
    phases = ACTS.get(kind, tuple(Phase))  # a kind without an entry is open in every phase that is left
    if state.phase not in phases:
        wanted = " or ".join(phase.value for phase in phases)
        return f"expected a cycle in phase {wanted}, but {now}"

    match kind:
        case wire.PAUSE if state.paused_at is not None:
            return "expected a cycle that runs, but it is paused"
        case wire.RESUME if state.paused_at is None:
            return "expected a paused cycle, but it runs"
        case wire.EXTEND if act.seconds is None:
            return "expected how many seconds to extend by, but none came"
        case wire.WIDEN if act.exposure is None or act.exposure <= state.exposure:
            return f"expected an exposure above {state.exposure:g}, but {act.exposure} came"
        case wire.PAUSE | wire.RESUME | wire.ABORT | wire.VETO | wire.EXTEND | wire.PROMOTE | wire.WIDEN:
            return None
    raise ValueError(f"expected a kind of act, but {kind!r} came")


def apply(state: CycleState, kind: str, act: Act, now: datetime) -> None:
    """Do what a person asked and was not refused."""
    match kind:
        case wire.PAUSE:
            state.paused_at = now
        case wire.RESUME:
            assert state.paused_at is not None
            if state.deadline is not None:
                # The deadline waits while the cycle is paused.
                state.deadline += now - state.paused_at
            state.paused_at = None
        case wire.ABORT:
            state.abort = act
        case wire.VETO:
            state.veto = act
        case wire.EXTEND:
            assert act.seconds is not None
            if state.deadline is not None:
                state.deadline += timedelta(seconds=act.seconds)
        case wire.PROMOTE:
            state.approval = act
        case wire.WIDEN:
            assert act.exposure is not None
            state.exposure = act.exposure
        case _:
            raise ValueError(f"expected a kind of act, but {kind!r} came")
