"""Rates, as people and the memory read them; decisions about experiments use always-valid evidence instead."""

import math
from collections.abc import Mapping

from schema.messages.observatory import Counts


def smoothed(successes: float, tasks: float) -> float:
    """A rate kept off 0 and 1: half a success and half a failure more (Krichevsky & Trofimov 1981; Jeffreys)."""
    return (successes + 0.5) / (tasks + 1)


def wilson(successes: float, tasks: float, z: float = 1.96) -> tuple[float, float]:
    """The score interval of one rate, of 95 % by default (Wilson 1927); counts weighed by age need not be whole."""
    if tasks <= 0:
        return 0.0, 1.0
    rate, slack = successes / tasks, z * z / tasks
    centre = (rate + slack / 2) / (1 + slack)
    half = math.sqrt(slack * (rate * (1 - rate) + slack / 4)) / (1 + slack)
    return max(0.0, centre - half), min(1.0, centre + half)


def worst(counts: Mapping[str, Counts]) -> str:
    """The task type with the most bad tasks, of equals the last by name; empty where there is none."""
    return max(counts, key=lambda name: (counts[name].tasks - counts[name].successes, name), default="")
