"""Simulation: the world that a platform to practise on lives in, as `platform.toml` declares it.

A world is the real service that `nautilus demo` runs, or a model of the tasks' outcomes, which `nautilus simulate`
draws from. The truth about it (its faults and what mends them) is never shown to agents.
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from ..failure_kinds import FailureKind
from .base import Declaration, Name, Reason, Value

Share = Annotated[float, Field(ge=0, le=1)]
# A response has a few points; a text parameter has one for each prompt that is known.
Points = Annotated[tuple[tuple[Value, Annotated[float, Field(ge=0, le=1e6)]], ...], Field(min_length=1, max_length=100)]


class ResearchService(Declaration):
    """A remote service to practise on, which `nautilus up` runs: research tasks ask it for passages.

    Seconds of one answer are log-normal with this median and spread. Each fault begins so many seconds after the first
    search: `slower_after_s` multiplies them by `slower_by`; from `unavailable_after_s` on, `unavailable_share` of the
    searches are answered 503, each by chance of its own; from `limited_after_s` on, a search above `most_at_once` is
    answered 429. Two are of the model `plain` alone: from `wrong_after_s` on, `wrong_share` of its answers are of other
    passages than those found; from `poorer_after_s` on, it searches for one term of each query.
    """

    median_s: float = Field(default=0.3, gt=0, le=60)
    sigma: float = Field(default=0.5, ge=0, le=2)
    seed: int = 1
    slower_after_s: float | None = Field(default=None, ge=0)
    slower_by: float = Field(default=1.0, ge=1, le=100)
    unavailable_after_s: float | None = Field(default=None, ge=0)
    unavailable_share: float = Field(default=0.0, ge=0, le=1)
    limited_after_s: float | None = Field(default=None, ge=0)
    most_at_once: int = Field(default=1_000, ge=1)
    wrong_after_s: float | None = Field(default=None, ge=0)
    wrong_share: float = Field(default=0.0, ge=0, le=1)
    poorer_after_s: float | None = Field(default=None, ge=0)


class Response(Declaration):
    """A factor that follows a parameter's value: piecewise linear in a number, flat outside the points.

    A choice, a boolean or a text must match a point; a value without one has the factor 1.
    """

    parameter: str
    points: Points

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        values = [value for value, _ in self.points]
        is_numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if is_numeric and any(later <= earlier for earlier, later in pairwise(values)):  # type: ignore[operator]
            raise ValueError("expected points whose values increase")
        if not is_numeric and len({(type(value), value) for value in values}) < len(values):
            raise ValueError("expected a point for each value once")
        return self


class LogNormal(Declaration):
    """Seconds of a task's work: log-normal, with this median and this spread of the logarithm."""

    median_s: float = Field(gt=0, le=1e6)
    sigma: float = Field(default=0.4, ge=0, le=3)


class Normal(Declaration):
    """Quality (clipped to 0..1) or cost (never negative) of a task."""

    mean: float = Field(ge=0, le=1e9)
    sd: float = Field(default=0.0, ge=0, le=1e9)


class WorkFailure(Declaration):
    """One way in which tasks of a type fail: at a `limit` in seconds, or for a `reason` with a probability.

    A limit strikes when the work takes longer, and the task lasts exactly the limit. The response multiplies the
    probability, which is at most 1 in all. `when` names the value that an attribute must have.
    """

    limit: str | None = None
    reason: Reason = ""
    kind: FailureKind | None = None
    probability: Share | None = None
    response: Response | None = None
    when: dict[Name, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _limit_or_reason(self) -> Self:
        if (self.limit is None) == (not self.reason):
            raise ValueError("expected either a limit or a reason")
        if self.reason and self.probability is None:
            raise ValueError(f"expected a probability of {self.reason}")
        if self.limit is not None and (self.probability is not None or self.response is not None):
            raise ValueError("expected no probability and no response of a limit: the work's duration decides")
        return self


class WorkEffect(Declaration):
    """What multiplies a task's duration, quality or cost, by the value of a parameter."""

    on: Literal["duration", "quality", "cost"]
    response: Response
    when: dict[Name, str] = Field(default_factory=dict)


class WorkAttribute(Declaration):
    """An attribute that outcomes carry, drawn by weight."""

    name: Name
    values: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not sum(self.values.values()):
            raise ValueError("expected a value with a weight above 0")
        return self


class Work(Declaration):
    """The tasks of one type: their share of all tasks, and what becomes of them."""

    task_type: Name
    share: float = Field(default=1.0, ge=0)
    duration: LogNormal
    quality: Normal | None = None
    cost: Normal | None = None
    failures: tuple[WorkFailure, ...] = ()
    effects: tuple[WorkEffect, ...] = ()
    attributes: tuple[WorkAttribute, ...] = ()


class FailureChange(Declaration):
    """The probability that a fault gives to a reason: it replaces that of the work, or adds the reason."""

    reason: Reason = Field(min_length=1)
    probability: Share
    kind: FailureKind | None = None


class FaultChange(Declaration):
    """What a fault does to the work, for as long as it is active."""

    failure: FailureChange | None = None
    duration_median_s: float | None = Field(default=None, gt=0, le=1e6)
    duration_sigma: float | None = Field(default=None, ge=0, le=3)
    quality_mean: Share | None = None
    cost_mean: float | None = Field(default=None, ge=0, le=1e9)

    @model_validator(mode="after")
    def _some_change(self) -> Self:
        if self == type(self).model_construct():
            raise ValueError(f"expected at least one of {', '.join(type(self).model_fields)}")
        return self


class WorldFault(Declaration):
    """What goes wrong in the world, from `at_hour` until `until_hour` (for good without one).

    `remedy` names the parameters that mend it; none: it needs a person. It is for scoring only.
    """

    name: str = Field(min_length=1, max_length=100)
    at_hour: float = Field(ge=0)
    until_hour: float | None = None
    task_type: Name | None = None
    change: FaultChange
    remedy: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.until_hour is not None and self.until_hour <= self.at_hour:
            raise ValueError(f"expected an until_hour above at_hour ({self.at_hour:g}), but {self.until_hour:g} came")
        return self


class SimulatedAgent(Declaration):
    """An agent of the simulated field. A message of it is wrong, by chance, with `error_rate`."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
    error_rate: Share = 0.0
    price: int | None = Field(default=None, ge=0, le=1_000_000)


class Simulation(Declaration):
    """The world that a platform to practise on lives in.

    `tasks_per_hour` is the mean of a Poisson process, whose rate rises and falls by the share `daily_cycle` in a day.
    `agents` counts the built-in agents of the field; those of `[[simulation.agent]]` come beside them, or instead.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    research_service: ResearchService | None = None
    seed: int = 1
    days: int = Field(default=14, ge=1, le=366)
    tasks_per_hour: float = Field(default=60.0, gt=0, le=10_000)
    daily_cycle: float = Field(default=0.0, ge=0, le=1)
    agents: int | None = Field(default=None, ge=0, le=100)
    named_agents: tuple[SimulatedAgent, ...] = Field(default=(), alias="agent")
    work: tuple[Work, ...] = ()
    faults: tuple[WorldFault, ...] = ()


class Traffic(Declaration):
    """Tasks that `nautilus up` itself keeps running: how many a second of each type, and how many at a time.

    The rate rises and falls by the share `swing` of its mean, once every `swing_every_s`, as demand does.
    """

    concurrency: int = Field(default=2, ge=1, le=64)
    per_second: dict[Name, Annotated[float, Field(ge=0)]]
    swing: float = Field(default=0.0, ge=0, lt=1)
    swing_every_s: float = Field(default=60.0, gt=0)
