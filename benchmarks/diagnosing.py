"""Diagnosing: the diagnosis of a platform that is drawn, from its outcomes, as `activities.diagnosis` makes it."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from benchmarks.faults import is_good
from rules.contrasts import Task, contrasts
from schema.messages.diagnosis import (
    Diagnosis,
    DurationSample,
    ParameterChange,
    PastEnding,
    ReasonCount,
    TaskTypeDiagnosis,
)
from schema.messages.memory import Pattern
from schema.messages.observatory import Counts, Guardrail, TaskOutcome
from schema.messages.platform import ParameterState

SAMPLES = 400


class Records(NamedTuple):
    """The outcomes of one task type before the onset and since."""

    task_type: str
    objective: Guardrail | None
    before: Sequence[TaskOutcome]
    since: Sequence[TaskOutcome]

    def diagnosis(
        self,
        at: datetime,
        onset: datetime,
        parameters: tuple[ParameterState, ...],
        endings: tuple[PastEnding, ...],
        memory: tuple[Pattern, ...],
        changes: tuple[ParameterChange, ...],
    ) -> Diagnosis:
        """What agents are given."""
        failures = Counter(o.failure for o in self.since if o.failure is not None)
        since = Counter(o.reason or o.failure.value for o in self.since if o.failure is not None)
        before = Counter(o.reason or o.failure.value for o in self.before if o.failure is not None)
        judged = [(outcome, is_good(self.objective, outcome)) for outcome in self.since]
        tasks = [Task(good, outcome.attributes) for outcome, good in judged if good is not None]
        newest = self.since[: -SAMPLES - 1 : -1]
        of_type = TaskTypeDiagnosis(
            task_type=self.task_type,
            counts=self._counts(self.since),
            before=self._counts(self.before),
            failures=dict(failures),
            samples=tuple(DurationSample(duration_s=o.duration_s, failure=o.failure, reason=o.reason) for o in newest),
            contrasts=contrasts(tasks),
            reasons=tuple(ReasonCount(reason=r, since=since[r], before=before[r]) for r in sorted(since | before)),
        )
        return Diagnosis(
            at=at,
            window_start=onset,
            task_types=(of_type,),
            parameters=parameters,
            endings=endings,
            memory=memory,
            changes=changes,
        )

    def _counts(self, outcomes: Sequence[TaskOutcome]) -> Counts:
        judged = [good for outcome in outcomes if (good := is_good(self.objective, outcome)) is not None]
        return Counts(tasks=len(judged), successes=sum(judged))
