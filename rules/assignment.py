"""Decides which variant a unit gets: a hash, so that all processes agree without messages, and no unit changes arms.

Exactly the `fractional` operation (v2) of OpenFeature's flagd, so that other evaluators give the same answer. Python's
own `hash()` is salted per process and must never be used here.
"""

from collections.abc import Callable
from typing import NamedTuple

from mmh3 import hash as murmur3_32

from schema.messages.experiment import Variant

# Resolves shares to a millionth of a percent; flagd's answer depends on the shares, not on the total they add up to.
TOTAL_WEIGHT = 100_000_000


def bucket(key: str, total_weight: int) -> int:
    """The bucket of `key` in 0 .. total_weight - 1: (murmur3_x86_32(key, seed 0), unsigned, x total weight) >> 32."""
    if not 0 < total_weight < 2**31:
        raise ValueError(f"expected a total weight from 1 to 2^31 - 1, but {total_weight} came for {key!r}")
    return (murmur3_32(key, 0, signed=False) * total_weight) >> 32


class Weights(NamedTuple):
    """How `TOTAL_WEIGHT` is shared out, in the order of the ring; `unexposed` units are in neither arm."""

    control: int
    unexposed: int
    treatment: int


def weights(exposure: float, treatment_share: float) -> Weights:
    """The ranges of the ring. Raises ValueError for an impossible share.

    Control fills the ring from its start and treatment from its end: while exposure grows, at whatever share, units
    join and none leaves its arm.
    """
    exposed = _weight(exposure, "an exposure")
    treated = round(exposed * _weight(treatment_share, "a treatment share") / TOTAL_WEIGHT)
    return Weights(control=exposed - treated, unexposed=TOTAL_WEIGHT - exposed, treatment=treated)


def assigner(experiment_id: str, exposure: float, treatment_share: float) -> Callable[[str], Variant | None]:
    """The function that gives a unit its variant, or None to one that is not exposed; its ranges are computed once.

    This is flagd's `fractional` of the text experiment, then unit, over `weights`, as `rules.flagd` writes it down. At
    full exposure a growing share only ever moves units to the treatment.
    """
    control, unexposed, _ = weights(exposure, treatment_share)
    treatment_start = control + unexposed
    control_arm, treatment_arm = Variant.CONTROL, Variant.TREATMENT

    def assign(unit_id: str) -> Variant | None:
        # `bucket`, written out: this runs for every parameter of every task.
        place = (murmur3_32(experiment_id + unit_id, 0, False) * TOTAL_WEIGHT) >> 32
        if place < control:
            return control_arm
        return treatment_arm if place >= treatment_start else None

    return assign


def variant(experiment_id: str, unit_id: str, treatment_share: float) -> Variant:
    """The variant of a unit when all units take part."""
    assigned = assigner(experiment_id, 1.0, treatment_share)(unit_id)
    assert assigned is not None
    return assigned


def _weight(share: float, name: str) -> int:
    if not 0 <= share <= 1:
        raise ValueError(f"expected {name} from 0 to 1, but {share} came")
    return round(share * TOTAL_WEIGHT)
