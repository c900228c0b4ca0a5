"""Bounds: what no majority can allow is refused before any vote."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.bounds import refusal
from schema.messages.base import Value
from schema.messages.platform import ParameterKind, ParameterState
from tests import builders

BASELINE, EFFECT = 0.67, 0.05


def judge(state: ParameterState, task_type: str = "research_synthesis", **changes: Any) -> str | None:
    parameters = {state.declaration.key: state}
    # The message refuses what is no number at the door; the rule must hold by itself.
    proposal = builders.proposal().model_copy(update=changes)
    return refusal(proposal, parameters, task_type, BASELINE, EFFECT)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),  # the article's: 90 s -> 180 s
        ({"value": 210.0}, None),  # exactly the largest change
        ({"value": 210.5}, "expected research_synthesis.timeout_s to change by at most 120, but 120.5 came"),
        ({"value": 10.0}, None),  # exactly the minimum
        ({"value": 9.9}, "research_synthesis.timeout_s: expected a value between 10 and 600 s, but 9.9 came"),
        ({"value": 700.0}, "research_synthesis.timeout_s: expected a value between 10 and 600 s, but 700.0 came"),
        ({"value": math.inf}, "research_synthesis.timeout_s: expected a value between 10 and 600 s, but inf came"),
        ({"value": math.nan}, "research_synthesis.timeout_s: expected a value between 10 and 600 s, but nan came"),
        ({"value": "180"}, "research_synthesis.timeout_s: expected a number, but '180' came"),
        ({"value": True}, "research_synthesis.timeout_s: expected a number, but True came"),
        ({"value": 90}, "expected a change of research_synthesis.timeout_s, but 90 is its value already"),
        ({"base_version": 2}, "expected base version 1 of research_synthesis.timeout_s, but 2 came"),
        ({"parameter": "cycle.alpha"}, "expected a declared parameter (research_synthesis.timeout_s), but cycle.alpha"),
        ({"predicted_rate": 0.72}, None),  # exactly the smallest effect worth having
        (
            {"predicted_rate": 0.719},
            "expected a predicted rate of at least 0.720 (baseline 0.670 and 0.05 worth having)",
        ),
        ({"predicted_rate": 0.5}, "expected a predicted rate of at least 0.720"),  # a forecast of harm
    ],
)
def test_a_proposal_outside_its_bounds_is_refused_with_what_was_expected(
    changes: dict[str, Any], expected: str | None
) -> None:
    reason = judge(builders.state(), **changes)

    assert reason is None if expected is None else reason is not None and reason.startswith(expected), reason


@pytest.mark.parametrize(
    ("kind", "declared", "value", "expected"),
    [
        (ParameterKind.INTEGER, {"default": 4, "minimum": 1, "maximum": 8}, 5, None),
        (
            ParameterKind.INTEGER,
            {"default": 4, "minimum": 1, "maximum": 8},
            5.0,
            "expected a whole number, but 5.0 came",
        ),
        (ParameterKind.INTEGER, {"default": 4, "minimum": 1, "maximum": 8}, True, "expected a whole number, but True"),
        (ParameterKind.BOOLEAN, {"default": False}, True, None),
        (ParameterKind.BOOLEAN, {"default": False}, 1, "expected true or false, but 1 came"),
        (ParameterKind.CHOICE, {"default": "fast", "choices": ("fast", "deep")}, "deep", None),
        (
            ParameterKind.CHOICE,
            {"default": "fast", "choices": ("fast", "deep")},
            "slow",
            "expected one of fast, deep, but",
        ),
        (ParameterKind.FLOAT, {"default": 1.0, "minimum": 0.5, "maximum": 9, "step": 0.5}, 2.5, None),
        (
            ParameterKind.FLOAT,
            {"default": 1.0, "minimum": 0.5, "maximum": 9, "step": 0.5},
            2.6,
            "in steps of 0.5, but 2.6",
        ),
        (
            ParameterKind.FLOAT,
            {"default": 0.3, "minimum": 0.1, "maximum": 1, "step": 0.1},
            0.7,
            None,
        ),  # floats: 5.999 steps
    ],
)
def test_every_kind_of_parameter_has_its_own_bounds(
    kind: ParameterKind, declared: dict[str, Any], value: Value, expected: str | None
) -> None:
    fields = {"minimum": None, "maximum": None, "largest_change": None, "unit": ""} | declared
    state = builders.state(value=declared["default"], kind=kind, **fields)

    reason = judge(state, value=value)

    assert reason is None if expected is None else reason is not None and expected in reason, reason


def test_a_cycle_about_one_task_type_changes_only_what_touches_it() -> None:
    reason = judge(builders.state(), task_type="monte_carlo")

    assert reason == (
        "expected a parameter that touches monte_carlo, but research_synthesis.timeout_s touches research_synthesis"
    )


def test_a_cycle_about_the_whole_platform_may_change_any_declared_parameter() -> None:
    assert judge(builders.state(), task_type="") is None


def test_with_nothing_declared_nothing_can_be_proposed() -> None:
    reason = refusal(builders.proposal(), {}, "research_synthesis", BASELINE, EFFECT)

    assert reason == "expected a declared parameter (none), but research_synthesis.timeout_s came"


# --- Properties -------------------------------------------------------------------------------------------------------

values = st.one_of(st.floats(), st.integers(-1_000, 1_000), st.booleans(), st.text(max_size=5))


@given(values, st.floats(10, 600), st.floats(0.001, 0.999))
def test_what_is_let_through_is_always_within_the_declaration(value: Value, current: float, predicted: float) -> None:
    state = builders.state(value=current)

    if judge(state, value=value, predicted_rate=predicted) is None:
        assert isinstance(value, int | float)
        assert not isinstance(value, bool)
        assert 10 <= value <= 600
        assert 0 < abs(value - current) <= 120 * (1 + 1e-9)
        assert predicted - BASELINE >= EFFECT - 1e-9


@given(st.integers(1, 500), st.floats(0.01, 10), st.floats(-100, 100))
def test_every_whole_number_of_steps_from_the_minimum_is_on_the_grid(steps: int, step: float, origin: float) -> None:
    state = builders.state(
        value=origin, default=origin, minimum=origin, maximum=origin + 1_000 * step, step=step, largest_change=None
    )

    assert judge(state, value=origin + steps * step) is None
    refused = judge(state, value=origin + (steps + 0.5) * step)
    assert refused is not None
    assert "in steps of" in refused
