"""Market: meta-tasks, bids and awards, and what agents earn."""

from enum import StrEnum

from pydantic import Field

from .base import AgentMessage, Identifier, Instant, Message, Text


class Bid(AgentMessage):
    """An offer to investigate a meta-task within `eta_s` seconds for `price` whole credits, paid on promotion only."""

    price: int = Field(ge=0, le=1_000_000)
    eta_s: float = Field(gt=0, le=30 * 86_400)
    pitch: Text = ""


class Agent(Message):
    """An agent as the market knows it. `standing` is 0 to 1; `track` counts its results on meta-tasks."""

    agent_id: Identifier
    operator: Identifier
    standing: float
    successes: int = 0
    attempts: int = 0
    load: int = 0
    suspended: bool = False
    public_key: str | None = None


class RankedBid(Message):
    """A bid with its score and why it stands where it stands."""

    bid: Bid
    score: float
    reason: str


class AwardResult(StrEnum):
    """How an award went; it moves the agent's standing."""

    PROMOTED = "promoted"
    USELESS = "useless"
    HARMFUL = "harmful"
    MISSED = "missed"


class Award(Message):
    """The meta-task is given to one agent until `deadline`."""

    cycle_id: Identifier
    agent_id: Identifier
    price: int
    score: float
    reason: str
    deadline: Instant


class Standing(Message):
    """A result that moves an agent's standing, once per (cycle, agent)."""

    cycle_id: Identifier
    agent_id: Identifier
    result: AwardResult
    at: Instant
