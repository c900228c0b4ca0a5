"""Evidence: what the records of one case show, before an agent judges them.

Pure functions and values. A limit is any declared number of seconds (or of a multiple of seconds) that touches the task
type; it is a suspect when the tasks that timed out were cut off at its value. Values are legal by construction: within
the declared bounds, on a step, no further away than the largest change.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from schema.failure_kinds import FailureKind
from schema.messages.base import Value
from schema.messages.cycle import CycleStatus
from schema.messages.diagnosis import Diagnosis, DurationSample, PastEnding, TaskTypeDiagnosis
from schema.messages.memory import Change, Pattern, PatternState, Symptom, prevailing_reason
from schema.messages.observatory import Counts
from schema.messages.platform import SECONDS, Mode, ParameterKind, ParameterState
from schema.parameter_roles import Role, role_of

from .legal import legal_value

# A kill takes some milliseconds and a busy machine more, but nothing is killed by a limit before it is reached.
EARLY, LATE, LATE_S = 0.02, 0.15, 0.05
# Endings after which the same change is not worth another try.
FAILED = frozenset({"futile", "harmful", "rejected", "inconclusive", "rolled_back"})
# What an experiment has refuted, as against what a vote has only turned down.
REFUTED = frozenset({"futile", "harmful", "rolled_back"})
ALIKE = 0.05
# Distances to two limits that differ by less than this share do not distinguish them: memory may.
DISTINCT = 0.05
# Fewer good tasks show no slowest ones.
FEWEST_GOOD = 20


class Remedy(NamedTuple):
    """A change that memory holds, and the pattern that it is the claim of."""

    change: Change
    pattern: Pattern


@dataclass(frozen=True)
class Case:
    """One cycle and the records about it, from the anomaly's onset, or a day ago where there is none."""

    status: CycleStatus
    recent: Diagnosis

    @cached_property
    def records(self) -> TaskTypeDiagnosis | None:
        """The task type in question: the anomaly's, or of those in question the one that fails most."""
        anomaly, proposal = self.status.anomaly, self.status.proposal
        types = self.recent.task_types
        if anomaly is not None and anomaly.task_type:
            return next((t for t in types if t.task_type == anomaly.task_type), None)
        proposed = self.state(proposal.parameter) if proposal is not None else None
        if anomaly is None and proposed is not None:
            types = tuple(t for t in types if t.task_type in proposed.declaration.task_types)
        return max(types, key=lambda t: (t.counts.tasks - t.counts.successes, t.task_type), default=None)

    @property
    def samples(self) -> Sequence[DurationSample]:
        return self.records.samples if self.records else ()

    @cached_property
    def baseline(self) -> Counts:
        """What the cycle is measured by: the tasks of its type, or where none is named of all of them."""
        if self.status.anomaly is not None and not self.status.anomaly.task_type:
            return Counts.total(t.counts for t in self.recent.task_types)
        return self.records.counts if self.records else Counts()

    @property
    def before(self) -> Counts:
        """The same task type in the day before that."""
        return self.records.before if self.records else Counts()

    @property
    def endings(self) -> list[PastEnding]:
        """How cycles on this very anomaly ended, the newest first: what began before its onset tested another state."""
        onset = self.status.anomaly.onset if self.status.anomaly else None
        endings = self.recent.endings
        return [past for past in endings if onset is None or past.began_at is None or past.began_at >= onset]

    def state(self, parameter: str) -> ParameterState | None:
        """The parameter as production runs on it."""
        return next((s for s in self.recent.parameters if s.declaration.key == parameter), None)

    def limits(self) -> list["Limit"]:
        """Every limit of the task type: what explains most failures first, then what fixed similar cases before."""
        limits = [Limit(state, self.samples) for state in self.recent.parameters if is_limit(state, self.task_type)]

        def rank(limit: Limit) -> tuple[float, float, int, float, str]:
            nearness = min(limit.distance, 1.0) // DISTINCT
            return -limit.explained, nearness, -self._promise(limit.key), limit.distance, limit.key

        return sorted(limits, key=rank)

    @property
    def metric(self) -> str:
        return self.status.anomaly.metric if self.status.anomaly else "success_rate"

    @property
    def good_name(self) -> str:
        """What the share of good tasks is called."""
        return "good_share" if self.status.briefing.objectives else "success_rate"

    @property
    def good_verb(self) -> str:
        return "were good" if self.status.briefing.objectives else "succeeded"

    @property
    def touching(self) -> list[ParameterState]:
        """The parameters that may be tuned for the task type."""
        return [
            state
            for state in self.recent.parameters
            if self.task_type in state.declaration.task_types and state.mode is not Mode.OBSERVE
        ]

    @cached_property
    def slowest_good_s(self) -> float:
        """What all but a fiftieth of the tasks that succeeded took at most; 0 where too few did."""
        durations = sorted(s.duration_s for s in self.samples if s.failure is None)
        return durations[int(0.98 * len(durations))] if len(durations) >= FEWEST_GOOD else 0.0

    @cached_property
    def symptom(self) -> Symptom:
        """What is wrong here, in the words of the memory."""
        if self.records is None:
            return Symptom.of(self.metric, self.task_type, ())
        since = {counted.reason: counted.since for counted in self.records.reasons}
        before = {counted.reason: counted.before for counted in self.records.reasons}
        reason = prevailing_reason(since, self.records.counts.tasks, before, self.before.tasks)
        return Symptom.of(self.metric, self.task_type, self.records.failures.items(), reason)

    @cached_property
    def _remedies(self) -> list[Remedy]:
        """What is remembered of the same metric failing in the same way."""
        alike = [pattern for pattern in self.recent.memory if pattern.claim.symptom.is_like(self.symptom)]
        return [Remedy(pattern.claim.change, pattern) for pattern in alike]

    @cached_property
    def _own_remedies(self) -> list[Remedy]:
        """Those of this task type."""
        return [remedy for remedy in self._remedies if remedy.pattern.claim.symptom.task_type == self.task_type]

    def recalled(self, parameter: str, value: Value) -> Pattern | None:
        """What is remembered of a change in this direction: for this very symptom first, then of the nearest size."""
        change = self.change(parameter, value)
        if change is None:
            return None
        for remedies in (self._own_remedies, self._remedies):
            similar = [remedy for remedy in remedies if remedy.change.goes_like(change)]
            # Two limits of one task type are one role: what is known of the very parameter goes first.
            named = [remedy for remedy in similar if remedy.change.name == change.name] or similar
            if named:
                return min(named, key=lambda remedy: abs(remedy.change.size - change.size)).pattern
        return None

    def against(self, parameter: str, value: Value, endings: Collection[str] = REFUTED) -> str | None:
        """What speaks against a change: an experiment that ended so, or what is remembered of this very symptom.

        What refutes a longer way refutes its first part. What was inconclusive would be so again, until something else
        changes.
        """
        state, change = self.state(parameter), self.change(parameter, value)
        if state is None or change is None:
            return None
        for past in self.endings:
            is_against = past.ending in endings or (past.ending == "inconclusive" and not self._has_changed_since(past))
            if past.parameter == parameter and is_against and _covers(past, state.value, value):
                return f"an experiment on a change like this has ended {past.ending}"
        remedies = [remedy for remedy in self._own_remedies if remedy.change.parameter == parameter]
        alike = [remedy for remedy in remedies if remedy.change.is_like(change)]
        same_way = [remedy for remedy in remedies if remedy.change.goes_like(change)]
        further = [remedy for remedy in same_way if abs(remedy.change.size) > abs(change.size)]
        refuted = [r.pattern for r in alike or further if r.pattern.state is PatternState.REFUTED]
        return f"I remember that {refuted[0].text}" if refuted else None

    def _has_changed_since(self, past: PastEnding) -> bool:
        """Whether the task type runs on other values than when a cycle ended, as far as is known."""
        own = {state.declaration.key for state in self.touching}
        changed_at = [change.at for change in self.recent.changes if change.parameter in own and not change.is_first]
        return past.ended_at is not None and any(at > past.ended_at for at in changed_at)

    def _promise(self, parameter: str) -> int:
        """Whether lengthening a limit has fixed similar cases (1), has failed to (-1), or neither (0)."""
        longer = Change(parameter=parameter, verb="raise")
        own = [remedy.pattern.state for remedy in self._own_remedies if remedy.change.goes_like(longer)]
        states = own or [remedy.pattern.state for remedy in self._remedies if remedy.change.goes_like(longer)]
        if PatternState.SUPPORTED in states:
            return 1
        return -1 if PatternState.REFUTED in states else 0

    def change(self, parameter: str, value: Value) -> Change | None:
        """The change to `value` from what production runs on, as the memory knows changes."""
        state = self.state(parameter)
        return Change.of(parameter, state.value, value, role_of(state.declaration)) if state is not None else None

    @property
    def task_type(self) -> str:
        return self.records.task_type if self.records else ""

    @property
    def longest(self) -> float:
        """The longest duration in seconds that ended by itself; 0 where none did."""
        ended = (s.duration_s for s in self.samples if s.failure in (None, FailureKind.INVALID_RESULT))
        return max(ended, default=0.0)


def _covers(past: PastEnding, current: Value, value: Value) -> bool:
    """Whether a past change was like the one from `current` to `value`, or was refuted and went further."""
    if past.value is None:
        return False
    distance = _float_of(past.value) - _float_of(current)
    # NaN compares with nothing.
    part = (_float_of(value) - _float_of(current)) / distance if distance else math.nan
    is_alike = value == past.value or abs(part - 1) <= ALIKE
    return is_alike or (past.ending in REFUTED and 0 < part < 1)


def _float_of(value: Value) -> float:
    """NaN for what is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def is_limit(state: ParameterState, task_type: str) -> bool:
    """Whether a parameter is a time that tasks of the type may take."""
    declared = state.declaration
    is_time = declared.kind in (ParameterKind.FLOAT, ParameterKind.INTEGER) and declared.unit in SECONDS
    return is_time and role_of(declared) is Role.LIMIT and task_type in declared.task_types


@dataclass(frozen=True)
class Limit:
    """A declared time, and the failures that ended at it."""

    state: ParameterState
    samples: Sequence[DurationSample]

    @property
    def key(self) -> str:
        return self.state.declaration.key

    @property
    def seconds(self) -> float:
        return self.in_seconds(self.state.value)

    def in_seconds(self, value: Value) -> float:
        return float(value) * SECONDS[self.state.declaration.unit]

    @cached_property
    def at_limit(self) -> list[float]:
        """Durations of the timeouts that were cut off at the value in force."""
        low, high = self.seconds * (1 - EARLY), self.seconds + max(LATE * self.seconds, LATE_S)
        timeouts = [s.duration_s for s in self.samples if s.failure is FailureKind.TIMEOUT]
        return [duration_s for duration_s in timeouts if low <= duration_s <= high]

    @cached_property
    def failures(self) -> int:
        return sum(s.failure is not None for s in self.samples)

    @property
    def explained(self) -> float:
        """The share of the failures that ended at this limit."""
        return len(self.at_limit) / self.failures if self.failures else 0.0

    @property
    def distance(self) -> float:
        """How far from the limit they ended on average, relative to it: distinguishes two limits of similar values."""
        if not self.at_limit:
            return math.inf
        return sum(abs(duration_s / self.seconds - 1) for duration_s in self.at_limit) / len(self.at_limit)

    def candidates(self) -> list[int | float]:
        """Legal longer values, ascending and dense enough that the best is never far."""
        current = float(self.state.value)
        wanted = (*(current * 1.05**n for n in range(1, 60)), math.inf)
        values = {legal_value(self.state, seconds) for seconds in wanted}
        return sorted(value for value in values if value is not None and value > current)
