"""The health score explains itself, and silence never improves it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.health import WEIGHTS, Health, health

PERFECT: dict[str, Any] = {
    "success_rate": 1.0,
    "mean_quality": 1.0,
    "market_fill_rate": 1.0,
    "active_agents": 6,
    "expected_agents": 6,
    "throughput_per_h": 20.0,
    "expected_throughput_per_h": 20.0,
}
MEASURED = ("success_rate", "mean_quality", "market_fill_rate", "active_agents", "throughput_per_h")


def health_of(**changed: Any) -> Health:
    return health(**{**PERFECT, **changed})


@pytest.mark.parametrize(
    ("changed", "score"),
    [
        ({}, 100),  # all that can be had
        ({"success_rate": 0.0}, 65),  # success weighs 35
        ({"mean_quality": 0.0}, 75),  # quality 25
        ({"market_fill_rate": 0.0}, 80),  # the market's fill 20
        ({"active_agents": 0}, 90),  # agents 10
        ({"throughput_per_h": 0.0}, 90),  # throughput 10
        ({"success_rate": 0.65}, 87.75),  # the article's bad night
        ({"active_agents": 12, "throughput_per_h": 90.0}, 100),  # more than expected is not more than well
        ({"active_agents": 0, "expected_agents": 0}, 100),  # nobody was expected and nobody came
        ({"mean_quality": None}, 75),  # ratings that stopped count as the worst ratings
        ({"mean_quality": None, "known_parts": [p for p in WEIGHTS if p != "quality"]}, 100),  # never rated anything
        ({"mean_quality": 0.0, "known_parts": [p for p in WEIGHTS if p != "quality"]}, 75),  # rated now: it counts
    ],
)
def test_every_part_weighs_what_the_article_says(changed: dict[str, Any], score: float) -> None:
    assert health_of(**changed).score == pytest.approx(score)


def test_a_platform_where_nothing_was_measured_has_no_score() -> None:
    nothing = health_of(**dict.fromkeys(MEASURED))

    assert nothing.score is None
    assert nothing.reason == "nothing was measured"


def test_the_reason_names_what_is_missing() -> None:
    partial = health_of(mean_quality=None)

    assert partial.missing == ("quality",)
    assert "not measured and counted as 0: quality" in partial.reason


@pytest.mark.parametrize("impossible", [float("nan"), -0.1, 1.1])
def test_a_measurement_that_cannot_be_is_refused(impossible: float) -> None:
    with pytest.raises(ValueError, match="expected success between 0 and 1"):
        health_of(success_rate=impossible)


def test_a_part_without_a_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="expected parts among success"):
        health_of(known_parts=["succes"])


shares = st.floats(0, 1)


@given(
    values=st.fixed_dictionaries(dict.fromkeys(MEASURED[:3], shares)),
    lost=st.sets(st.sampled_from(MEASURED), max_size=len(MEASURED) - 1),
)
def test_losing_a_measurement_never_raises_health(values: dict[str, float], lost: set[str]) -> None:
    whole, partial = health_of(**values).score, health_of(**{**values, **dict.fromkeys(lost)}).score

    assert whole is not None
    assert partial is not None
    assert 0 <= partial <= whole + 1e-9
