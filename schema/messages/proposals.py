"""Proposals: what an agent proposes, how others vote on it."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from ..canonical import content_hash
from .base import AgentMessage, Identifier, Instant, Message, Text, Value
from .platform import ParameterKey

# A cycle carries every agent's: a hundred such still fit in one payload of Temporal, which holds 2 MB.
LARGEST_DECLINE_BYTES = 16_000


class Evidence(Message):
    """One claim and the figures it rests on, so that a voter can check it against the same records."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    claim: Text
    figures: dict[str, float] = Field(default_factory=dict)


class Proposal(AgentMessage):
    """Change one declared parameter, because of a root cause, with a forecast that the experiment will judge.

    `predicted_rate` is the share of good tasks expected of the affected ones under `value` (0 to 1), as the cycle's
    `objectives` count them; without any, the success rate. `base_version` is the parameter's version that the agent
    investigated.
    """

    parameter: ParameterKey
    base_version: int = Field(ge=1)
    value: Value
    root_cause: Text
    evidence: tuple[Evidence, ...] = Field(min_length=1, max_length=20)
    predicted_rate: float = Field(gt=0, lt=1)
    rollback_plan: Text

    @property
    def proposal_id(self) -> str:
        """The hash of the content: any edit is another proposal."""
        return content_hash(self.model_dump(mode="json", exclude={"message_id", "signature"}))[:16]


class Decline(AgentMessage):
    """An agent has investigated and found nothing worth trying: it does not bid, and says why.

    `findings` are for the person who is called where too many agree.
    """

    reason: Annotated[Text, StringConstraints(min_length=1)]
    findings: tuple[Evidence, ...] = Field(default=(), max_length=20)

    @model_validator(mode="after")
    def _small(self) -> Self:
        size = len(self.model_dump_json().encode())
        if size > LARGEST_DECLINE_BYTES:
            raise ValueError(f"expected a decline of at most {LARGEST_DECLINE_BYTES} bytes of JSON, but {size} came")
        return self


class Choice(StrEnum):
    APPROVE = "approve"
    REJECT = "reject"
    ABSTAIN = "abstain"


class Ballot(AgentMessage):
    """One agent's vote on one proposal, with its own reading of the evidence."""

    proposal_id: Identifier
    choice: Choice
    reason: Text = ""


class Voter(Message):
    """A member of the electorate, frozen when voting opens. `weight` follows standing."""

    agent_id: Identifier
    operator: Identifier
    weight: float
    public_key: str | None = None


class Tally(Message):
    """Where a vote stands. `decided` is true once no remaining ballot can change `accepted`.

    `operators` counts those with a ballot for or against, and `quorum` is whether they are enough.
    """

    approve: int
    reject: int
    abstain: int
    approve_weight: float
    reject_weight: float
    operators: int
    quorum: bool
    decided: bool
    accepted: bool
    reason: str


class Electorate(Message):
    """Who may vote on one proposal; the proposer is not among them."""

    proposal_id: Identifier
    opened_at: Instant
    voters: tuple[Voter, ...]
    # An electorate without this field was frozen when an abstention counted for the quorum: its vote goes on as it was.
    abstentions_count: bool = True
