"""Conduct: how the simulated service treats each search, and which fault it has by now.

Every fault is one that remote services have, begins some time after the first search, and comes without notice. Each
treatment is drawn by itself, from seeded generators, so that another try of the same search may fare better.
"""

import math
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog

from schema.messages.platform import ResearchService

log = structlog.get_logger()


class Treatment(NamedTuple):
    """What becomes of one search: the seconds until its response, counted from the request, or a refusal at once."""

    seconds: float
    unavailable: bool = False


class Conduct:
    """Draws treatments, and counts searches. Safe to use from several threads. `clock` counts seconds."""

    def __init__(self, declared: ResearchService, clock: Callable[[], float] = time.monotonic) -> None:
        self._declared = declared
        self._clock = clock
        self._random = random.Random(declared.seed)
        # Of its own: the seconds of a seed are the same with every fault.
        self._fault_random = random.Random(f"faults {declared.seed}")
        self._lock = threading.Lock()
        self._first_at: float | None = None
        self._searches = 0
        self._fault_at: datetime | None = None

    def next(self) -> Treatment:
        """What becomes of the next search."""
        declared = self._declared
        with self._lock:
            now = self._clock()
            if self._first_at is None:
                self._first_at = now
            elapsed_s = now - self._first_at
            self._searches += 1
            seconds = self._random.lognormvariate(math.log(declared.median_s), declared.sigma)
            slower = self._has_begun(declared.slower_after_s, elapsed_s)
            unavailable = self._has_begun(declared.unavailable_after_s, elapsed_s)
            return Treatment(
                seconds=seconds * (declared.slower_by if slower else 1.0),
                unavailable=unavailable and self._fault_random.random() < declared.unavailable_share,
            )

    def _has_begun(self, after_s: float | None, elapsed_s: float) -> bool:
        if after_s is None or elapsed_s < after_s:
            return False
        if self._fault_at is None:
            self._fault_at = datetime.now(UTC)
            log.info("research_service.fault", **self._declared.model_dump(exclude_defaults=True))
        return True

    def state(self) -> dict[str, Any]:
        """The number of searches so far, and since when the service has a fault."""
        return {"searches": self._searches, "fault_at": self._fault_at.isoformat() if self._fault_at else None}
