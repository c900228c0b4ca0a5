"""Legal values: what a parameter may be set to, nearest to what somebody wants. Legal by construction: within the
declared bounds, on a step, no further away than the largest change.
"""

import math

from schema.messages.platform import ParameterKind, ParameterState


def legal_value(state: ParameterState, wanted: float) -> int | float | None:
    """The readable legal value at `wanted` or just short of it, on its side of the value in force; None for none."""
    declared = state.declaration
    current = float(state.value)
    assert declared.minimum is not None
    assert declared.maximum is not None
    largest = declared.largest_change if declared.largest_change is not None else math.inf
    low = max(declared.minimum, current - largest)
    high = min(declared.maximum, current + largest)
    is_whole = declared.kind is ParameterKind.INTEGER

    nearest = min(max(wanted, low), high)
    shorten = math.floor if nearest > current else math.ceil
    if declared.step is not None:
        # 1e-9 and twelve digits: the rounding of a float must not cost a step, nor show in the value.
        steps = shorten((nearest - declared.minimum) / declared.step + math.copysign(1e-9, nearest - current))
        value = float(f"{declared.minimum + steps * declared.step:.12g}")
    elif is_whole:
        value = shorten(nearest)
    else:
        readable = float(f"{nearest:.3g}")
        value = min(max(readable, low), high)

    is_legal = low <= value <= high and (not is_whole or value == int(value))
    is_on_wanted_side = (value - current) * (wanted - current) > 0
    if not is_legal or not is_on_wanted_side:
        return None
    return int(value) if is_whole else value
