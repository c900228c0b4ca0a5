"""The cycle: what starts it, where it stands, how it ended."""

from enum import StrEnum
from typing import Self

from pydantic import model_validator

from .base import Identifier, Instant, Message, Text
from .experiment import ExperimentDesign, Reading
from .market import Agent, Award, AwardResult, Bid
from .observatory import Anomaly, Counts
from .platform import CycleRules, ParameterState
from .proposals import Ballot, Proposal, Tally


class Phase(StrEnum):
    OPENING = "opening"
    BIDDING = "bidding"
    PROPOSING = "proposing"
    VOTING = "voting"
    QUEUED = "queued"
    EXPERIMENT = "experiment"
    PROMOTING = "promoting"
    WATCHING = "watching"
    ENDED = "ended"


class Ending(StrEnum):
    PROMOTED = "promoted"
    REJECTED = "rejected"
    NO_BIDS = "no_bids"
    NO_PROPOSAL = "no_proposal"
    FUTILE = "futile"
    HARMFUL = "harmful"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"
    ESCALATED = "escalated"


class CycleRequest(Message):
    """Opens a cycle, because of an anomaly or, from an agent, with a proposal of its own (at the vote).

    `request_id` is the natural key: the same request delivered twice is one cycle.
    """

    request_id: Identifier
    anomaly: Anomaly | None = None
    proposal: Proposal | None = None

    @model_validator(mode="after")
    def _one_reason(self) -> Self:
        if (self.anomaly is None) == (self.proposal is None):
            raise ValueError("expected exactly one of anomaly and proposal")
        return self

    @property
    def subject(self) -> str:
        """The lock: one cycle at a time is about this."""
        if self.anomaly is not None:
            return self.anomaly.subject
        assert self.proposal is not None
        return f"proposal:{self.proposal.parameter}"


def workflow_id(subject: str) -> str:
    """The id of the cycle about `subject`; Temporal lets only one of an id run."""
    return f"cycle:{subject}"


class CycleOpening(Message):
    """A run asks to become the cycle of its request."""

    request: CycleRequest
    workflow_id: str
    run_id: str
    at: Instant


class Briefing(Message):
    """What a cycle knows when it opens: frozen, so that nothing changes the rules under a running cycle.

    `baseline` are the affected tasks since the onset, `healthy` those of the baseline window before it. `duplicate`
    says that another run has had this request.
    """

    cycle_id: Identifier
    attempt: int
    failed_attempts: int
    rules: CycleRules
    parameters: tuple[ParameterState, ...]
    agents: tuple[Agent, ...]
    baseline: Counts
    healthy: Counts | None = None
    duplicate: bool = False


class Abort(Message):
    """A person ends the cycle, and says why."""

    message_id: Identifier
    who: Identifier
    why: Text


class Receipt(Message):
    """What became of a message: accepted, or refused with the reason."""

    message_id: str
    kind: str
    accepted: bool
    reason: str = ""


class CycleStatus(Message):
    """Where a cycle stands: the answer to the query `status`."""

    workflow_id: str
    cycle_id: str
    subject: str
    phase: Phase
    attempt: int
    deadline: Instant | None = None
    anomaly: Anomaly | None = None
    bids: tuple[Bid, ...] = ()
    award: Award | None = None
    proposal: Proposal | None = None
    ballots: tuple[Ballot, ...] = ()
    voters: tuple[str, ...] = ()
    tally: Tally | None = None
    design: ExperimentDesign | None = None
    reading: Reading | None = None
    ending: Ending | None = None
    reason: str = ""
    story: tuple[str, ...] = ()


class CycleEnd(Message):
    """The ending as the ledger records it, with what the winner earns."""

    cycle_id: Identifier
    subject: str
    ending: Ending
    reason: str
    at: Instant
    agent_id: str | None = None
    result: AwardResult | None = None
    reward: int = 0
    proposal: Proposal | None = None
    tally: Tally | None = None
    reading: Reading | None = None
    watch: Reading | None = None


class VoteRecord(Message):
    """A closed vote, for the record."""

    cycle_id: Identifier
    proposal_id: str
    ballots: tuple[Ballot, ...]
    tally: Tally
    at: Instant


class CycleResult(Message):
    """The result of the workflow: the whole story, readable when no worker runs."""

    status: CycleStatus
    end: CycleEnd | None
    page: str = ""
