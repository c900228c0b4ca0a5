"""Observatory: outcomes of tasks, what is counted of them, snapshots and anomalies."""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

from ..failure_kinds import FailureKind
from .base import Identifier, Instant, Message, Name, Reason, Text, of_at_most
from .schedules import Elevation

# Sums over any possible number of tasks stay finite.
MOST = 1e15


# PostgreSQL holds no NUL in a text.
Detail = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=500)]
MOST_ATTRIBUTES, LONGEST_ATTRIBUTE = 16, 100


def _attribute(value: Any) -> float | str:
    """A number, or a text; of true and false the text. Raises ValueError with one line for the two kinds."""
    match value:
        case bool():
            return "true" if value else "false"
        case str() if len(value) <= LONGEST_ATTRIBUTE and "\x00" not in value:
            return value
        case int() | float() if -MOST <= value <= MOST:
            return float(value)
    came = repr(value)[:LONGEST_ATTRIBUTE]
    raise ValueError(
        f"expected a number up to {MOST:g} or a text up to {LONGEST_ATTRIBUTE} characters, but {came} came"
    )


Attributes = Annotated[
    dict[Name, Annotated[float | str, BeforeValidator(_attribute)]],
    Field(max_length=MOST_ATTRIBUTES),
    of_at_most(MOST_ATTRIBUTES),
]


def reason_of(text: str) -> str:
    """A text, such as the name of an exception's class, as a reason: what a label may not hold becomes `_`."""
    return re.sub(r"[^A-Za-z0-9_.:/-]", "_", text).lstrip("_.:/-")[:64]


def detail_of(text: str) -> str:
    """A text, such as an exception's message, as a detail: its beginning, without what a database may not hold."""
    return text[:500].encode(errors="replace").decode().replace("\x00", "\ufffd")


class TaskOutcome(Message):
    """How one task of the platform went. `failure` is None for a success; `quality` is 0 to 1 where it was rated.

    `failure` is the coarse class of a failure, `reason` the platform's own label for it (`rate_limited`,
    `upstream_503`), `detail` its message. `attributes` are the platform's: model, region, tokens, queue depth.
    """

    task_id: Identifier
    task_type: Name
    started_at: Instant
    finished_at: Instant
    duration_s: float = Field(ge=0, le=MOST, allow_inf_nan=False)
    failure: FailureKind | None = None
    agent_id: str = Field(default="", pattern=r"^[ -~]*$", max_length=200)
    quality: float | None = Field(default=None, ge=0, le=1)
    cost: float = Field(default=0.0, ge=0, le=MOST, allow_inf_nan=False)
    reason: Reason = ""
    detail: Detail = ""
    attributes: Attributes = Field(default_factory=dict)


class Fate(StrEnum):
    """What became of an outcome that was reported.

    `known`: recorded before with the same content. `conflicting`: recorded before with other content, which stands.
    `too_old`: it finished before the instant up to which outcomes have been expired.
    """

    NEW = "new"
    KNOWN = "known"
    CONFLICTING = "conflicting"
    TOO_OLD = "too_old"


class Counts(Message):
    """Tasks and successes of one series in one interval."""

    tasks: int = 0
    successes: int = 0

    @classmethod
    def total(cls, counts: Iterable["Counts"]) -> "Counts":
        """All of them as one."""
        each = tuple(counts)
        return Counts(tasks=sum(c.tasks for c in each), successes=sum(c.successes for c in each))

    @property
    def rate(self) -> float | None:
        """Successes per task; None where there was no task, which is not the same as zero."""
        return self.successes / self.tasks if self.tasks else None


class GuardrailKind(StrEnum):
    """What must not get worse: each a share of good tasks, so that one test serves all; no means.

    `rated` is of the tasks that succeeded: where ratings decide, no change may win by what gets rated.
    """

    COMPLETED = "completed"
    FAST = "fast"
    WELL_RATED = "well_rated"
    CHEAP = "cheap"
    RATED = "rated"


class Guardrail(Message):
    """A task is good when it succeeds, is no slower (or costlier) than `bound`, is rated, or rated at least `bound`.

    `bound` is the baseline's 95th percentile of duration (seconds) or cost, or its median quality; `usual` the share of
    good tasks in the baseline. A failed or cut-off task is slow. `margin` is the loss of share worth stopping for.
    """

    kind: GuardrailKind
    bound: float
    usual: float
    margin: float


class Interval(Message):
    """One roll-up interval of one task type, as the detector and the report read it.

    `reasons` are failures by reason, which only `rules.reasons.merged` adds up; without a reason, by kind.
    """

    start: Instant
    counts: Counts
    failures: dict[FailureKind, int] = Field(default_factory=dict)
    mean_duration_s: float | None = None
    reasons: dict[str, int] = Field(default_factory=dict)


class Anomaly(Message):
    """A departure from what is normal. `task_type` is empty where no single type explains it.

    `escalation` is why a person is needed at once: no cycle can be about it. It is empty where one can.
    """

    anomaly_id: Identifier
    metric: Name
    task_type: str
    onset: Instant
    detected_at: Instant
    observed: Counts
    baseline: Counts | None
    reason: Text
    escalation: str = ""

    @property
    def subject(self) -> str:
        """What the anomaly is about; the cycle's workflow id is made from it."""
        return f"{self.metric}:{self.task_type or 'platform'}"


class AnomalyRecord(Message):
    """An anomaly as the record has it; open until `closed_at`."""

    anomaly: Anomaly
    closed_at: Instant | None


class Measures(Message):
    """Durations (seconds), quality and spending of some tasks; None where nothing was measured.

    The quantiles are those of completed tasks, right within 1%; the mean is of all that finished. The market's are the
    share of tasks that were awarded of those whose bidding was over, and how many agents did tasks.
    """

    mean_duration_s: float | None = None
    p50_duration_s: float | None = None
    p95_duration_s: float | None = None
    mean_quality: float | None = None
    spending: float = 0.0
    market_fill_rate: float | None = None
    active_agents: int = 0


class Snapshot(Message):
    """One snapshot of the platform. `health` is 0 to 100, or None where nothing could be measured.

    `measures` are by task type; `measured` are the parts of health that this platform has ever measured. `escalations`
    are the open anomalies that need a person, oldest first: what and why. `reasons` are failures by task type and by
    reason (`rules.reasons`), of types that had some.
    """

    at: Instant
    interval_s: int
    platform: Counts
    task_types: dict[str, Counts]
    mean_duration_s: float | None
    mean_quality: float | None
    market_fill_rate: float | None
    active_agents: int
    throughput_per_h: float
    health: float | None
    reason: Text = ""
    elevation: Elevation = Elevation()
    p50_duration_s: float | None = None
    p95_duration_s: float | None = None
    spending: float = 0.0
    measures: dict[str, Measures] = Field(default_factory=dict)
    measured: tuple[str, ...] = ()
    escalations: tuple[str, ...] = ()
    reasons: dict[str, dict[str, int]] = Field(default_factory=dict)
