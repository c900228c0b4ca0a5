"""Memory: what the nightly runs have learned, its evidence, and how certain it is."""

import math
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Self, get_args

from ..canonical import content_hash
from ..failure_kinds import FailureKind
from ..parameter_roles import Role
from .base import Instant, Message, Text, Value
from .platform import Aim
from .texts import named

# Changes are alike when their factors round to the same half octave: 90 -> 180 s and 1 -> 2.1 s are both doublings.
SIZES_PER_OCTAVE = 2
# Parameters without a role have nothing in common but a name.
NO_ROLES = ("", Role.OTHER)
# Failures without a label of their own are counted by their kind, and what is rare as `other`: neither is a reason.
NO_REASONS = frozenset({"", "other", *FailureKind})
# A growth by less than this share of all failures is no news.
LEAST_GROWTH = 0.1


class PatternKind(StrEnum):
    """A remedy: a change fixes a symptom. What other kinds earlier releases learned is not read."""

    REMEDY = "remedy"


class PatternState(StrEnum):
    """Where the interval lies. `contested`: on both sides, because the evidence disagrees or is too little."""

    SUPPORTED = "supported"
    CONTESTED = "contested"
    REFUTED = "refuted"


class Symptom(Message):
    """What is wrong, in terms that two cases can share. `failure` is the dominant kind; empty without failures.

    `reason` is the platform's own word for the failures that became more frequent; empty where there is none.
    """

    metric: str
    task_type: str
    failure: str = ""
    reason: str = ""

    @classmethod
    def of(cls, metric: str, task_type: str, failures: Iterable[tuple[str, int]], reason: str = "") -> Self:
        """The symptom of a task type, from its failures by kind; of equally frequent kinds, the last by name.

        Slow and costly tasks have nothing to do with how others fail.
        """
        if metric in get_args(Aim):
            return cls(metric=metric, task_type=task_type)
        _, most = max(((count, kind) for kind, count in failures), default=(0, ""))
        return cls(metric=metric, task_type=task_type, failure=str(most), reason=reason)

    def is_like(self, other: Self) -> bool:
        """The same metric, and the same reason or, where one of the two has none, the same kind of failure."""
        if self.metric != other.metric:
            return False
        if self.reason and other.reason:
            return self.reason == other.reason
        return self.failure == other.failure

    @property
    def cause(self) -> str:
        """The most specific word there is for how tasks fail."""
        return self.reason or self.failure


def prevailing_reason(since: Mapping[str, int], tasks: int, before: Mapping[str, int], tasks_before: int) -> str:
    """The reason whose share of the tasks grew most since the onset; of equals the last by name.

    Counts are of failures by reason, and of all tasks. Where no reason grew by more than chance may, as on a platform
    that was never better, it is the most frequent one; where most failures have no reason, there is none.
    """
    if not since:
        return ""
    growth = {reason: _share(n, tasks) - _share(before.get(reason, 0), tasks_before) for reason, n in since.items()}
    reason = max(growth, key=lambda name: (growth[name], name))
    if growth[reason] < LEAST_GROWTH * _share(sum(since.values()), tasks):
        reason = max(since, key=lambda name: (since[name], name))
    return "" if reason in NO_REASONS else reason


def _share(count: int, tasks: int) -> float:
    return count / tasks if tasks else 0.0


class Change(Message):
    """A change of a parameter, relative to what it was. `verb` is raise, lower or set; `value` is what it was set to.

    Of a long text, `value` is its name by hash. `size` counts half octaves: 2 is a doubling, -2 a halving; 0 where the
    values have no ratio. `role` is what the parameter is to its tasks (`schema.parameter_roles`); empty where that is
    not known.
    """

    parameter: str
    verb: str
    size: int = 0
    value: Value | None = None
    role: str = ""

    @classmethod
    def of(cls, parameter: str, old: Value, new: Value, role: str = "") -> Self:
        """The change from `old` to `new`; the smallest one of a size is a half octave."""
        numbers = [v for v in (old, new) if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) < 2:
            return cls(parameter=parameter, verb="set", value=named(new), role=role)
        before, after = numbers
        sign = 1 if after > before else -1
        octaves = abs(math.log2(after) - math.log2(before)) if before > 0 and after > 0 else None
        size = 0 if octaves is None else sign * max(1, round(SIZES_PER_OCTAVE * octaves))
        return cls(parameter=parameter, verb="raise" if sign > 0 else "lower", size=size, role=role)

    def is_like(self, other: Self) -> bool:
        """The same direction and size, of a parameter that does the same (its task type may be another)."""
        return self.goes_like(other) and self.size == other.size

    def goes_like(self, other: Self) -> bool:
        """The same direction, whatever the size."""
        is_same_way = (self.verb, self.value) == (other.verb, other.value)
        return is_same_way and self.concerns(other.role, other.name)

    def concerns(self, role: str, name: str = "") -> bool:
        """Whether its parameter has this role or, where one of the two has none, this name."""
        if self.role in NO_ROLES or role in NO_ROLES:
            return self.name == name
        return self.role == role

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


# Claims had these fields, and the ids of those that are remembered rest on them.
FORMER_FIELDS = {"hour": None, "agent_id": ""}


class Claim(Message):
    """What a pattern claims, without its certainty: that a change fixes a symptom."""

    kind: PatternKind
    symptom: Symptom
    change: Change

    @property
    def pattern_id(self) -> str:
        """The hash of the content: the same claim is the same pattern, wherever it is learned.

        A role or reason that is not known is no content: what was learned before there were any keeps its id.
        """
        content = self.model_dump(mode="json") | FORMER_FIELDS
        for part, field in (("symptom", "reason"), ("change", "role")):
            if not content[part][field]:
                del content[part][field]
        return content_hash(content)[:12]


class Observation(Message):
    """One piece of evidence about a claim. `source` identifies it: the cycle.

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

    `support` and `against` are weighed by age at `judged_at`; `successes` of `tries` are not. `interval` holds the
    share of support. `effect` is pooled, with a 95 % interval: the difference of the shares of good tasks, so that
    better is positive whatever the metric.
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
    effect: float | None
    effect_interval: tuple[float, float] | None
    first_seen: Instant
    last_seen: Instant
    judged_at: Instant | None = None


class Lesson(Message):
    """What one consolidation has learned, as text."""

    at: Instant
    text: Text
