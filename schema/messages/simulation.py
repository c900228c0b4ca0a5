"""Simulation: the world that a platform to practise on lives in, as `platform.toml` declares it."""

from pydantic import Field

from .base import Declaration


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


class Simulation(Declaration):
    """The world that a platform to practise on lives in."""

    research_service: ResearchService | None = None
