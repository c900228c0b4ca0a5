"""Diagnosis: the facts an agent, or a person, may investigate one subject with.

Everything in it was recorded; nothing is a conclusion. It sets the time since the onset against the time before.
"""

from pydantic import Field

from ..failure_kinds import FailureKind
from .base import Instant, Message, Value
from .memory import Pattern
from .observatory import Counts
from .platform import ParameterState


class DurationSample(Message):
    """One recent task as an investigator sees it."""

    duration_s: float
    failure: FailureKind | None = None
    reason: str = ""


class ReasonCount(Message):
    """Failures of one reason, in the platform's own words, since the onset and before it.

    What has no reason goes by its kind (`timeout`), and what is rare by `other`. Counted of the newest tasks of both
    times: `good`, `bad` and `usual` say of how many. `examples` are messages of the newest failures, at most three,
    without what looks like a credential, and only where the operator shares details with agents.
    """

    reason: str
    since: int
    before: int
    examples: tuple[str, ...] = ()


class Contrast(Message):
    """Tasks that have one value of an attribute, set against the others, since the onset.

    `attribute` is the platform's, or one of ours: `agent`, `hour` (of its start, UTC) and `running` (how many other
    tasks of its type ran when it started), which are `nautilus.agent` and so on where the platform has an attribute of
    that name. `value` is a text without what looks like a credential, or a bound such as "over 12" for numbers: the
    median, or where it separates good from bad better, a quartile. The others are those with another value: a task
    without the attribute is left out. `difference` is their share of good tasks less that of the others; `interval`
    holds it with 95 % for all contrasts of the diagnosis together (Bonferroni). It stands out where that interval
    leaves out zero.
    """

    attribute: str
    value: str
    counts: Counts
    rest: Counts
    difference: float
    interval: tuple[float, float]

    @property
    def stands_out(self) -> bool:
        return not self.interval[0] <= 0 <= self.interval[1]


class Figures(Message):
    """Durations (seconds), quality (0 to 1) and cost of some tasks; None where nothing was measured."""

    tasks: int = 0
    p50_duration_s: float | None = None
    p95_duration_s: float | None = None
    mean_quality: float | None = None
    rated: int = 0
    mean_cost: float | None = None


class ParameterChange(Message):
    """One change of a parameter: declared, promoted, rolled back; `cycle_id` is empty for a declaration.

    `before` is None for a new parameter, and where it is not known. A declaration that came later is listed where it
    changed the value that production runs on; it is a person's, and nothing that an experiment may take back.
    """

    parameter: str
    at: Instant
    kind: str
    before: Value | None
    value: Value
    cycle_id: str = ""

    @property
    def is_first(self) -> bool:
        """Whether it gave a new parameter its value, and changed nothing that was in force."""
        return self.kind == "declared" and self.before is None


class TaskTypeDiagnosis(Message):
    """What is recorded of one task type since the window opened; `samples` are the latest, at most 400.

    `before` are its tasks of as long before the onset as was asked for. `good` and `bad` are the figures of the tasks
    since then by what a cycle on the subject would count as a success; `usual` those of all tasks before. They,
    `reasons` and `contrasts` are of the newest few thousand tasks; the counts are of all.
    """

    task_type: str
    counts: Counts
    failures: dict[FailureKind, int]
    samples: tuple[DurationSample, ...]
    before: Counts = Counts()
    reasons: tuple[ReasonCount, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    good: Figures = Figures()
    bad: Figures = Figures()
    usual: Figures = Figures()


class StandsOut(Message):
    """What the records of one task type show when a cycle opens, in short; a diagnosis has the whole.

    `reasons` are the failures whose share has grown most, of so many `tasks` since the onset against `tasks_before`;
    `contrasts` those that stand out; `changes` the last ones of the type's parameters, the newest first.
    """

    task_type: str
    tasks: int
    tasks_before: int
    reasons: tuple[ReasonCount, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    changes: tuple[ParameterChange, ...] = ()


class PastEnding(Message):
    """How an earlier cycle on the same subject ended, so that nobody proposes the same thing twice.

    `before` is the value it was to replace, and `effect` the difference of shares that its experiment measured.
    """

    cycle_id: str
    ending: str
    parameter: str | None = None
    value: Value | None = None
    before: Value | None = None
    effect: float | None = None
    ended_at: Instant | None = None
    began_at: Instant | None = None


class Diagnosis(Message):
    """The facts an agent may investigate with, under 256 kB whatever the platform.

    `changes` are those of the last weeks, the newest first: the first suspect is the last one. `memory` is what earlier
    nightly runs have learned of similar subjects, at most 20 patterns, the nearest first. `left_out` names what was cut
    to make it fit, so that nobody takes what is missing for what is not there: where it names texts, the beginning of a
    long one stands for it, and a change that had one before may have no value before.
    """

    at: Instant
    window_start: Instant
    task_types: tuple[TaskTypeDiagnosis, ...]
    parameters: tuple[ParameterState, ...]
    endings: tuple[PastEnding, ...] = ()
    memory: tuple[Pattern, ...] = ()
    changes: tuple[ParameterChange, ...] = ()
    left_out: tuple[str, ...] = ()


class DiagnosisRequest(Message):
    """Ask for the facts about one subject, over the trailing window, or `since` an instant and over the window before.

    What is counted as a success is what a cycle on the subject's anomaly would count.
    """

    subject: str
    window_s: int = Field(default=86_400, ge=1, le=90 * 86_400)
    samples: int = Field(default=400, ge=0, le=400)
    since: Instant | None = None
