"""Reason text: failures by reason in words, without what a whole report imports."""

from collections.abc import Mapping

from rules.reasons import ranked

NOT_MEASURED = "not measured"
# As many reasons as fit in a line.
MOST_REASONS = 3


def failures(reasons: Mapping[str, int], tasks: int) -> tuple[str, str]:
    """The most frequent reasons of failures as shares of all tasks, and the counts behind them."""
    if not tasks:
        return NOT_MEASURED, ""
    if not reasons:
        return "none", ""
    shown = ranked(reasons)[:MOST_REASONS]
    shares = [f"{reason} {number / tasks:.1%}" for reason, number in shown]
    more = [f"{len(reasons) - MOST_REASONS} more"] if len(reasons) > MOST_REASONS else []
    counts = ", ".join(f"{number:,}" for _, number in shown)
    return ", ".join([*shares, *more]), f"{counts} of {tasks:,}"
