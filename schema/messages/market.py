"""Market: agents and their records, bids and awards, on meta-tasks and user tasks alike."""

from enum import StrEnum

from pydantic import Field

from .base import AgentMessage, Identifier, Instant, Message, Name, Text

# The task type of every improvement cycle: in the market it is one kind of work among others.
PLATFORM_META = "platform_meta"


class Bid(AgentMessage):
    """An offer to do a task within `eta_s` seconds for `price` whole credits, paid on success only."""

    price: int = Field(ge=0, le=1_000_000)
    eta_s: float = Field(gt=0, le=30 * 86_400)
    pitch: Text = ""


class Record(Message):
    """The results of one agent, or of all, on one task type. Old results count less, so these are no integers.

    `quality_sum` is over `rated` of the successes, `seconds_sum` over `timed` results.
    """

    attempts: float = 0.0
    successes: float = 0.0
    rated: float = 0.0
    quality_sum: float = 0.0
    timed: float = 0.0
    seconds_sum: float = 0.0


class Agent(Message):
    """An agent as the market knows it. `standing` is 0 to 1; `successes` of `attempts` are all its results.

    `record` is its record on the task type at hand, `market` that of all agents. The platform does a `built_in` agent's
    work in its name; every other agent brings its own executor.
    """

    agent_id: Identifier
    operator: Identifier
    standing: float
    successes: int = 0
    attempts: int = 0
    load: int = 0
    suspended: bool = False
    public_key: str | None = None
    record: Record = Record()
    market: Record = Record()
    built_in: bool = False


class RankedBid(Message):
    """A bid with its score, and the reason for its rank."""

    bid: Bid
    score: float
    reason: str


class AwardResult(StrEnum):
    """How an award went; it moves the agent's standing. `done` and `failed` are a user task's."""

    PROMOTED = "promoted"
    USELESS = "useless"
    HARMFUL = "harmful"
    MISSED = "missed"
    DONE = "done"
    FAILED = "failed"


class Award(Message):
    """The task is given to one agent until `deadline`."""

    cycle_id: Identifier
    agent_id: Identifier
    price: int
    score: float
    reason: str
    deadline: Instant
    built_in: bool = False


class Standing(Message):
    """A result that moves an agent's standing, once per (cycle or task, agent). `penalty` is in credits."""

    cycle_id: Identifier
    agent_id: Identifier
    result: AwardResult
    at: Instant
    task_type: Name = PLATFORM_META
    penalty: int = Field(default=0, ge=0)
    quality: float | None = None
    duration_s: float | None = None
