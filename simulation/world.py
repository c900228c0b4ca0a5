"""World: what becomes of the tasks of a simulated platform, and the truth about it.

A model: it knows no anomaly, no cycle and no agent. Every task is drawn with a generator of its own, seeded by the
scenario's seed, the task's type and its number, so that what one task meets never depends on which values another got.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

from schema.failure_kinds import FailureKind
from schema.messages.base import Value
from schema.messages.observatory import TaskOutcome
from schema.messages.platform import SECONDS, Platform
from schema.messages.simulation import LogNormal, Normal, Response, Work, WorkFailure, WorldFault

# A Monday, so that weekends are where they belong; far off, so that no clock of the machine has passed it.
EPOCH = datetime(2100, 1, 4, tzinfo=UTC)
# The hour of the day at which the daily cycle passes its mean on the way up.
MORNING_H = 8
# Tasks that an expectation is estimated from, the same ones for every value: its standard error is below .012, that of
# a difference much smaller.
SAMPLE = 2_000


def instant(hour: float) -> datetime:
    """The instant so many hours after the world began."""
    return EPOCH + timedelta(hours=hour)


def hour_of(at: datetime) -> float:
    """The hours from the beginning of the world to `at`."""
    return (at - EPOCH) / timedelta(hours=1)


class Arrival(NamedTuple):
    """One task that begins: its type, its number among all tasks of the world, and when."""

    task_type: str
    number: int
    hour: float

    @property
    def task_id(self) -> str:
        return f"{self.task_type}-{self.number}"


class World:
    """The tasks of a scenario. Raises ValueError for a platform that declares no work."""

    def __init__(self, platform: Platform, seed: int | None = None) -> None:
        declared = platform.simulation
        if not any(work.share > 0 for work in declared.work):
            raise ValueError("expected [[simulation.work]] with a share above 0, but there is none")
        self.seed = declared.seed if seed is None else seed
        self.faults = declared.faults
        self._declared = declared
        self._work = {work.task_type: work for work in declared.work}
        self._expected: dict[tuple[object, ...], list[TaskOutcome]] = {}
        # A limit counts in the unit of its parameter; one without a unit counts in seconds.
        self._seconds = {parameter.key: SECONDS.get(parameter.unit, 1.0) for parameter in platform.parameters}
        self._arrived = 0

    def has(self, task_type: str) -> bool:
        """Whether tasks of this type come at all."""
        return self.share(task_type) > 0

    def share(self, task_type: str) -> float:
        """The weight of a type among all tasks."""
        return self._work[task_type].share if task_type in self._work else 0.0

    def arrivals(self, hour: int) -> list[Arrival]:
        """The tasks that begin in one hour, in order: a Poisson process. Call it once for each hour, in order."""
        rng = Random(f"{self.seed}:arrivals:{hour}")
        swing = math.sin(2 * math.pi * (hour + 0.5 - MORNING_H) / 24)
        rate = self._declared.tasks_per_hour * (1 + self._declared.daily_cycle * swing)
        names = list(self._work)
        weights = [work.share for work in self._work.values()]
        arrived: list[Arrival] = []
        at = rng.expovariate(1.0) / rate if rate > 0 else math.inf
        while at < 1:
            (name,) = rng.choices(names, weights)
            arrived.append(Arrival(name, self._arrived, hour + at))
            self._arrived += 1
            at += rng.expovariate(1.0) / rate
        return arrived

    def outcome(self, task: Arrival, values: Mapping[str, Value]) -> TaskOutcome:
        """What becomes of a task that runs under these values."""
        rng = Random(f"{self.seed}:{task.task_type}:{task.number}")
        work = self._work_at(task.task_type, self.active_faults(task.task_type, task.hour))
        return _drawn(task, work, values, self._seconds, rng)

    def expected(
        self, task_type: str, values: Mapping[str, Value], hour: float, without: WorldFault | None = None
    ) -> list[TaskOutcome]:
        """Outcomes of SAMPLE tasks as they would be at this hour, for whoever estimates what is to be expected.

        The same tasks for all values, so that two expectations differ by what the values do. `without` leaves a fault
        out. What was asked for before comes at once: only the faults and the values that are asked for matter.
        """
        active = tuple(fault for fault in self.active_faults(task_type, hour) if fault is not without)
        asked = (task_type, active, repr(sorted(values.items())))
        if asked not in self._expected:
            work = self._work_at(task_type, active)
            tasks = (Arrival(task_type, n, hour) for n in range(SAMPLE))
            rng = Random(f"{self.seed}:truth:{task_type}")
            self._expected[asked] = [_drawn(task, work, values, self._seconds, Random(rng.random())) for task in tasks]
        return self._expected[asked]

    def active_faults(self, task_type: str, hour: float) -> tuple[WorldFault, ...]:
        """The faults of a task type at an hour, in the order of their declaration."""
        return tuple(fault for fault in self.faults if fault.task_type in (None, task_type) and is_active(fault, hour))

    def task_types(self, fault: WorldFault) -> tuple[str, ...]:
        """The task types that a fault is about."""
        return tuple(self._work) if fault.task_type is None else (fault.task_type,)

    @lru_cache  # noqa: B019  (a world lives as long as its process)
    def _work_at(self, task_type: str, faults: tuple[WorldFault, ...]) -> Work:
        work = self._work[task_type]
        for fault in faults:
            work = _changed(work, fault)
        return work


def is_active(fault: WorldFault, hour: float) -> bool:
    """Whether a fault has begun and has not ended."""
    return fault.at_hour <= hour and (fault.until_hour is None or hour < fault.until_hour)


def _changed(work: Work, fault: WorldFault) -> Work:
    """The work of a task type under a fault."""
    change = fault.change
    duration = LogNormal(
        median_s=change.duration_median_s or work.duration.median_s,
        sigma=work.duration.sigma if change.duration_sigma is None else change.duration_sigma,
    )
    quality, cost = work.quality, work.cost
    if change.quality_mean is not None:
        quality = Normal(mean=change.quality_mean, sd=quality.sd if quality else 0.0)
    if change.cost_mean is not None:
        cost = Normal(mean=change.cost_mean, sd=cost.sd if cost else 0.0)
    return work.model_copy(
        update={"duration": duration, "quality": quality, "cost": cost, "failures": _changed_failures(work, fault)}
    )


def _changed_failures(work: Work, fault: WorldFault) -> tuple[WorkFailure, ...]:
    """The failures with the probability that a fault gives to one reason; a new reason comes last."""
    change = fault.change.failure
    if change is None:
        return work.failures
    replaced: dict[str, Any] = {"probability": change.probability}
    if change.kind is not None:
        replaced["kind"] = change.kind
    if all(failure.reason != change.reason for failure in work.failures):
        return (*work.failures, WorkFailure(reason=change.reason, **replaced))
    return tuple(
        failure.model_copy(update=replaced) if failure.reason == change.reason else failure for failure in work.failures
    )


def _drawn(
    task: Arrival, work: Work, values: Mapping[str, Value], seconds: Mapping[str, float], rng: Random
) -> TaskOutcome:
    """One outcome. What is drawn, and in which order, does not depend on the values.

    `seconds` are those of one unit of each parameter.
    """
    attributes: dict[str, str] = {}
    for attribute in work.attributes:
        (drawn,) = rng.choices(list(attribute.values), list(attribute.values.values()))
        attributes[attribute.name] = drawn
    speed, merit, price = rng.gauss(), rng.gauss(), rng.gauss()
    chances = [rng.random() for _ in work.failures]

    duration_s = work.duration.median_s * math.exp(work.duration.sigma * speed)
    duration_s *= _effect(work, "duration", values, attributes)
    ending = _Ending(duration_s)
    for declared, chance in zip(work.failures, chances, strict=True):
        if ending.failure is None and _applies(declared.when, attributes):
            ending = _ending(declared, chance, duration_s, values, seconds)
    started_at = instant(task.hour)
    return TaskOutcome(
        task_id=task.task_id,
        task_type=task.task_type,
        started_at=started_at,
        finished_at=started_at + timedelta(seconds=ending.duration_s),
        duration_s=ending.duration_s,
        failure=ending.failure,
        reason=ending.reason,
        quality=_quality(work, values, attributes, merit) if ending.failure is None else None,
        cost=_cost(work, values, attributes, price),
        attributes=attributes,
    )


class _Ending(NamedTuple):
    """After how long a task ended, and how it failed, if it did."""

    duration_s: float
    failure: FailureKind | None = None
    reason: str = ""


def _ending(
    declared: WorkFailure,
    chance: float,
    duration_s: float,
    values: Mapping[str, Value],
    seconds: Mapping[str, float],
) -> _Ending:
    """How a task of this duration ends where this failure may happen to it; `chance` decides, or the limit it names."""
    if declared.limit is not None:
        limit_s = float(values[declared.limit]) * seconds[declared.limit]
        if duration_s > limit_s:
            return _Ending(limit_s, declared.kind or FailureKind.TIMEOUT)
    elif chance < _probability(declared, values):
        return _Ending(duration_s, declared.kind or FailureKind.ERROR, declared.reason)
    return _Ending(duration_s)


def _probability(failure: WorkFailure, values: Mapping[str, Value]) -> float:
    assert failure.probability is not None
    factor = 1.0 if failure.response is None else factor_of(failure.response, values)
    return min(1.0, failure.probability * factor)


def _quality(work: Work, values: Mapping[str, Value], attributes: Mapping[str, str], merit: float) -> float | None:
    if work.quality is None:
        return None
    mean = work.quality.mean * _effect(work, "quality", values, attributes)
    return min(1.0, max(0.0, mean + work.quality.sd * merit))


def _cost(work: Work, values: Mapping[str, Value], attributes: Mapping[str, str], price: float) -> float:
    if work.cost is None:
        return 0.0
    return max(0.0, work.cost.mean + work.cost.sd * price) * _effect(work, "cost", values, attributes)


def _effect(work: Work, on: str, values: Mapping[str, Value], attributes: Mapping[str, str]) -> float:
    """The product of the factors on duration, quality or cost."""
    factors = (
        factor_of(effect.response, values)
        for effect in work.effects
        if effect.on == on and _applies(effect.when, attributes)
    )
    return math.prod(factors)


def _applies(when: Mapping[str, str], attributes: Mapping[str, str]) -> bool:
    return all(attributes.get(name) == value for name, value in when.items())


def factor_of(response: Response, values: Mapping[str, Value]) -> float:
    """The factor at the value in force: linear between two points, flat outside; 1 for a value that has no point."""
    value = values[response.parameter]
    points = response.points
    if isinstance(value, bool | str):
        return next((factor for point, factor in points if type(point) is type(value) and point == value), 1.0)
    numbers = [(float(point), factor) for point, factor in points]
    lowest, highest = numbers[0], numbers[-1]
    if value <= lowest[0]:
        return lowest[1]
    for (left, before), (right, after) in pairwise(numbers):
        if value <= right:
            return before + (after - before) * (value - left) / (right - left)
    return highest[1]
