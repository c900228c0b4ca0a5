"""The cycle: what starts it, where it stands, how it ended."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, computed_field, model_validator

from .base import Identifier, Instant, Message
from .diagnosis import PastEnding, StandsOut
from .experiment import ExperimentDesign, PromotionResult, Reading
from .market import Agent, AwardResult, RankedBid
from .observatory import Anomaly, Counts, Guardrail
from .people import People
from .platform import CycleRules, MarketRules, ParameterState
from .proposals import Ballot, Decline, Electorate, Proposal, Tally
from .story import Act, StoryState


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


# In these phases a cycle waits for agents.
OPEN_PHASES = (Phase.BIDDING, Phase.PROPOSING, Phase.VOTING)


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
    """What a run sends to become the cycle of its request."""

    request: CycleRequest
    workflow_id: str
    run_id: str
    at: Instant


class Briefing(Message):
    """What a cycle knows when it opens: frozen, so that nothing changes the rules under a running cycle.

    `baseline` are the affected tasks since the onset, or since the last change after it, `baselines` all by task type,
    `healthy` the affected ones of the baseline window before the onset; all by the `objectives` where the metric has
    any (see ExperimentDesign). `duplicate` means that another run has had this request.
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
    # A briefing without this field is of a cycle that opened before signatures were checked, and goes on as it was.
    unsigned_agents: bool = True
    market: MarketRules = MarketRules()
    # How earlier cycles on the subject ended, the newest first.
    endings: tuple[PastEnding, ...] = ()
    # None in a briefing of an earlier release, and where no task type is in question.
    stands_out: StandsOut | None = None
    people: People = People()


class RecordedAct(Message):
    """An act as the ledger keeps it.

    Where acts are signed, with what anybody needs to check it: the workflow and its first run, which the signature is
    for, and the person's key.
    """

    cycle_id: Identifier
    kind: str
    act: Act
    at: Instant
    workflow_id: str = ""
    run_id: str = ""
    public_key: str = ""


# Five lists of so many lines are under 20 kB, as `rules.dossier` cuts them: an event and a history carry it.
MOST_LINES, LONGEST_LINE = 12, 300
Line = Annotated[str, StringConstraints(max_length=LONGEST_LINE)]
Lines = Annotated[tuple[Line, ...], Field(max_length=MOST_LINES)]


class Dossier(Message):
    """What a person needs who takes over an escalated cycle, in short lines.

    `seen` is what was counted, `since` when it began and how often it was tried, `stands_out` what the records show,
    then what agents found, `tried` each attempt with its ending and effect, `look_at` where a person might look. Texts
    of agents are data.
    """

    seen: Lines = ()
    since: Lines = ()
    stands_out: Lines = ()
    tried: Lines = ()
    look_at: Lines = ()

    @property
    def sections(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The lists that have lines, each with its title for people."""
        titled = (
            ("What was seen", self.seen),
            ("Since when", self.since),
            ("What stands out", self.stands_out),
            ("What was tried", self.tried),
            ("What a person might look at", self.look_at),
        )
        return tuple((title, lines) for title, lines in titled if lines)


class CycleEnd(Message):
    """The ending as the ledger records it, with what the proposer earns, or pays where its change did harm.

    `reward` is the price, `bonus` for the measured improvement, `forecast` for the honest prediction (or against it).
    `dossier` is there where the cycle escalated: now a person has to act.
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
    dossier: Dossier | None = None


class CycleState(StoryState):
    """All that a cycle remembers, and what it carries over when it continues as new. Only its workflow changes it.

    One window at a time is open; `phase` names it and `deadline` ends it. Each step of the story fills in its
    product, and a step whose product is there is not taken again. `tally` is where the vote stands after each ballot;
    `voted` once it is closed and recorded.
    """

    request: CycleRequest
    phase: Phase = Phase.OPENING
    opened: Briefing | None = None
    ranked: list[RankedBid] | None = None
    proposal: Proposal | None = None
    electorate: Electorate | None = None
    ballots: dict[str, Ballot] = Field(default_factory=dict)
    extended: bool = False
    tally: Tally | None = None
    voted: bool = False
    design: ExperimentDesign | None = None
    registered: bool = False
    exposure: float = 1.0
    reading: Reading | None = None
    approval: Act | None = None
    promotion: PromotionResult | None = None
    watch: Reading | None = None
    end: CycleEnd | None = None
    paused_at: Instant | None = None
    veto: Act | None = None
    declines: dict[str, Decline] = Field(default_factory=dict)
    # As they were read again after a change; None: they are as the briefing has them.
    current_people: People | None = None
    # The signed acts that were done: receipts are displaced, and an act must not be done again.
    signed_acts: list[str] = Field(default_factory=list)

    @property
    def has_opened(self) -> bool:
        return self.phase is not Phase.OPENING

    @property
    def briefing(self) -> Briefing:
        """The briefing of a cycle that has opened."""
        assert self.opened is not None
        return self.opened

    @property
    def people(self) -> People:
        """Who may act, in a cycle that has opened."""
        return self.briefing.people if self.current_people is None else self.current_people

    @property
    def proposed(self) -> Proposal:
        """The proposal of a cycle that has one."""
        assert self.proposal is not None
        return self.proposal

    @property
    def counted(self) -> Tally:
        """Where the vote stands, in a cycle whose vote has opened."""
        assert self.tally is not None
        return self.tally

    @property
    def designed(self) -> ExperimentDesign:
        """The design of a cycle whose proposal was accepted."""
        assert self.design is not None
        return self.design

    @property
    def verdict(self) -> Reading:
        """The reading that concluded the experiment."""
        assert self.reading is not None
        return self.reading

    @property
    def parameter(self) -> ParameterState:
        """The parameter that the proposal is about, as it was when the cycle opened."""
        return next(p for p in self.briefing.parameters if p.declaration.key == self.proposed.parameter)


class CycleStatus(CycleState):
    """The state of a cycle and where it is: the answer to the query `status`.

    `run_id` is that of the first run, which signatures are bound to. `receipts` have a query of their own, and the
    briefing comes without the agents.
    """

    workflow_id: str
    run_id: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cycle_id(self) -> str:
        return self.opened.cycle_id if self.opened else ""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def subject(self) -> str:
        return self.request.subject

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ending(self) -> Ending | None:
        return self.end.ending if self.end else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def reason(self) -> str:
        return self.end.reason if self.end else ""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def voters(self) -> tuple[str, ...]:
        """Who may vote."""
        return tuple(voter.agent_id for voter in self.electorate.voters) if self.electorate else ()

    @property
    def anomaly(self) -> Anomaly | None:
        return self.request.anomaly

    def awaits(self, agent_id: str) -> bool:
        """Whether the cycle waits for a message of this agent."""
        match self.phase:
            case Phase.BIDDING:
                return agent_id not in self.bids and agent_id not in self.declines
            case Phase.PROPOSING:
                return self.award is not None and self.award.agent_id == agent_id and self.proposal is None
            case Phase.VOTING:
                return agent_id in self.voters and agent_id not in self.ballots
            case _:
                return False


class VoteRecord(Message):
    """A closed vote, for the record."""

    cycle_id: Identifier
    proposal_id: str
    ballots: tuple[Ballot, ...]
    tally: Tally
    at: Instant


class CycleResult(Message):
    """The result of the workflow: the whole story, readable when no worker runs; first how it ended."""

    end: CycleEnd | None
    page: str
    status: CycleStatus
