"""The demo's platform with another limit, for the benchmarks of whole cycles."""

from starter.faults import PLATFORM

RESEARCH, OTHER = "research_synthesis", "monte_carlo"
PARAMETER = f"{RESEARCH}.timeout_s"
# The lines of the demo's file that bound the research limit.
BOUNDS = "default = 2.7\nminimum = 0.5\nmaximum = 20.0\nlargest_change = 4.0\n"


def declaration(limit_s: float) -> str:
    """The demo's `platform.toml` for a research limit in seconds, with bounds in proportion."""
    before, separator, after = PLATFORM.read_text().partition(BOUNDS)
    if not separator:
        raise ValueError(f"expected {PLATFORM} to bound the research limit by {BOUNDS!r}, but it does not")
    minimum, maximum, change = limit_s / 4, limit_s * 10, limit_s * 1.5
    bounds = f"default = {limit_s:g}\nminimum = {minimum:g}\nmaximum = {maximum:g}\nlargest_change = {change:g}\n"
    return before + bounds + after
