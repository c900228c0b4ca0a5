"""The cycle: what starts it, where it stands, how it ended."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from .base import Identifier, Instant, Message, Text
from .experiment import ExperimentDesign, PromotionResult, Reading
from .market import Agent, Award, AwardResult, Bid, RankedBid
from .observatory import Anomaly, Counts, Guardrail
from .platform import CycleRules, MarketRules, ParameterState
from .proposals import Ballot, Electorate, Proposal, Tally


class Phase(StrEnum):
    OPENING = "opening"
    BIDDING = "bidding"
    PROPOSING = "proposing"
    VOTING = "voting"
    QUEUED = "queued"
    EXPERIMENT = "experiment"
    APPROVAL = "approval"
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

    `baseline` are the affected tasks since the onset, `baselines` all by task type, `healthy` the affected ones of the
    baseline window before it; all by the `objectives` where the metric has any (see ExperimentDesign). `duplicate` says
    that another run has had this request.
    """

    cycle_id: Identifier
    attempt: int
    failed_attempts: int
    rules: CycleRules
    parameters: tuple[ParameterState, ...]
    agents: tuple[Agent, ...]
    baseline: Counts
    baselines: dict[str, Counts] = Field(default_factory=dict)
    healthy: Counts | None = None
    guardrails: tuple[Guardrail, ...] = ()
    objectives: dict[str, Guardrail] = Field(default_factory=dict)
    duplicate: bool = False
    # A briefing that does not say is of a cycle that opened before signatures were checked, and goes on as it was.
    unsigned_agents: bool = True
    market: MarketRules = MarketRules()


class Act(Message):
    """A person steers a cycle; who and why go to the ledger. `seconds` is for `extend`, `exposure` for `widen`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message_id: Identifier
    who: Identifier
    why: Annotated[Text, StringConstraints(min_length=1)]
    seconds: float | None = Field(default=None, gt=0, le=366 * 86_400)
    exposure: float | None = Field(default=None, gt=0, le=1)


class RecordedAct(Message):
    """An act as the ledger keeps it."""

    cycle_id: Identifier
    kind: str
    act: Act
    at: Instant


class Receipt(Message):
    """What became of a message: accepted, or refused with the reason. `sender` is empty for a forgery."""

    message_id: str
    kind: str
    accepted: bool
    reason: str = ""
    sender: str = ""


class CycleEnd(Message):
    """The ending as the ledger records it, with what the proposer earns, or pays where its change did harm.

    `reward` is the price, `bonus` for the measured improvement, `forecast` for the honest prediction (or against it).
    """

    cycle_id: Identifier
    subject: str
    ending: Ending
    reason: str
    at: Instant
    agent_id: str | None = None
    result: AwardResult | None = None
    reward: int = 0
    penalty: int = 0
    proposal: Proposal | None = None
    tally: Tally | None = None
    reading: Reading | None = None
    watch: Reading | None = None
    bonus: int = 0
    forecast: int = 0


class CycleState(BaseModel):
    """All that a cycle remembers, and what it carries over when it continues as new. Only its workflow changes it.

    One window at a time is open; `phase` says which and `deadline` until when. Each step of the story fills in its
    product, and a step whose product is there is not taken again. `keys` are the agents' as they were read again after
    a change; None: they are as the briefing and the electorate have them.
    """

    request: CycleRequest
    phase: Phase = Phase.OPENING
    deadline: Instant | None = None
    window_open: bool = False
    briefing: Briefing | None = None
    bids: dict[str, Bid] = Field(default_factory=dict)
    ranked: list[RankedBid] | None = None
    award: Award | None = None
    proposal: Proposal | None = None
    electorate: Electorate | None = None
    ballots: dict[str, Ballot] = Field(default_factory=dict)
    extended: bool = False
    tally: Tally | None = None
    design: ExperimentDesign | None = None
    registered: bool = False
    exposure: float = 1.0
    reading: Reading | None = None
    approval: Act | None = None
    promotion: PromotionResult | None = None
    watch: Reading | None = None
    end: CycleEnd | None = None
    paused_at: Instant | None = None
    abort: Act | None = None
    veto: Act | None = None
    story: list[str] = Field(default_factory=list)
    receipts: dict[str, Receipt] = Field(default_factory=dict)
    refused: int = 0
    unread: str = ""
    keys: dict[str, str] | None = None

    @property
    def known(self) -> Briefing:
        """The briefing of a cycle that has opened."""
        assert self.briefing is not None
        return self.briefing

    @property
    def proposed(self) -> Proposal:
        """The proposal of a cycle that has one."""
        assert self.proposal is not None
        return self.proposal

    @property
    def parameter(self) -> ParameterState:
        """The parameter that the proposal is about, as it was when the cycle opened."""
        return next(p for p in self.known.parameters if p.declaration.key == self.proposed.parameter)


class CycleStatus(Message):
    """Where a cycle stands: the answer to the query `status`.

    `refused` counts messages that were not taken; `unread` is the latest (of the first 100) that could not be read.
    `baseline` are the affected tasks since the onset, and the good ones of them by the `objectives`; a proposal must
    promise `minimum_effect` more, a bid ask `reward` at most.
    """

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
    paused: bool = False
    refused: int = 0
    unread: str = ""
    baseline: Counts | None = None
    minimum_effect: float = 0.05
    reward: int = 100
    watch: Reading | None = None
    objectives: dict[str, Guardrail] = Field(default_factory=dict)


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
