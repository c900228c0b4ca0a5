"""What became of hostile messages: a row of the table for each target, and the worst examples."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from time import process_time
from typing import Any

from benchmarks.fuzz.targets import Target, Unclear, check_line

# So much CPU may one message take in process. The largest ones have a megabyte.
LONGEST_S = 1.0
MOST_EXAMPLES = 5


@dataclass
class Tally:
    """One row. `crashed` is neither accepted nor refused, `unclear` a refusal that is not one clear line."""

    target: str
    sent: int = 0
    refused: int = 0
    accepted: int = 0
    crashed: int = 0
    stalled: int = 0
    written: int = 0
    unclear: int = 0
    slowest_s: float = 0.0
    examples: dict[str, int] = field(default_factory=dict)

    @property
    def is_fine(self) -> bool:
        return not (self.crashed or self.stalled or self.written or self.unclear)

    def row(self) -> dict[str, Any]:
        """The row, without the examples."""
        return {name: value for name, value in vars(self).items() if name != "examples"}

    def example(self, text: str) -> None:
        """Keep what went wrong; the same again is counted."""
        if text in self.examples or len(self.examples) < MOST_EXAMPLES:
            self.examples[text] = self.examples.get(text, 0) + 1


def fail(tally: Tally, error: Exception, content: bytes) -> None:
    """Count what was neither accepted nor refused, or refused without a clear line."""
    if isinstance(error, Unclear):
        tally.unclear += 1
    else:
        tally.crashed += 1
    where = traceback.extract_tb(error.__traceback__)[-1]
    tally.example(f"{type(error).__name__} in {where.name}: {str(error)[:200]!r} for {content[:300]!r}")


def send(tally: Tally, target: Target, content: bytes, clock: Callable[[], float] = process_time) -> None:
    """Send bytes to a target in process, and count what became of them."""
    tally.sent += 1
    began = clock()
    line: str | None = None
    try:
        target.take(content)
    except target.refusals as refusal:
        line = str(refusal)
    except Exception as error:  # noqa: BLE001  (that is what it looks for)
        fail(tally, error, content)
        return
    took_s = clock() - began
    tally.slowest_s = max(tally.slowest_s, round(took_s, 3))
    if took_s > LONGEST_S:
        tally.stalled += 1
        tally.example(f"took {took_s:.1f} s for {content[:200]!r} of {len(content):,} bytes")
    if line is None:
        tally.accepted += 1
        return
    tally.refused += 1
    try:
        check_line(line)
    except AssertionError as unclear:
        tally.unclear += 1
        tally.example(f"{unclear} for {content[:200]!r}")
