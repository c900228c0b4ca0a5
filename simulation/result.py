"""The result of a simulation: what the platform did about each fault, judged by the truth that its agents never see.

Measured figures are of the recorded outcomes; what a fault took and what a change is worth come from the model.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from statistics import fmean
from typing import NamedTuple

from pydantic import ConfigDict, Field

from activities.track_record import Proposed, TrackRecord
from rules.verdict import is_success
from schema.messages.base import Message, Value
from schema.messages.cycle import Ending
from schema.messages.observatory import TaskOutcome
from schema.messages.simulation import WorldFault
from simulation.world import World, hour_of, is_active

DAY_H = 24
# A fault is mended when the metric regains this share of what the fault took, over a day.
REGAINED = 0.6
# What a fault takes of the success rate is what counts, unless it is less than this.
TAKEN_OF_SUCCESS = 0.02
# As a share of completion time, quality or cost.
TAKEN_OF_OTHERS = 0.05
# Less than the time between two promotions.
MOMENT_H = 0.01
# An alarm is no false one within so many hours after a fault has ended: the record still shows it.
ECHO_H = 24


class FaultVerdict(StrEnum):
    """What became of a fault; see `FaultResult`."""

    MENDED = "mended"
    ESCALATED = "escalated"
    MISSED = "missed"
    UNTOUCHED = "untouched"


class Trend(Message):
    """A figure before the first fault, in its worst 24 hours, and in the last 24; None where nothing was measured."""

    healthy: float | None = None
    worst: float | None = None
    final: float | None = None


class FaultResult(Message):
    """What became of one fault.

    `mended`: after a surviving promotion of a remedy, the metric regains, over 24 hours from `restored_hour` on and
    while the fault lasts, at least REGAINED of what the fault took. Otherwise `escalated`, where a person was called
    while it lasted; `missed`, where nothing detected it; else `untouched`.
    """

    name: str
    at_hour: float
    detected_hour: float | None
    cycles: tuple[str, ...]
    restored_hour: float | None
    remedied_by: str | None
    escalated_hour: float | None
    verdict: FaultVerdict


class PromotedChange(Message):
    """A change that reached production. `true_effect` is what the model says it changed the cycle's metric by."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    hour: float
    parameter: str
    before: Value = Field(alias="from")
    value: Value = Field(alias="to")
    true_effect: float
    rolled_back: bool
    cycle_id: str = Field(exclude=True)


class Result(Message):
    """What `nautilus simulate --json` prints. Rates are shares, completion is seconds of the tasks that succeeded."""

    scenario: str
    seed: int
    hours: int
    tasks: int
    success_rate: Trend
    completion_s: Trend
    quality: Trend
    cost: Trend
    faults: tuple[FaultResult, ...]
    promotions: tuple[PromotedChange, ...]
    false_alarms: int
    rollbacks: int
    human_actions: int
    ledger_entries: int
    active_agents: int
    starts: int
    skipped: int
    wall_s: float


class AgentResult(Message):
    """How an author's agent did: its proposals on the cycles it was awarded, what it earned, and its standing (0 to 1).

    A first proposal is its first one about a fault; it is right where the model expects the smallest effect worth
    having of it.
    """

    agent_id: str
    proposals: int
    first_proposals: int
    first_right: int
    earned: int
    standing: float

    def in_words(self) -> str:
        return (
            f"{self.first_right} of {self.first_proposals} first proposals were right ({self.proposals} in all), "
            f"{self.earned} credits earned, standing {self.standing:.2f}"
        )


class Measure(NamedTuple):
    """A mean over some outcomes: what is taken of each (None: it does not count), and whether more is better."""

    name: str
    of: Callable[[TaskOutcome], float | None]
    higher_is_better: bool


def _succeeded(outcome: TaskOutcome) -> float:
    return float(outcome.failure is None)


def _completion_s(outcome: TaskOutcome) -> float | None:
    return outcome.duration_s if outcome.failure is None else None


SUCCESS = Measure("success_rate", _succeeded, higher_is_better=True)
COMPLETION = Measure("completion_s", _completion_s, higher_is_better=False)
QUALITY = Measure("quality", lambda outcome: outcome.quality, higher_is_better=True)
COST = Measure("cost", lambda outcome: outcome.cost, higher_is_better=False)
MEASURES = (SUCCESS, COMPLETION, QUALITY, COST)


class Course:
    """The recorded outcomes by the hour in which they ended."""

    def __init__(self, outcomes: Iterable[TaskOutcome], hours: int) -> None:
        self.hours = hours
        self.tasks = 0
        self._by_hour: list[list[TaskOutcome]] = [[] for _ in range(hours)]
        for outcome in outcomes:
            hour = math.ceil(hour_of(outcome.finished_at)) - 1
            self._by_hour[max(0, hour)].append(outcome)
            self.tasks += 1

    def mean(self, measure: Measure, begin: int, end: int, task_types: Sequence[str] = ()) -> float | None:
        """The mean of the tasks that ended in hours [begin, end), of some types or all; None where none counts."""
        values = [
            value
            for hour in self._by_hour[begin:end]
            for outcome in hour
            if not task_types or outcome.task_type in task_types
            if (value := measure.of(outcome)) is not None
        ]
        return fmean(values) if values else None

    def trend(self, measure: Measure, first_fault: float) -> Trend:
        """Before the first fault, in the worst day since (of all days, where there is no fault), in the last day."""
        has_fault = first_fault < self.hours
        begin = int(first_fault) if has_fault else 0
        # Where less than a day is left since the first fault, that is the worst.
        last = max(begin, self.hours - DAY_H)
        days = (self.mean(measure, hour, hour + DAY_H) for hour in range(begin, last + 1))
        measured = [day for day in days if day is not None]
        worst = min if measure.higher_is_better else max
        return Trend(
            healthy=self.mean(measure, 0, int(first_fault) if has_fault else self.hours),
            worst=worst(measured, default=None),
            final=self.mean(measure, max(0, self.hours - DAY_H), self.hours),
        )


class Judge:
    """Judges the record of one simulation by the world's truth."""

    def __init__(self, world: World, course: Course, record: TrackRecord, defaults: Mapping[str, Value]) -> None:
        self.world = world
        self.course = course
        self.record = record
        # The values in force from each hour on.
        self._values: list[tuple[float, dict[str, Value]]] = [(0.0, dict(defaults))]
        self.promotions = tuple(self._promotions())

    def _promotions(self) -> list[PromotedChange]:
        """The promotions in order; `_values` grows by the values that each change put in force."""
        rolled_back = {swap.change.cycle_id for swap in self.record.swaps if swap.is_rollback}
        promotions: list[PromotedChange] = []
        for swap in self.record.swaps:
            change = swap.change
            hour = hour_of(swap.at)
            _, before = self._values[-1]
            after = before | {change.parameter: change.value}
            self._values.append((hour, after))
            if swap.is_rollback:
                continue
            effect = self._effect(change.cycle_id, before, after, hour)
            promoted = PromotedChange(
                hour=_on_the_grid(hour),
                parameter=change.parameter,
                before=before[change.parameter],
                value=change.value,
                true_effect=round(effect, 4),
                rolled_back=change.cycle_id in rolled_back,
                cycle_id=change.cycle_id,
            )
            promotions.append(promoted)
        return promotions

    def _effect(self, cycle_id: str, before: Mapping[str, Value], after: Mapping[str, Value], hour: float) -> float:
        """The expected change of the share of good tasks, as the cycle's metric has it."""
        design = self.record.designs[cycle_id]
        good = Measure(design.metric, lambda outcome: is_success(design.objectives, outcome), higher_is_better=True)
        task_types = [name for name in design.task_types if self.world.has(name)]
        return self._expected(good, task_types, after, hour) - self._expected(good, task_types, before, hour)

    def _expected(
        self,
        measure: Measure,
        task_types: Sequence[str],
        values: Mapping[str, Value],
        hour: float,
        without: WorldFault | None = None,
    ) -> float:
        """What the model expects of a measure, over some task types by their shares; 0 where nothing counts."""
        total = weight = 0.0
        for task_type in task_types:
            outcomes = self.world.expected(task_type, values, hour, without)
            counted = [value for outcome in outcomes if (value := measure.of(outcome)) is not None]
            if counted:
                total += self.world.share(task_type) * fmean(counted)
                weight += self.world.share(task_type)
        return total / weight if weight else 0.0

    def fault(self, fault: WorldFault) -> FaultResult:
        """What became of one fault."""
        task_types = self.world.task_types(fault)
        until_hour = math.inf if fault.until_hour is None else fault.until_hour
        end = min(self.course.hours, until_hour)
        about = [cycle for cycle in self.record.cycles if _is_about(cycle.subject, task_types)]
        cycles = [cycle for cycle in about if fault.at_hour <= hour_of(cycle.opened_at) < end]
        escalated_hour = self._escalated_hour(fault, task_types, end)
        restored = self._restored(fault, task_types, end)
        detected_hour = self._detected_hour(task_types, fault.at_hour, min(end, self._next_fault(fault, task_types)))
        if restored is not None:
            verdict = FaultVerdict.MENDED
        elif escalated_hour is not None:
            verdict = FaultVerdict.ESCALATED
        elif detected_hour is not None:
            verdict = FaultVerdict.UNTOUCHED
        else:
            verdict = FaultVerdict.MISSED
        return FaultResult(
            name=fault.name,
            at_hour=fault.at_hour,
            detected_hour=detected_hour,
            cycles=tuple(cycle.cycle_id for cycle in cycles),
            restored_hour=restored.hour if restored else None,
            remedied_by=restored.parameter if restored else None,
            escalated_hour=escalated_hour,
            verdict=verdict,
        )

    def _next_fault(self, fault: WorldFault, task_types: Sequence[str]) -> float:
        """When the next fault strikes one of the same task types: what is found from then on may be that one."""
        others = [other for other in self.world.faults if not set(task_types).isdisjoint(self.world.task_types(other))]
        return min((other.at_hour for other in others if other.at_hour > fault.at_hour), default=math.inf)

    def _detected_hour(self, task_types: Sequence[str], begin: float, end: float) -> float | None:
        """When an anomaly about the fault's tasks was raised, or a cycle was opened on one that was open already."""
        raised = [hour_of(row.detected_at) for row in self.record.anomalies if _is_about(row.subject, task_types)]
        opened = [hour_of(row.opened_at) for row in self.record.cycles if _is_about(row.subject, task_types)]
        hours = [hour for hour in (*raised, *opened) if begin <= hour < end]
        return _on_the_grid(min(hours)) if hours else None

    def _escalated_hour(self, fault: WorldFault, task_types: Sequence[str], end: float) -> float | None:
        """When a person was first called while the fault lasted: by a cycle's end, or by its anomaly."""
        by_cycle = [
            hour_of(row.ended_at)
            for row in self.record.cycles
            if row.ending == Ending.ESCALATED and row.ended_at is not None and _is_about(row.subject, task_types)
        ]
        by_anomaly = [hour_of(call.at) for call in self.record.calls if _is_about(call.subject, task_types)]
        hours = [hour for hour in (*by_cycle, *by_anomaly) if fault.at_hour <= hour < end]
        return _on_the_grid(min(hours)) if hours else None

    def _restored(self, fault: WorldFault, task_types: Sequence[str], end: float) -> "Restored | None":
        """The first day after a surviving promotion of a remedy over which enough of what was taken is back.

        A fault that takes nothing, because a remedy was promoted before it began (one more step of a drift), is mended
        from its beginning on.
        """
        standing = [p for p in self.promotions if p.parameter in fault.remedy and not p.rolled_back and p.hour < end]
        earlier = [p for p in standing if p.hour < fault.at_hour]
        if earlier and not self._takes_something(fault, task_types, fault.at_hour):
            before_it = earlier[-1].hour - MOMENT_H
            if self._takes_something(fault, task_types, before_it):
                return Restored(fault.at_hour, earlier[-1].parameter)
        remedies = [p for p in standing if p.hour >= fault.at_hour]
        if not remedies:
            return None
        measure, healthy, hurt = self._taken(fault, task_types, fault.at_hour)
        if healthy == hurt:
            return None
        for hour in range(math.ceil(remedies[0].hour), int(end) - DAY_H + 1):
            day = self.course.mean(measure, hour, hour + DAY_H, task_types)
            if day is not None and (day - hurt) / (healthy - hurt) >= REGAINED:
                last = [p for p in remedies if p.hour <= hour][-1]
                return Restored(float(hour), last.parameter)
        return None

    def _takes_something(self, fault: WorldFault, task_types: Sequence[str], values_of_hour: float) -> bool:
        """Whether the fault takes more than what hardly shows, at the values of an hour."""
        measure, healthy, hurt = self._taken(fault, task_types, values_of_hour)
        return measure is SUCCESS or _relative_change(healthy, hurt) >= TAKEN_OF_OTHERS

    def _taken(
        self, fault: WorldFault, task_types: Sequence[str], values_of_hour: float
    ) -> tuple[Measure, float, float]:
        """The measure that the fault is about, and what the model expects of it without the fault and with it.

        At the values that were in force at an hour, when the fault begins.
        """
        values = self._values_at(values_of_hour)
        expected = {
            measure: (
                self._expected(measure, task_types, values, fault.at_hour, without=fault),
                self._expected(measure, task_types, values, fault.at_hour),
            )
            for measure in MEASURES
        }
        healthy, hurt = expected[SUCCESS]
        if healthy - hurt >= TAKEN_OF_SUCCESS:
            return SUCCESS, healthy, hurt
        changed = max((COMPLETION, QUALITY, COST), key=lambda measure: _relative_change(*expected[measure]))
        return changed, *expected[changed]

    def _values_at(self, hour: float) -> dict[str, Value]:
        return [values for begin, values in self._values if begin <= hour][-1]

    def agent(self, agent_id: str) -> AgentResult:
        """How an agent's proposals, earnings and standing came out."""
        own = [row for row in self.record.proposals if row.agent_id == agent_id]
        firsts = [row for fault in self.world.faults if (row := self._first_about(fault, own)) is not None]
        return AgentResult(
            agent_id=agent_id,
            proposals=len(own),
            first_proposals=len(firsts),
            first_right=sum(self._is_right(row) for row in firsts),
            earned=self.record.agents[agent_id].balance,
            standing=round(self.record.agents[agent_id].standing, 3),
        )

    def _first_about(self, fault: WorldFault, proposals: Sequence[Proposed]) -> Proposed | None:
        """The first proposal about the fault's task types while it is active."""
        task_types = self.world.task_types(fault)
        active = [row for row in proposals if is_active(fault, hour_of(row.at))]
        about = [row for row in active if _is_about(row.cycle_id.partition("#")[0], task_types)]
        return about[0] if about else None

    def _is_right(self, row: Proposed) -> bool:
        """Whether the model expects the smallest effect worth having; one that no experiment tested is not."""
        design = self.record.designs.get(row.cycle_id)
        if design is None:
            return False
        hour = hour_of(row.at)
        before = self._values_at(hour)
        effect = self._effect(row.cycle_id, before, before | {design.parameter: design.treatment}, hour)
        return effect >= design.minimum_effect

    def false_alarms(self) -> int:
        """Anomalies that were raised while no fault was active, nor had been within ECHO_H."""
        hours = [hour_of(row.detected_at) for row in self.record.anomalies]
        return sum(not any(_echoes(fault, hour) for fault in self.world.faults) for hour in hours)


def result(scenario: str, judge: Judge, figures: Mapping[str, int]) -> Result:
    """The result; `figures` are the counts that only the run knows. How long it took, its caller knows."""
    world, course, record = judge.world, judge.course, judge.record
    first_fault = min((fault.at_hour for fault in world.faults), default=math.inf)
    return Result(
        scenario=scenario,
        seed=world.seed,
        hours=course.hours,
        tasks=course.tasks,
        **{measure.name: course.trend(measure, first_fault) for measure in MEASURES},
        faults=tuple(judge.fault(fault) for fault in world.faults if fault.at_hour < course.hours),
        promotions=judge.promotions,
        false_alarms=judge.false_alarms(),
        rollbacks=sum(promotion.rolled_back for promotion in judge.promotions),
        human_actions=record.human_actions,
        ledger_entries=record.ledger_entries,
        wall_s=0.0,
        **figures,
    )


def _on_the_grid(hour: float) -> float:
    """The hour, down to three minutes: the server's clock runs on a little while it works."""
    return math.floor(hour * 20 + 1e-6) / 20


class Restored(NamedTuple):
    """The hour from which on a fault is mended, and the parameter whose promotion mended it."""

    hour: float
    parameter: str


def _is_about(subject: str, task_types: Sequence[str]) -> bool:
    """Whether a subject (metric and task type) is one of these task types, or the whole platform."""
    _, _, about = subject.partition(":")
    return about == "platform" or about in task_types


def _echoes(fault: WorldFault, hour: float) -> bool:
    return is_active(fault, hour) or (fault.until_hour is not None and 0 <= hour - fault.until_hour < ECHO_H)


def _relative_change(healthy: float, hurt: float) -> float:
    return abs(hurt - healthy) / abs(healthy) if healthy else 0.0
