"""Bounds: what may be proposed at all. Refused here, before any vote, is what no majority can allow."""

import math
from collections.abc import Mapping

from schema.messages.base import quoted
from schema.messages.platform import Mode, Parameter, ParameterState
from schema.messages.proposals import Proposal


def refusal(
    proposal: Proposal,
    parameters: Mapping[str, ParameterState],
    task_type: str,
    baseline_rate: float,
    minimum_effect: float,
) -> str | None:
    """Why a proposal cannot be put to the vote, or None.

    `task_type` is what the cycle is about (empty: the whole platform); `baseline_rate` and `minimum_effect` are shares
    of good tasks, 0 to 1.
    """
    state = parameters.get(proposal.parameter)
    if state is None:
        keys = ", ".join(sorted(parameters)) or "none"
        return f"expected a declared parameter ({keys}), but {proposal.parameter} came"
    declared = state.declaration
    if task_type and task_type not in declared.task_types:
        touched = ", ".join(declared.task_types)
        return f"expected a parameter that touches {task_type}, but {declared.key} touches {touched}"
    if state.mode is Mode.OBSERVE:
        return f"expected a parameter that may be tuned, but {declared.key} is only observed"
    if proposal.base_version != state.version:
        return f"expected base version {state.version} of {declared.key}, but {proposal.base_version} came"
    value_refusal = declared.refusal(proposal.value)
    if value_refusal is not None:
        return f"{declared.key}: {value_refusal}"
    if proposal.value == state.value:
        return f"expected a change of {declared.key}, but {quoted(proposal.value)} is its value already"
    if isinstance(proposal.value, int | float) and isinstance(state.value, int | float):
        change_refusal = _change_refusal(declared, state.value, proposal.value)
        if change_refusal is not None:
            return change_refusal
    gain = proposal.predicted_rate - baseline_rate
    if gain < minimum_effect - 1e-9:  # a gain of exactly the minimum must not fail by a rounding error
        return (
            f"expected a predicted rate of at least {baseline_rate + minimum_effect:.3f} (baseline {baseline_rate:.3f} "
            f"and {minimum_effect:g} worth having), but {proposal.predicted_rate:.3f} came"
        )
    return None


def _change_refusal(declared: Parameter, present: float, proposed: float) -> str | None:
    """Why a number may not change like this, or None."""
    change = abs(proposed - present)
    if declared.largest_change is not None and change > declared.largest_change * (1 + 1e-9):
        return f"expected {declared.key} to change by at most {declared.largest_change:g}, but {change:g} came"
    if declared.step is not None and not _on_step(proposed, declared.step, declared.minimum or 0.0):
        return f"expected {declared.key} in steps of {declared.step:g}, but {proposed:g} came"
    return None


def _on_step(value: float, step: float, origin: float) -> bool:
    steps = (value - origin) / step
    return math.isclose(steps, round(steps), abs_tol=1e-6)
