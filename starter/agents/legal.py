"""Legal values: what a parameter may be set to, nearest to what somebody wants. Legal by construction: within the
declared bounds, on a step, no further away than the largest change.
"""

import math

from schema.messages.platform import ParameterKind, ParameterState


def legal_value(state: ParameterState, wanted: float) -> int | float | None:
    """The readable legal value at `wanted` or just short of it, on its side of the value in force; None for none."""
    declared, current = state.declaration, float(state.value)
    assert declared.minimum is not None
    assert declared.maximum is not None
    largest = declared.largest_change if declared.largest_change is not None else math.inf
    low, high = max(declared.minimum, current - largest), min(declared.maximum, current + largest)
    value = min(max(wanted, low), high)
    whole = declared.kind is ParameterKind.INTEGER
    short = math.floor if value > current else math.ceil
    if declared.step is not None:
        steps = short((value - declared.minimum) / declared.step + math.copysign(1e-9, value - current))
        value = float(f"{declared.minimum + steps * declared.step:.12g}")
    elif whole:
        value = short(value)
    else:
        value = min(max(float(f"{value:.3g}"), low), high)
    is_legal = low <= value <= high and (not whole or value == int(value))
    moves = (value - current) * (wanted - current) > 0
    if not is_legal or not moves:
        return None
    return int(value) if whole else value
