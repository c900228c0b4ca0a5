"""Memory: what the nightly runs have learned, its evidence, and how certain it is."""

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Self, get_args

from pydantic import Field

from ..canonical import content_hash
from .base import Instant, Message, Text, Value
from .platform import Aim
from .texts import named

# Changes are alike when their factors round to the same half octave: 90 -> 180 s and 1 -> 2.1 s are both doublings.
SIZES_PER_OCTAVE = 2


class PatternKind(StrEnum):
    """A change fixes a symptom; an hour of the week is low; an agent is better at a task type than the others."""

    REMEDY = "remedy"
    WEEKLY_LOW = "weekly_low"
    SKILL = "skill"


class PatternState(StrEnum):
    """Where the interval lies. `contested`: on both sides, because the evidence disagrees or is too little."""

    SUPPORTED = "supported"
    CONTESTED = "contested"
    REFUTED = "refuted"


class Symptom(Message):
    """What is wrong, in terms that two cases can share. `failure` is the dominant kind; empty without failures."""

    metric: str
    task_type: str
    failure: str = ""

    @classmethod
    def of(cls, metric: str, task_type: str, failures: Iterable[tuple[str, int]]) -> Self:
        """The symptom of a task type, from its failures by kind; of equally frequent kinds, the last by name.

        Slow and costly tasks have nothing to do with how others fail.
        """
        _, most = max(((count, kind) for kind, count in failures), default=(0, ""))
        if metric in get_args(Aim):
            most = ""
        return cls(metric=metric, task_type=task_type, failure=str(most))


class Change(Message):
    """A change of a parameter, relative to what it was. `verb` is raise, lower or set; `value` is what it was set to.

    Of a long text, `value` is the beginning of its content's hash: a claim names a text and does not carry it. `size`
    counts half octaves: 2 is a doubling, -2 a halving; 0 where the values have no ratio.
    """

    parameter: str
    verb: str
    size: int = 0
    value: Value | None = None

    @classmethod
    def of(cls, parameter: str, old: Value, new: Value) -> Self:
        """The change from `old` to `new`; the smallest one of a size is a half octave."""
        numbers = [v for v in (old, new) if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) < 2:
            return cls(parameter=parameter, verb="set", value=named(new))
        before, after = numbers
        sign = 1 if after > before else -1
        octaves = abs(math.log2(after / before)) if before > 0 and after > 0 else None
        size = 0 if octaves is None else sign * max(1, round(SIZES_PER_OCTAVE * octaves))
        return cls(parameter=parameter, verb="raise" if sign > 0 else "lower", size=size)

    def is_like(self, other: Self) -> bool:
        """The same direction and size, of a parameter of the same name (its task type may be another)."""
        return self.goes_like(other) and self.size == other.size

    def goes_like(self, other: Self) -> bool:
        """The same direction, whatever the size."""
        return (self.name, self.verb, self.value) == (other.name, other.verb, other.value)

    @property
    def name(self) -> str:
        """The parameter's name without what it belongs to: `timeout_s`."""
        return self.parameter.rpartition(".")[2]

    @property
    def text(self) -> str:
        if self.verb == "set":
            return f"setting {self.parameter} to {self.value}"
        factor = f" to about {2 ** (self.size / SIZES_PER_OCTAVE):.2g} times" if self.size else ""
        return f"{'raising' if self.verb == 'raise' else 'lowering'} {self.parameter}{factor}"


class Claim(Message):
    """What a pattern claims, without its certainty. `hour` is the hour of the week in UTC, 0 is Monday's first."""

    kind: PatternKind
    symptom: Symptom
    change: Change | None = None
    hour: int | None = Field(default=None, ge=0, lt=168)
    agent_id: str = ""

    @property
    def pattern_id(self) -> str:
        """The hash of the content: the same claim is the same pattern, wherever it is learned."""
        return content_hash(self.model_dump(mode="json"))[:12]


class Observation(Message):
    """One piece of evidence about a claim. `source` identifies it: a cycle, a week, a day.

    `support` and `against` count the cases for the claim and against it; `effect` is a difference of rates with its
    standard error, where one was measured; `ending` is how a cycle ended.
    """

    source: str
    at: Instant
    support: int = 0
    against: int = 0
    effect: float | None = None
    error: float | None = None
    ending: str = ""


class Memory(Message):
    """A claim and its observations, oldest first."""

    claim: Claim
    observations: tuple[Observation, ...]


class Pattern(Message):
    """A claim as it is judged at one instant.

    `support` and `against` are weighed by age; `successes` of `tries` are not. `interval` holds the share of support,
    and `reference` is the share that would be usual: None where no other agent has done any. `effect` is pooled,
    with a 95 % interval.
    """

    pattern_id: str
    claim: Claim
    state: PatternState
    text: Text
    successes: int
    tries: int
    support: float
    against: float
    interval: tuple[float, float]
    reference: float | None
    effect: float | None
    effect_interval: tuple[float, float] | None
    first_seen: Instant
    last_seen: Instant


class Lesson(Message):
    """What one consolidation has learned, as text."""

    at: Instant
    text: Text
