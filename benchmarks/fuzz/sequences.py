"""Messages out of order: replayed, forged, for another run, in a wrong phase, twice, of strangers and of the revoked.

A sequence is played against the windows of a cycle, as the workflow does it: authenticate, refuse, or accept. A model$
of what may happen stands beside it: who has a key, and what each agent has said that was accepted.
"""

import copy
from datetime import timedelta
from random import Random
from typing import Any

from benchmarks.fuzz import samples
from benchmarks.fuzz.targets import Forged, check_line
from rules import identity
from schema import wire
from schema.messages.base import AgentMessage
from schema.messages.cycle import Briefing, CycleRequest, CycleState, Phase
from schema.messages.market import Agent, Award
from schema.messages.observatory import Counts
from schema.messages.platform import CycleRules, Parameter, ParameterKind, ParameterState
from schema.messages.proposals import Choice, Electorate, Voter
from schema.messages.story import Act
from workflows import windows

WORKFLOW, RUN = "cycle:success_rate:research_synthesis", "run-2"
KINDS = (wire.PLACE_BID, wire.SUBMIT_PROPOSAL, wire.CAST_BALLOT, wire.DECLINE)
WANTED = {Phase.PROPOSING: wire.SUBMIT_PROPOSAL, Phase.VOTING: wire.CAST_BALLOT}
PHASES = (Phase.BIDDING, Phase.PROPOSING, Phase.VOTING, Phase.EXPERIMENT, Phase.ENDED)
ACTS = wire.ACTS_OF_PEOPLE
# In the market, and without a vote; one more has a key and is in neither.
MEMBERS, STRANGER = samples.AGENTS[:5], samples.AGENTS[5]
LONGEST_SEQUENCE = 12


def opened(unsigned_agents: bool) -> CycleState:
    """A cycle that has opened, with five agents that have keys, which must sign whether or not others need to."""
    declared = Parameter(
        key=samples.PARAMETER,
        kind=ParameterKind.FLOAT,
        unit="s",
        default=90.0,
        minimum=10.0,
        maximum=600.0,
        largest_change=120.0,
        task_types=(samples.TASK_TYPE,),
    )
    agents = tuple(
        Agent(agent_id=name, operator=f"op-{name}", standing=0.5, public_key=samples.KEYS[name].public)
        for name in MEMBERS
    )
    briefing = Briefing(
        cycle_id="c#1",
        attempt=1,
        failed_attempts=0,
        rules=CycleRules(),
        parameters=(ParameterState(declaration=declared, value=90.0, version=1),),
        agents=agents,
        baseline=Counts(tasks=60, successes=40),
        unsigned_agents=unsigned_agents,
    )
    return CycleState(request=CycleRequest(request_id="r", proposal=samples.proposal()), opened=briefing)


def play(rng: Random) -> tuple[int, int]:
    """Play one sequence; how many messages were accepted, and how many refused. Raises AssertionError."""
    unsigned_agents = rng.randrange(2) == 0
    state = opened(unsigned_agents)
    accepted: dict[str, AgentMessage] = {}
    sent: list[tuple[str, AgentMessage]] = []
    refused = 0
    revoked: set[str] = set()
    for number in range(rng.randrange(1, LONGEST_SEQUENCE)):
        if number == 0 or rng.randrange(4) == 0:
            _move(state, rng)
        if rng.randrange(20) == 0:
            revoked.add(rng.choice(MEMBERS))
            keys = {name: identity.REVOKED if name in revoked else samples.KEYS[name].public for name in MEMBERS}
            windows.use_keys(state, keys)
        if rng.randrange(6) == 0:
            refused += _act(state, rng)
            continue
        kind, message, is_genuine = _message(state, sent, rng)
        before = state.model_dump_json()
        failure = windows.authentication_failure(state, message, WORKFLOW, RUN, kind)
        may_go_unsigned = unsigned_agents and message.agent_id == STRANGER
        if failure is None and not may_go_unsigned and (not is_genuine or message.agent_id in revoked):
            raise Forged(f"{kind} of {message.agent_id} passed")
        why = failure or windows.refusal(state, message)
        assert state.model_dump_json() == before, "expected a refusal, or a question, to change nothing"
        if why is not None:
            check_line(why)
            refused += 1
            continue
        assert message.agent_id in MEMBERS, f"expected no part for {message.agent_id}, who is not in the market"
        slot = f"{kind} {message.agent_id}"
        assert slot not in accepted, f"expected one {kind} of {message.agent_id}, but two were accepted"
        accepted[slot] = message
        windows.accept(state, message, samples.NOW)
    return len(accepted), refused


def _move(state: CycleState, rng: Random) -> None:
    """Go to any phase: messages cross with the cycle's own steps."""
    state.phase = rng.choice(PHASES)
    state.window_open = rng.randrange(4) > 0
    state.deadline = samples.NOW + timedelta(seconds=rng.choice((1, 1_000)))
    if state.award is None and rng.randrange(2):
        _give_award(state, rng)
    if state.phase is Phase.PROPOSING and state.award is None:
        _give_award(state, rng)
    if state.phase is Phase.VOTING and state.electorate is None:
        state.proposal = state.proposal or samples.proposal(MEMBERS[0])
        voters = tuple(
            Voter(agent_id=name, operator=f"op-{name}", weight=0.5, public_key=samples.KEYS[name].public)
            for name in MEMBERS[1:4]
        )
        state.electorate = Electorate(proposal_id=state.proposal.proposal_id, opened_at=samples.NOW, voters=voters)
        state.tally = windows.tally(state)


def _give_award(state: CycleState, rng: Random) -> None:
    state.ranked = []
    state.award = Award(
        cycle_id="c#1", agent_id=rng.choice(MEMBERS), price=20, score=1.0, reason="", deadline=samples.NOW
    )


def _message(state: CycleState, sent: list[tuple[str, AgentMessage]], rng: Random) -> tuple[str, AgentMessage, bool]:
    """A kind, a message, and whether the agent that it names has signed it for this run of this workflow."""
    if sent and rng.randrange(4) == 0:
        kind, message = rng.choice(sent)
        return kind, message, message.agent_id != STRANGER
    kind = rng.choice((WANTED.get(state.phase, wire.PLACE_BID), rng.choice(KINDS)))
    message = _fresh(kind, state, rng)
    signer = samples.KEYS[message.agent_id]
    match rng.randrange(16):
        case 0:
            return kind, message, False  # unsigned
        case 1:
            other = samples.key_of("mallory")
            forged = _signed_by(other, message, WORKFLOW, RUN, kind)
            return kind, forged, False
        case 2:
            return kind, signer.sign(message, "cycle:another", RUN, kind), False
        case 3:
            return kind, signer.sign(message, WORKFLOW, "run-1", kind), False
        case 4:
            others = [other for other in KINDS if other != kind]
            return kind, signer.sign(message, WORKFLOW, RUN, rng.choice(others)), False
        case 5:
            signed = signer.sign(message, WORKFLOW, RUN, kind)
            other_id = rng.choice([name for name in samples.AGENTS if name != message.agent_id])
            return kind, signed.model_copy(update={"agent_id": other_id}), False
        case 6:
            signed = signer.sign(message, WORKFLOW, RUN, kind)
            return kind, signed.model_copy(update={"message_id": signed.message_id + "x"}), False
    signed = signer.sign(message, WORKFLOW, RUN, kind)
    sent.append((kind, signed))
    # A stranger has a key of its own, which nobody has registered.
    return kind, signed, message.agent_id != STRANGER


def _signed_by(key: Any, message: AgentMessage, workflow: str, run: str, kind: str) -> AgentMessage:
    impostor = copy.copy(key)
    object.__setattr__(impostor, "agent_id", message.agent_id)
    signed: AgentMessage = impostor.sign(message, workflow, run, kind)
    return signed


def _fresh(kind: str, state: CycleState, rng: Random) -> AgentMessage:
    name = rng.choice(samples.AGENTS)
    match kind:
        case wire.PLACE_BID:
            return samples.bid(name, price=rng.choice((0, 20, 1_000_000)))
        case wire.SUBMIT_PROPOSAL:
            value = rng.choice((180.0, 90.0, 1e9, 10.0, True, "180", 120))
            parameter = rng.choice((samples.PARAMETER, samples.PARAMETER, "nobody.declared"))
            return samples.proposal(name, value=value, parameter=parameter, base_version=rng.choice((1, 1, 2)))
        case wire.CAST_BALLOT:
            known = state.electorate.proposal_id if state.electorate else "p"
            return samples.ballot(name, rng.choice((known, known, "other")), rng.choice(tuple(Choice)))
    return samples.decline(name)


def _act(state: CycleState, rng: Random) -> int:
    """Steer the cycle, if that is not refused; 1 where it is."""
    kind = rng.choice(ACTS)
    act = Act(
        message_id="a", who="ada", why="so", seconds=rng.choice((None, 60.0)), exposure=rng.choice((None, 0.5, 1.0))
    )
    before = state.model_dump_json()
    why = windows.act_refusal(state, kind, act)
    assert state.model_dump_json() == before, "expected a question to change nothing"
    if why is not None:
        check_line(why)
        return 1
    windows.apply(state, kind, act, samples.NOW)
    return 0
