"""The report: what changed in a day or a fortnight, as recorded. A figure that is None was not measured."""

from enum import StrEnum

from pydantic import Field

from .base import Instant, Message, Value
from .cycle import CycleEnd
from .experiment import ExperimentDesign, Promotion, Reading
from .observatory import Anomaly, Interval
from .proposals import Proposal


class Stretch(Message):
    """A part of the period; `health` is the mean score of its snapshots, 0 to 100."""

    end: Instant
    tasks: Interval
    health: float | None


class RecordedChange(Message):
    """A promotion of a parameter, or its rollback; `before` is the value that it replaced."""

    at: Instant
    promotion: Promotion
    before: Value | None
    task_types: tuple[str, ...]
    rolled_back: bool


class IssueState(StrEnum):
    """What became of an anomaly. `fixed`: a change was promoted, its watch found no harm, and no person took part."""

    FIXED = "fixed"
    FIXED_BY_PERSON = "fixed with a person"
    TAKEN_BACK = "fixed, then taken back"
    CLOSED = "closed without a change"
    OPEN = "open"


class Issue(Message):
    """An anomaly and what became of it; `over_at` is when the cycle that fixed it ended, or the alarm closed."""

    anomaly: Anomaly
    state: IssueState
    attempts: int
    over_at: Instant | None


class ExperimentRecord(Message):
    """One experiment; `outcome` is its ending, or its verdict while the cycle goes on, or how far it is.

    `evidence` is the log e-value after so many finished tasks; empty where none has finished, or more than can be drawn
    in bounded time.
    """

    design: ExperimentDesign
    outcome: str
    reason: str
    opened_at: Instant | None
    closed_at: Instant | None
    proposal: Proposal | None
    approved: int
    rejected: int
    reading: Reading | None
    watch: Reading | None
    evidence: tuple[tuple[int, float], ...] = ()


class AgentStanding(Message):
    """What an agent did and earned in the period; `standing` and `balance` are those of now."""

    agent_id: str
    operator: str
    suspended: bool
    standing_before: float
    standing: float
    results: dict[str, int]
    earned: int
    balance: int


class Report(Message):
    """All facts of a period. Lists hold the newest first, a bounded number of them; counts are of all.

    `tracks` are the intervals of `interval_s` by task type, oldest first, of the whole platform under the empty name;
    one without tasks is missing. `before` and `after` are the first and the last stretch of what was recorded, and of a
    single interval there is no `before`. `issues` are those detected in the period or still open. The whole ledger is
    verified: `ledger_broken` is where it does not hold; `ledger_kinds` counts the period's entries. `escalations` are
    the newest cycles that called for a person, at most 10, each with its dossier.
    """

    since: Instant
    until: Instant
    interval_s: int
    success_floor: float
    before: Stretch | None
    after: Stretch | None
    tracks: dict[str, tuple[Interval, ...]]
    changes: tuple[RecordedChange, ...]
    issues: tuple[Issue, ...]
    issue_states: dict[IssueState, int] = Field(default_factory=dict)
    endings: dict[str, int]
    experiments: tuple[ExperimentRecord, ...]
    experiments_total: int
    agents: tuple[AgentStanding, ...]
    agents_total: int
    ledger_entries: int
    ledger_head: str
    ledger_broken: str | None
    ledger_kinds: dict[str, int]
    escalations: tuple[CycleEnd, ...] = ()

    @property
    def issues_total(self) -> int:
        """Anomalies detected in the period."""
        return sum(self.issue_states.values())
