"""Rates, as people read them; decisions about experiments use always-valid evidence instead."""

import math

from schema.messages.observatory import Counts


def wilson(counts: Counts, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of one rate, for people (Wilson 1927); decisions use always-valid ones."""
    if not counts.tasks:
        return 0.0, 1.0
    n, p = counts.tasks, counts.successes / counts.tasks
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)
