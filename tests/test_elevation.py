"""Elevation: when diagnostic jobs run more often, when they go back, and how long a job may take."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.elevation import after, budget, interval_s, is_elevated
from schema.messages.observatory import Anomaly, Counts
from schema.messages.platform import ElevationRules, JobClass, JobId, ScheduleDeclaration
from schema.messages.schedules import Elevation
from tests.builders import NOW, anomaly

RULES = ElevationRules()
CALM, ELEVATED = Elevation(), Elevation(elevated=True, reason="elevated since then")
HEALTH = st.none() | st.floats(0, 100)


def declared(**changes: object) -> ScheduleDeclaration:
    fields = {"id": JobId.METRICS_SNAPSHOT, "every_s": 3_600, "budget_s": "auto", "job_class": JobClass.DIAGNOSTIC}
    return ScheduleDeclaration.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("before", "health", "elevated"),
    [
        (CALM, 49.9, True),  # under the lower threshold
        (CALM, 50.0, False),  # at it
        (CALM, None, False),  # a platform that has measured nothing yet is not in trouble
        (ELEVATED, 60.0, True),  # between the two: stays as it is
        (CALM, 60.0, False),
        (ELEVATED, 65.0, True),  # at the upper threshold
        (ELEVATED, 65.1, False),  # over it
        (ELEVATED, None, True),  # a missing health ends nothing
    ],
)
def test_elevation_begins_under_one_threshold_and_ends_over_another(
    before: Elevation, health: float | None, elevated: bool
) -> None:
    assert after(before, health, NOW, RULES).elevated is elevated


def test_a_change_says_when_and_why_and_keeps_saying_it() -> None:
    begun = after(CALM, 38.0, NOW, RULES)
    later = after(begun, 55.0, NOW + timedelta(hours=1), RULES)
    ended = after(later, 72.5, NOW + timedelta(hours=2), RULES)

    assert begun.reason == "elevated since 2026-11-22 12:00 UTC: health 38.0 is under 50"
    assert later == begun
    assert ended.reason == "back to normal since 2026-11-22 14:00 UTC: health 72.5 is over 65"


@given(st.lists(HEALTH, max_size=40))
def test_every_switch_crosses_the_whole_gap_between_the_thresholds(healths: list[float | None]) -> None:
    elevation, last_switch = CALM, 100.0
    for health in healths:
        before, elevation = elevation, after(elevation, health, NOW, RULES)
        if elevation.elevated != before.elevated:
            assert health is not None
            assert abs(health - last_switch) > RULES.above - RULES.below
            last_switch = health


def test_only_diagnostic_jobs_are_elevated() -> None:
    market = declared(job_class=JobClass.MARKET)

    assert is_elevated(declared(), ELEVATED)
    assert not is_elevated(declared(), CALM)
    assert not is_elevated(market, ELEVATED)


@pytest.mark.parametrize(
    ("declared_s", "elevated_s"),
    [
        (3_600, 900),
        (240, 60),
        (100, 60),  # not under a minute
        (60, 60),
        (5, 5),  # and what looks more often already is not slowed down
    ],
)
def test_an_elevated_job_runs_more_often_but_never_without_pause(declared_s: int, elevated_s: int) -> None:
    assert interval_s(declared_s, True, RULES) == elevated_s
    assert interval_s(declared_s, False, RULES) == declared_s


def test_a_declared_budget_is_what_was_declared() -> None:
    assert budget([500.0] * 20, [off(1.0)], 0.0, declared(budget_s=30)).seconds == 30


def off(gap: float) -> Anomaly:
    """An open anomaly of a rate that was 1 and fell by `gap`."""
    observed = Counts(tasks=100, successes=round(100 * (1 - gap)))
    return anomaly(observed=observed, baseline=Counts(tasks=1_000, successes=1_000))


SILENCE = anomaly(observed=Counts(), baseline=Counts(tasks=1_000, successes=900))


@pytest.mark.parametrize(
    ("durations_s", "anomalies", "health", "seconds"),
    [
        ([], [], 90.0, 300),  # nothing is known: all that it may have
        ([4.0] * 20, [], 100.0, 10),  # twice what it usually takes
        ([4.0] * 18 + [60.0] * 2, [], 100.0, 10),  # a tenth of the runs may be outliers
        ([4.0] * 17 + [60.0] * 3, [], 100.0, 120),  # more than that is the usual
        ([10.0] * 20, [off(0.15)], 100.0, 30),  # a rate that fell by 15 points: half as much again
        ([10.0] * 20, [off(0.04)] * 3, 100.0, 30),  # three small ones add up
        ([10.0] * 20, [off(0.01)], 100.0, 25),  # a mild one is hardly urgent
        ([10.0] * 20, [off(0.9)], 100.0, 40),  # as urgent as it gets: twice
        ([10.0] * 20, [SILENCE], 100.0, 40),  # and so is what no longer reports
        ([10.0] * 20, [], 50.0, 30),  # half the health is as urgent as 15 points
        ([10.0] * 20, [], None, 40),  # an unknown health is no good news
        ([0.1] * 20, [], 100.0, 5),  # the lower bound
        ([400.0] * 20, [], 100.0, 300),  # the upper bound
    ],
)
def test_an_auto_budget_follows_the_recent_runs_and_how_severe_what_is_open_is(
    durations_s: list[float], anomalies: list[Anomaly], health: float | None, seconds: float
) -> None:
    assert budget(durations_s, anomalies, health, declared()).seconds == seconds


def test_an_auto_budget_says_where_it_comes_from() -> None:
    assert budget([4.0] * 20, [off(0.1)] * 2, 38.0, declared()).reason == (
        "auto: 90% of 20 runs took up to 4.0 s; urgency 67% (2 anomalies open, health 38)"
    )


@given(st.lists(st.floats(0, 1_000), max_size=30), st.lists(st.builds(off, st.floats(0, 1)), max_size=9), HEALTH)
def test_an_auto_budget_stays_within_its_bounds_and_urgency_never_shrinks_it(
    durations_s: list[float], anomalies: list[Anomaly], health: float | None
) -> None:
    found = budget(durations_s, anomalies, health, declared(least_budget_s=10, most_budget_s=60)).seconds

    assert 10 <= found <= 60
    assert budget(durations_s, [*anomalies, off(0.1)], health, declared()).seconds >= (
        budget(durations_s, anomalies, health, declared()).seconds
    )


def test_a_job_that_meets_its_budget_every_time_gets_more_until_it_suffices() -> None:
    needed_s, budget_s = 100.0, 10.0
    for _ in range(10):
        budget_s = budget([min(needed_s, budget_s)] * 20, [], 100.0, declared()).seconds

    assert budget_s >= needed_s
