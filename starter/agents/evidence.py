"""Evidence: what the records of one case say, before anybody has an opinion.

Pure functions and values. A limit is any declared number of seconds (or of a multiple of seconds) that touches the task
type; it is a suspect when the tasks that timed out were cut off at its value. Values are legal by construction: within
the declared bounds, on a step, no further away than the largest change.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from schema.messages.base import Value
from schema.messages.cycle import CycleStatus
from schema.messages.diagnosis import Diagnosis, DurationSample, TaskTypeDiagnosis
from schema.messages.memory import Change, Pattern, PatternKind, PatternState, Symptom
from schema.messages.observatory import Counts, FailureKind
from schema.messages.platform import ParameterKind, ParameterState

SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3_600.0}
# A kill takes some milliseconds and a busy machine more, but nothing is killed by a limit before it is reached.
EARLY, LATE, LATE_S = 0.02, 0.15, 0.05
# How a change can have ended so that it is not worth the same try again.
FAILED = frozenset({"futile", "harmful", "rejected", "inconclusive", "rolled_back"})
# What an experiment has refuted, as against what a vote has only turned down.
REFUTED = frozenset({"futile", "harmful", "rolled_back"})
ALIKE = 0.05
# Distances to two limits that differ by less than this share tell nothing apart: memory may.
TELLING = 0.05


@dataclass(frozen=True)
class Case:
    """One cycle and the records about it, from the anomaly's onset, or a day ago where there is none."""

    status: CycleStatus
    recent: Diagnosis

    @cached_property
    def records(self) -> TaskTypeDiagnosis | None:
        """The task type in question: the anomaly's, or of those in question the one that fails most."""
        anomaly, proposal = self.status.anomaly, self.status.proposal
        types = {t.task_type: t for t in self.recent.task_types}
        if anomaly is not None and anomaly.task_type:
            return types.get(anomaly.task_type)
        if anomaly is None and proposal is not None and (state := self.state(proposal.parameter)) is not None:
            types = {name: t for name, t in types.items() if name in state.declaration.task_types}
        return max(types.values(), key=lambda t: (t.counts.tasks - t.counts.successes, t.task_type), default=None)

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

    def state(self, parameter: str) -> ParameterState | None:
        """The parameter as production runs on it."""
        return next((s for s in self.recent.parameters if s.declaration.key == parameter), None)

    def limits(self) -> list["Limit"]:
        """Every limit of the task type, the one that explains most failures first, then what mended the like before."""
        found = [Limit(state, self.samples) for state in self.recent.parameters if is_limit(state, self.task_type)]

        def rank(limit: Limit) -> tuple[float, float, int, float, str]:
            nearness = min(limit.distance, 1.0) // TELLING
            return -limit.explained, nearness, -self._promise(limit.key), limit.distance, limit.key

        return sorted(found, key=rank)

    @cached_property
    def symptom(self) -> Symptom:
        """What is wrong here, in the words of the memory."""
        metric = self.status.anomaly.metric if self.status.anomaly else "success_rate"
        return Symptom.of(metric, self.task_type, self.records.failures.items() if self.records else ())

    @cached_property
    def _remedies(self) -> list[tuple[Change, Pattern]]:
        """What is remembered of the same metric failing in the same way, of this task type first."""
        known = [(p.claim.change, p) for p in self.recent.memory if p.claim.kind is PatternKind.REMEDY]
        like = [(c, p) for c, p in known if c and p.claim.symptom.failure == self.symptom.failure]
        own = [(c, p) for c, p in like if p.claim.symptom.metric == self.symptom.metric]
        return sorted(own, key=lambda known: known[1].claim.symptom != self.symptom)

    def recalled(self, parameter: str, value: Value) -> Pattern | None:
        """What is remembered of a change in this direction: for this very symptom first, then of the nearest size."""
        change = self.change(parameter, value)
        like = [(c, p) for c, p in self._remedies if change and c.goes_like(change)]

        def far(known: tuple[Change, Pattern]) -> tuple[bool, int]:
            return known[1].claim.symptom != self.symptom, abs(known[0].size - change.size) if change else 0

        return min(like, key=far)[1] if like else None

    def against(self, parameter: str, value: Value, endings: Collection[str] = REFUTED) -> str | None:
        """What speaks against a change: an experiment that ended so, or what is remembered of this very symptom.

        What refutes a longer way refutes its first part.
        """
        state = self.state(parameter)
        for past in self.recent.endings:
            if state is None or past.parameter != parameter or past.ending not in endings or past.value is None:
                continue
            part = _part(float_of(state.value), float_of(value), float_of(past.value))
            if value == past.value or abs(part - 1) <= ALIKE or (past.ending in REFUTED and 0 < part < 1):
                return f"an experiment on a change like this has ended {past.ending}"
        if (change := self.change(parameter, value)) is None:
            return None
        own = [(c, p) for c, p in self._remedies if p.claim.symptom == self.symptom and c.parameter == parameter]
        alike = [p for c, p in own if c.is_like(change)]
        further = [p for c, p in own if c.goes_like(change) and abs(c.size) > abs(change.size)]
        refuted = next((p for p in alike or further if p.state is PatternState.REFUTED), None)
        return f"I remember that {refuted.text}" if refuted else None

    def _promise(self, parameter: str) -> int:
        """Whether lengthening a limit has mended the like (1), has failed to (-1), or neither (0)."""
        longer = Change(parameter=parameter, verb="raise")
        found = [p for c, p in self._remedies if c.goes_like(longer)]
        own = [p for p in found if p.claim.symptom == self.symptom]
        states = {p.state for p in own or found}
        return (PatternState.SUPPORTED in states) or -(PatternState.REFUTED in states)

    def change(self, parameter: str, value: Value) -> Change | None:
        """The change to `value` from what production runs on, as the memory knows changes."""
        state = self.state(parameter)
        return Change.of(parameter, state.value, value) if state is not None else None

    @property
    def task_type(self) -> str:
        return self.records.task_type if self.records else ""

    @property
    def longest(self) -> float:
        """The longest duration in seconds that ended by itself; 0 where none did."""
        ended = (s.duration_s for s in self.samples if s.failure in (None, FailureKind.INVALID_RESULT))
        return max(ended, default=0.0)


def _part(current: float, value: float, past: float) -> float:
    """Which part of the way to a past value a value goes; NaN, which compares with nothing, where there is no way."""
    return (value - current) / (past - current) if past != current else math.nan


def float_of(value: Value) -> float:
    """NaN for what is no number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def is_limit(state: ParameterState, task_type: str) -> bool:
    """Whether a parameter is a time that touches the task type."""
    declared = state.declaration
    numeric = declared.kind in (ParameterKind.FLOAT, ParameterKind.INTEGER)
    return numeric and declared.unit in SECONDS and task_type in declared.task_types


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
        return [s.duration_s for s in self.samples if s.failure is FailureKind.TIMEOUT and low <= s.duration_s <= high]

    @cached_property
    def failures(self) -> int:
        return sum(s.failure is not None for s in self.samples)

    @property
    def explained(self) -> float:
        """The share of the failures that ended at this limit."""
        return len(self.at_limit) / self.failures if self.failures else 0.0

    @property
    def distance(self) -> float:
        """How far from the limit they ended on average, relative to it: tells two limits of like values apart."""
        return sum(abs(d / self.seconds - 1) for d in self.at_limit) / len(self.at_limit) if self.at_limit else math.inf

    def candidates(self) -> list[int | float]:
        """Legal longer values, ascending and dense enough that the best is never far."""
        current = float(self.state.value)
        wanted = (*(current * 1.05**n for n in range(1, 60)), math.inf)
        found = {value for seconds in wanted if (value := snap(self.state, seconds)) is not None}
        return sorted(value for value in found if value > current)


def snap(state: ParameterState, wanted: float) -> int | float | None:
    """The readable legal value at or just under `wanted`, which is longer than what is; None where there is none."""
    declared, current = state.declaration, float(state.value)
    assert declared.minimum is not None
    assert declared.maximum is not None
    largest = declared.largest_change if declared.largest_change is not None else math.inf
    low, high = max(declared.minimum, current - largest), min(declared.maximum, current + largest)
    value = min(wanted, high)
    whole = declared.kind is ParameterKind.INTEGER
    if declared.step is not None:
        steps = math.floor((value - declared.minimum) / declared.step + 1e-9)
        value = float(f"{declared.minimum + steps * declared.step:.12g}")
    elif whole:
        value = math.floor(value)
    else:
        value = min(float(f"{value:.3g}"), high)
    if not low <= value <= high or value == current or (whole and value != int(value)):
        return None
    return int(value) if whole else value
