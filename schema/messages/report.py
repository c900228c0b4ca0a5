"""The report: what a night or a fortnight changed, as it was recorded. A figure that is None was not measured."""

from enum import StrEnum

from pydantic import Field

from .base import Instant, Message, Value
from .experiment import ExperimentDesign, Reading
from .ledger import EntryKind
from .observatory import Anomaly, Counts


class Stretch(Message):
    """A part of the period, from roll-ups; the 95th percentile is that of the last snapshot taken in it."""

    start: Instant
    end: Instant
    counts: Counts = Counts()
    mean_duration_s: float | None = None
    p95_duration_s: float | None = None


class Point(Message):
    """One interval of a chart; an interval without tasks is no point."""

    start: Instant
    counts: Counts


class Track(Message):
    """The intervals of one task type, oldest first; of the whole platform where `task_type` is empty."""

    task_type: str
    points: tuple[Point, ...] = ()


class HealthPoint(Message):
    """The mean health score, 0 to 100, of the snapshots of one interval."""

    start: Instant
    health: float


class Change(Message):
    """A promotion of a parameter, or its rollback."""

    at: Instant
    parameter: str
    before: Value | None
    value: Value
    task_types: tuple[str, ...]
    rolled_back: bool
    cycle_id: str
    reason: str


class IssueState(StrEnum):
    """What became of an anomaly. `fixed`: a change was promoted, its watch found no harm, and no person had a hand."""

    FIXED = "fixed"
    FIXED_BY_PERSON = "fixed with a person"
    TAKEN_BACK = "fixed, then taken back"
    CLOSED = "closed without a change"
    OPEN = "open"


class Issue(Message):
    """An anomaly of the period and what became of it; `fixed_at` is the end of the cycle that fixed it."""

    anomaly: Anomaly
    state: IssueState
    attempts: int = 0
    last_ending: str | None = None
    fixed_at: Instant | None = None
    closed_at: Instant | None = None


class EvidencePoint(Message):
    """The evidence after so many finished tasks; logs of e-values for the change and for harm."""

    tasks: int
    log_e: float
    log_e_harm: float


class ExperimentRecord(Message):
    """One experiment, `waiting`, `running` or `closed`, with its verdict or how far it is.

    `evidence` is empty where no task has finished, or more than can be drawn in bounded time.
    """

    design: ExperimentDesign
    state: str
    queued_at: Instant
    opened_at: Instant | None = None
    closed_at: Instant | None = None
    agent_id: str = ""
    root_cause: str = ""
    votes: str = ""
    ending: str | None = None
    ending_reason: str = ""
    reading: Reading | None = None
    watch: Reading | None = None
    evidence: tuple[EvidencePoint, ...] = ()


class StandingPoint(Message):
    at: Instant
    standing: float
    result: str


class AgentRecord(Message):
    """What an agent did and earned in the period; `standing` and `balance` are those of now."""

    agent_id: str
    operator: str
    suspended: bool
    standing_before: float
    standing: float
    moves: tuple[StandingPoint, ...] = ()
    awards: int = 0
    proposals: int = 0
    ballots: int = 0
    results: dict[str, int] = Field(default_factory=dict)
    earned: int = 0
    paid: int = 0
    balance: int = 0


class LedgerLine(Message):
    sequence: int
    at: Instant
    kind: str
    subject: str
    what: str
    digest: str


class LedgerSummary(Message):
    """The whole chain, verified, and the period's part of it; `broken` says where it does not hold."""

    entries: int
    head: str
    broken: str | None
    kinds: dict[str, int] = Field(default_factory=dict)
    latest: tuple[LedgerLine, ...] = ()


class OpenCycle(Message):
    cycle_id: str
    subject: str
    attempt: int
    opened_at: Instant
    stands: str


class Report(Message):
    """All facts of a period. Lists hold the newest, a bounded number of them; counts are of all.

    `interval_s` is the width of a chart's interval. `before` and `after` are the first and the last stretch in which
    the platform could be measured.
    """

    since: Instant
    until: Instant
    interval_s: int
    success_floor: float
    before: Stretch | None = None
    after: Stretch | None = None
    tracks: tuple[Track, ...] = ()
    health: tuple[HealthPoint, ...] = ()
    changes: tuple[Change, ...] = ()
    issues: tuple[Issue, ...] = ()
    issue_states: dict[IssueState, int] = Field(default_factory=dict)
    endings: dict[str, int] = Field(default_factory=dict)
    experiments: tuple[ExperimentRecord, ...] = ()
    experiments_total: int = 0
    agents: tuple[AgentRecord, ...] = ()
    agents_total: int = 0
    ledger: LedgerSummary
    open_anomalies: tuple[Issue, ...] = ()
    open_cycles: tuple[OpenCycle, ...] = ()

    @property
    def issues_total(self) -> int:
        """Anomalies detected in the period."""
        return sum(self.issue_states.values())

    @property
    def rolled_back(self) -> int:
        """Promotions taken back in the period, by their watch or by a person."""
        return self.ledger.kinds.get(EntryKind.PARAMETER_ROLLED_BACK, 0)

    @property
    def missing(self) -> tuple[str, ...]:
        """What cannot be shown because nothing of it was recorded in the period, and what would record it."""
        absent = {
            "task outcomes: a platform records them through the Recorder, or `nautilus outcomes import`": self.before,
            "snapshots: the schedule metrics_snapshot takes them while a worker runs": self.health,
            "experiments: one follows each proposal that is voted for": self.experiments,
            "agents: `nautilus agent register` or `nautilus up` registers them": self.agents,
            "ledger entries: the first experiment or act writes them": self.ledger.entries,
        }
        return tuple(what for what, found in absent.items() if not found)
