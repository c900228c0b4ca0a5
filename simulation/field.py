"""The field: the agents of a simulated platform, and how they visit its cycles.

The built-in agents are those of production. A declared one has the method of a built-in agent, its own price, and errs:
by chance it proposes a change that it did not think of, or votes against its own judgment.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

from schema.messages.base import Value
from schema.messages.cycle import OPEN_PHASES
from schema.messages.market import Bid
from schema.messages.platform import Parameter, ParameterKind
from schema.messages.proposals import Ballot, Choice, Proposal
from schema.messages.simulation import SimulatedAgent, Simulation
from starter.agents.agent import CycleMessage, Participant, send
from starter.agents.evidence import Case
from starter.agents.investigator import Investigator
from starter.agents.legal import legal_value
from starter.agents.roster import ROSTER
from starter.client import NautilusClient


@dataclass(frozen=True)
class ErringAgent:
    """An agent with the method of `model`, a price and an error rate of its own."""

    declared: SimulatedAgent
    model: Investigator
    seed: int

    @property
    def agent_id(self) -> str:
        return self.declared.name

    @property
    def operator(self) -> str:
        return f"operator-{self.declared.name}"

    def message(self, case: Case) -> CycleMessage | None:
        """The model's message at this agent's price; by chance a wrong one."""
        message = self.model.message(case)
        if isinstance(message, Bid) and self.declared.price is not None:
            return message.model_copy(update={"price": self.declared.price})
        rng = Random(f"{self.seed}:{self.agent_id}:{case.status.cycle_id}:{case.status.phase}")
        if rng.random() >= self.declared.error_rate:
            return message
        match message:
            case Proposal():
                return _wrong_proposal(message, case, rng)
            case Ballot(choice=Choice.APPROVE):
                return message.model_copy(update={"choice": Choice.REJECT})
            case Ballot(choice=Choice.REJECT):
                return message.model_copy(update={"choice": Choice.APPROVE})
            case _:
                return message


def _wrong_proposal(proposal: Proposal, case: Case, rng: Random) -> Proposal:
    """The same claim about a legal value that was drawn by chance; the proposal as it is where there is none."""
    state = case.state(proposal.parameter)
    if state is None:
        return proposal
    drawn: Value | None = _any_value(state.declaration, rng)
    if isinstance(drawn, float):
        drawn = legal_value(state, drawn)
    if drawn is None or drawn == state.value:
        return proposal
    return proposal.model_copy(update={"value": drawn})


def _any_value(parameter: Parameter, rng: Random) -> bool | float | str:
    """A value within the declared bounds."""
    match parameter.kind:
        case ParameterKind.BOOLEAN:
            return rng.random() < 0.5
        case ParameterKind.CHOICE:
            return rng.choice(parameter.choices)
        case ParameterKind.INTEGER | ParameterKind.FLOAT:
            return rng.uniform(parameter.minimum or 0.0, parameter.maximum or 0.0)
        case ParameterKind.TEXT:
            return parameter.default


def agents_of(declared: Simulation, seed: int) -> tuple[Participant, ...]:
    """The agents of a scenario: the built-in ones, again under other names where more are asked for, and its own."""
    built_in = declared.agents
    if built_in is None:
        built_in = 0 if declared.named_agents else len(ROSTER)
    field: list[Participant] = [_built_in(n) for n in range(built_in)]
    for n, agent in enumerate(declared.named_agents):
        model = replace(ROSTER[n % len(ROSTER)], agent_id=agent.name, operator=f"operator-{agent.name}")
        field.append(ErringAgent(agent, model, seed))
    return tuple(field)


def _built_in(number: int) -> Investigator:
    agent = ROSTER[number % len(ROSTER)]
    turn = number // len(ROSTER)
    if not turn:
        return agent
    suffix = f"-{turn + 1}"
    return replace(agent, agent_id=agent.agent_id + suffix, operator=agent.operator + suffix)


class Visit(NamedTuple):
    """What a visit has found: whether the cycle waits for agents at all, and whose messages it accepted."""

    waits: bool
    answered: frozenset[str] = frozenset()


async def visit(client: NautilusClient, cycle: str, agents: Sequence[Participant]) -> Visit:
    """Have every agent that a cycle waits for answer it, one after the other."""
    status = await client.status(cycle)
    waits = status.phase in OPEN_PHASES
    due = [agent for agent in agents if status.awaits(agent.agent_id)]
    if not due:
        return Visit(waits)
    since = status.anomaly.onset if status.anomaly else None
    case = Case(status, await client.diagnose(status.subject, since=since))
    accepted = set()
    for agent in due:
        message = agent.message(case)
        if message is not None and await send(client, status, message):
            accepted.add(agent.agent_id)
    return Visit(waits, frozenset(accepted))
