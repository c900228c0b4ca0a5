"""Tasks: what users request of the market, what executors hand in, and how a task ended."""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator

from ..failure_kinds import FailureKind
from .base import AgentMessage, Identifier, Instant, JsonObject, Message, Name, Payload, Reason, Text
from .market import Agent, Award, Bid
from .observatory import Attributes, Detail
from .story import StoryState


def task_workflow_id(task_id: str) -> str:
    """The id of the workflow that is the task; Temporal and the market let only one of an id be."""
    return f"task:{task_id}"


class TaskRequest(Message):
    """A user's task. `task_id` is the natural key: submitted twice it is done once. `price` is the most it may cost."""

    # Shorter than other names, because the workflow's id and the accounts' references are made from it.
    task_id: Annotated[Identifier, StringConstraints(max_length=180)]
    task_type: Name
    payload: Payload = Field(default_factory=dict)
    requester: Annotated[str, StringConstraints(pattern=r"^[ -~]*$", max_length=120)] = ""
    notify: Annotated[str, StringConstraints(max_length=500)] = ""
    price: int | None = Field(default=None, ge=0, le=1_000_000)


class TaskPhase(StrEnum):
    """Where a user task stands. `bidding` is spelled as a cycle's: one query lists both."""

    OPENING = "opening"
    BIDDING = "bidding"
    AWARDING = "awarding"
    EXECUTING = "executing"
    SETTLING = "settling"
    ENDED = "ended"


class TaskEnding(StrEnum):
    DONE = "done"
    FAILED = "failed"
    NO_BIDS = "no_bids"
    NO_RESULT = "no_result"
    REFUSED = "refused"
    ABORTED = "aborted"


class TaskOpening(Message):
    """What a run sends to become the task of its request."""

    request: TaskRequest
    run_id: str
    at: Instant


class TaskBriefing(Message):
    """What a task knows when it opens, frozen. `award` is there at once where the type is awarded without a window.

    `refusal` is why the task cannot run, `duplicate` means that another run has had its id.
    """

    bid_window_s: float
    award_window_s: float
    result_window_s: float
    heartbeat_s: float
    most_awards: int
    price: int
    built_in: bool = True
    agents: tuple[Agent, ...] = ()
    award: Award | None = None
    check_share: float = 0.0
    refusal: str = ""
    duplicate: bool = False
    unsigned_agents: bool = True


class AwardOrder(Message):
    """Award a task to the best of these bids, without agents that missed it. `built_in`: the platform can do it."""

    request: TaskRequest
    bids: tuple[Bid, ...]
    price: int
    at: Instant
    result_window_s: float
    built_in: bool


class Heartbeat(AgentMessage):
    """An outside executor reports that it is at work. A silent one forfeits its award."""

    progress: Text = ""


class WorkResult(AgentMessage):
    """What an outside executor hands in: a success with its quality, 0 to 1, or a failure with its kind.

    `reason`, `detail` and `attributes` become those of the task's outcome (`messages.observatory.TaskOutcome`).
    """

    failure: FailureKind | None = None
    summary: Text = ""
    quality: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    details: JsonObject = Field(default_factory=dict)
    reason: Reason = ""
    detail: Detail = ""
    attributes: Attributes = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_how_good(self) -> Self:
        if (self.failure is None) == (self.quality is None):
            raise ValueError("expected a quality from 0 to 1 with a success, and none with a failure")
        return self


class WorkOrder(Message):
    """Do a task by the platform itself, in the name of the agent that has its award, and settle it."""

    request: TaskRequest
    award: Award


class Settlement(Message):
    """How a user task went and what it moved: written once, with its outcome, transfer, standing and event.

    `price` is what the agent is paid. Where no agent had a part in the ending, nothing is paid and no outcome recorded.
    `failure_reason`, `failure_detail` and `attributes` are those of the outcome.
    """

    request: TaskRequest
    ending: TaskEnding
    reason: Text
    started_at: Instant
    at: Instant
    duration_s: float = 0.0
    agent_id: str | None = None
    price: int = 0
    failure: FailureKind | None = None
    quality: float | None = None
    summary: Text = ""
    details: dict[str, Any] = Field(default_factory=dict)
    failure_reason: Reason = ""
    failure_detail: Detail = ""
    attributes: Attributes = Field(default_factory=dict)


class TaskState(StoryState):
    """All that a task's workflow remembers, and carries over when it continues as new."""

    request: TaskRequest
    phase: TaskPhase = TaskPhase.OPENING
    last_message_at: Instant | None = None
    awarded_at: Instant | None = None
    opened: TaskBriefing | None = None
    bids_closed: bool = False
    missed: list[str] = Field(default_factory=list)
    progress: str = ""
    result: WorkResult | None = None
    settlement: Settlement | None = None

    @property
    def has_opened(self) -> bool:
        return self.phase is not TaskPhase.OPENING

    @property
    def briefing(self) -> TaskBriefing:
        """The briefing of a task that has opened."""
        assert self.opened is not None
        return self.opened


class TaskStatus(TaskState):
    """The state of a task and where it is: the answer to the query `status`, and the result of the workflow.

    `run_id` is that of the first run, which signatures are bound to. `receipts` have a query of their own, and the
    briefing names agents only while they may bid.
    """

    workflow_id: str
    run_id: str


class TypeRegistration(AgentMessage):
    """An agent that brings its own executor adds a task type. `payload_schema` is JSON Schema, for requesters."""

    name: Name
    # PostgreSQL holds no NUL in a text column, and the same write would be tried again for ever.
    description: Annotated[Text, StringConstraints(pattern=r"^[^\x00]*$")] = ""
    payload_schema: JsonObject = Field(default_factory=dict)
    direct: bool = False

    @property
    def workflow_id(self) -> str:
        """The workflow that takes it; its signature is bound to this, and to the message id as context."""
        return f"task-type:{self.name}:{self.message_id}"


class TaskTypeListing(Message):
    """A task type of the market. `executor` is empty where the platform does the work itself."""

    name: Name
    description: str = ""
    direct: bool = False
    executor: str = ""
    operator: str = ""
    payload_schema: dict[str, Any] = Field(default_factory=dict)
