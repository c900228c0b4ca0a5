"""Standing, rewards and cooldown: what results make of an agent, and when the next attempt may start."""

from datetime import timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules import rewards, standing
from rules.cooldown import next_attempt_at
from rules.rewards import result_of
from rules.standing import (
    CREDIT_LIMIT,
    NEWCOMER_STANDING,
    SUSPENSION_LIMIT,
    Tier,
    after,
    decayed,
    failure_log_ratio_after,
    has_room,
    is_speciality,
    is_suspended,
    tier,
    vote_weight,
    worth,
)
from schema.messages.cycle import Ending
from schema.messages.market import Agent, AwardResult, Record
from tests import builders

results = st.sampled_from(AwardResult)


def career(*path: AwardResult, agent: Agent | None = None) -> Agent:
    """An agent after these results, as the market moves it."""
    agent = agent or builders.agent("ada")
    for result in path:
        moved, attempts = after(agent.standing, result), agent.attempts + 1
        agent = agent.model_copy(
            update={"standing": moved, "attempts": attempts, "suspended": is_suspended(moved, attempts)}
        )
    return agent


@pytest.mark.parametrize(
    ("changes", "expected", "weight"),
    [
        ({}, Tier.NEWCOMER, 1.0),  # nothing is known
        ({"standing": 0.95, "attempts": 4}, Tier.NEWCOMER, 1.0),  # four results say little, for good
        ({"standing": 0.05, "attempts": 4}, Tier.NEWCOMER, 1.0),  # ... and for bad
        ({"standing": 0.7, "attempts": 5}, Tier.TRUSTED, 1.5),  # the fifth counts, and 0.7 is enough
        ({"standing": 0.69, "attempts": 5}, Tier.ESTABLISHED, 1.0),
        ({"standing": 0.3, "attempts": 5}, Tier.ESTABLISHED, 1.0),
        ({"standing": 0.29, "attempts": 5}, Tier.PROBATION, 0.5),
        ({"standing": 0.95, "attempts": 99, "suspended": True}, Tier.SUSPENDED, 0.0),  # whatever it was before
    ],
)
def test_the_tier_follows_from_enough_results_and_sets_the_weight(
    changes: dict[str, float], expected: Tier, weight: float
) -> None:
    agent = builders.agent("ada", **changes)

    assert (tier(agent), vote_weight(agent)) == (expected, weight)


def test_no_single_result_decides() -> None:
    assert after(NEWCOMER_STANDING, AwardResult.PROMOTED) == pytest.approx(0.6)
    assert after(NEWCOMER_STANDING, AwardResult.MISSED) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ([AwardResult.PROMOTED] * 5, Tier.TRUSTED),
        ([AwardResult.USELESS] * 30, Tier.ESTABLISHED),  # honest proposals that did not help never cost the standing
        ([AwardResult.HARMFUL] * 5, Tier.PROBATION),
        ([AwardResult.MISSED] * 9, Tier.PROBATION),  # nine are not enough to suspend
        ([AwardResult.MISSED] * 10, Tier.SUSPENDED),  # who keeps failing may not bid
        ([AwardResult.HARMFUL] * 12, Tier.SUSPENDED),
        ([AwardResult.MISSED] * 9 + [AwardResult.PROMOTED] * 6, Tier.TRUSTED),  # the way back is open
    ],
)
def test_results_make_the_tier(path: list[AwardResult], expected: Tier) -> None:
    assert tier(career(*path)) is expected


def test_a_broken_promise_costs_more_than_an_idea_that_did_not_help() -> None:
    order = sorted(AwardResult, key=worth)

    assert order[:4] == [AwardResult.MISSED, AwardResult.FAILED, AwardResult.HARMFUL, AwardResult.USELESS]
    assert worth(AwardResult.USELESS) < NEWCOMER_STANDING  # doing nothing useful is never a way up


@given(st.floats(0, 1), st.lists(results, max_size=40))
def test_standing_stays_between_nothing_and_one(start: float, path: list[AwardResult]) -> None:
    assert 0 <= career(*path, agent=builders.agent("ada", standing=start)).standing <= 1


@given(st.floats(0, 1), st.floats(0, 1), results)
def test_the_better_standing_stays_the_better_one_after_the_same_result(
    one: float, two: float, result: AwardResult
) -> None:
    assert (one <= two) == (after(one, result) <= after(two, result)) or after(one, result) == after(two, result)


@given(st.integers(0, 9), st.floats(0, 1))
def test_nobody_is_suspended_on_fewer_than_ten_results(attempts: int, value: float) -> None:
    assert not is_suspended(value, attempts)


def test_an_agent_that_mostly_helps_is_hardly_ever_suspended_by_bad_luck() -> None:
    # 1,000 careers of 100 results, two of three promoted and one harmful: it takes a long run of harm in a row.
    rng, outcomes = Random(11), (AwardResult.PROMOTED, AwardResult.PROMOTED, AwardResult.HARMFUL)
    suspended = sum(
        any(is_suspended(value, number) for number, value in enumerate(_walk(rng.choices(outcomes, k=100)), 1))
        for _ in range(1_000)
    )

    assert suspended <= 10


def test_the_log_ratio_rises_with_failures_and_the_credit_of_a_good_name_is_limited() -> None:
    usual, failure_log_ratio = Record(attempts=100, successes=80), 0.0
    for _ in range(1_000):
        failure_log_ratio = failure_log_ratio_after(failure_log_ratio, AwardResult.DONE, usual)

    assert failure_log_ratio == -CREDIT_LIMIT
    failures = 0
    while not is_suspended(0.5, 10, failure_log_ratio):
        failure_log_ratio, failures = (
            failure_log_ratio_after(failure_log_ratio, AwardResult.FAILED, usual),
            failures + 1,
        )
    assert failures == 6  # an agent that was good once is found, too
    assert failure_log_ratio_after(1.0, AwardResult.USELESS, usual) == 1.0


def test_where_everybody_fails_nobody_is_to_blame() -> None:
    broken, failure_log_ratio = Record(attempts=100, successes=5), 0.0
    for _ in range(20):
        failure_log_ratio = failure_log_ratio_after(failure_log_ratio, AwardResult.FAILED, broken)

    assert failure_log_ratio < SUSPENSION_LIMIT


def test_a_new_agent_as_good_as_the_others_is_hardly_ever_suspended_by_bad_luck() -> None:
    usual, rng, suspended = Record(attempts=1_000, successes=850), Random(3), 0
    for _ in range(500):
        failure_log_ratio = 0.0
        for number in range(1, 101):
            result = AwardResult.DONE if rng.random() < 0.85 else AwardResult.FAILED
            failure_log_ratio = failure_log_ratio_after(failure_log_ratio, result, usual)
            if is_suspended(0.5, number, failure_log_ratio):
                suspended += 1
                break

    assert suspended <= 0.08 * 500  # Ville's 1 in 20 at the start, and some that a limited credit costs later


def test_idleness_moves_half_the_way_in_a_half_life() -> None:
    assert decayed(0.9, 0.5, 86_400, 86_400) == pytest.approx(0.7)
    assert decayed(0.9, 0.5, 0, 86_400) == 0.9


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 2),  # a newcomer cannot fail at much before its first results are in
        ({"standing": 0.9, "attempts": 20}, 16),
        ({"standing": 0.5, "attempts": 20}, 8),
        ({"standing": 0.2, "attempts": 20}, 1),  # probation
        ({"suspended": True}, 0),
    ],
)
def test_the_tier_says_how_many_awards_at_a_time(changes: dict[str, Any], most: int) -> None:
    loads = [load for load in range(20) if has_room(builders.agent("ada", load=load, **changes))]

    assert loads == list(range(most))


@given(st.floats(0.01, 0.99), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_nothing_pays_better_than_an_honest_forecast(truth: float, baseline: float, said: float) -> None:
    def score(predicted: float) -> float:
        return rewards.forecast_score(predicted, baseline, truth)

    assert score(truth) >= score(said) - 1e-12
    assert -1 <= score(said) <= 1


def _walk(path: list[AwardResult]) -> list[float]:
    values = [standing.NEWCOMER_STANDING]
    for result in path:
        values.append(after(values[-1], result))
    return values[1:]


@pytest.mark.parametrize(
    ("ending", "result"),
    [
        (Ending.PROMOTED, AwardResult.PROMOTED),
        (Ending.ROLLED_BACK, AwardResult.HARMFUL),  # harm found late is harm
        (Ending.HARMFUL, AwardResult.HARMFUL),
        (Ending.REJECTED, AwardResult.USELESS),
        (Ending.FUTILE, AwardResult.USELESS),
        (Ending.INCONCLUSIVE, AwardResult.USELESS),
        (Ending.NO_BIDS, None),  # nobody had a proposal
        (Ending.NO_PROPOSAL, None),  # each winner's missed deadline was counted when it passed
        (Ending.INVALID, None),  # the experiment broke, not the proposal
        (Ending.ABORTED, None),  # a person's decision
        (Ending.ESCALATED, None),
    ],
)
def test_every_ending_says_what_it_was_worth(ending: Ending, result: AwardResult | None) -> None:
    assert result_of(ending) is result


@pytest.mark.parametrize(
    ("ending", "wait_s"),
    [
        (Ending.PROMOTED, 86_400),  # what was just changed needs its time to show
        (Ending.ROLLED_BACK, 86_400),
        (Ending.REJECTED, 1_800),  # the next attempt comes soon
        (Ending.NO_BIDS, 1_800),
        (Ending.NO_PROPOSAL, 1_800),
        (Ending.FUTILE, 1_800),
        (Ending.HARMFUL, 1_800),
        (Ending.INCONCLUSIVE, 1_800),
        (Ending.INVALID, 1_800),
        (Ending.ABORTED, None),  # only a person, or the end of the alarm
        (Ending.ESCALATED, None),
    ],
)
def test_every_ending_says_when_the_next_attempt_may_start(ending: Ending, wait_s: int | None) -> None:
    rules = builders.rules(bake_window_s=86_400, retry_cooldown_s=1_800)

    expected = None if wait_s is None else builders.NOW + timedelta(seconds=wait_s)
    assert next_attempt_at(ending, builders.NOW, rules) == expected


@pytest.mark.parametrize(
    ("good", "of", "expected"),
    [
        (9, 10, True),  # as good as the others
        (5, 10, False),
        (4, 4, False),  # four results say little
    ],
)
def test_who_does_well_at_something_has_a_speciality(good: int, of: int, expected: bool) -> None:
    assert is_speciality(Record(attempts=of, successes=good), Record(attempts=100, successes=85)) is expected
