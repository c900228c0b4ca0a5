"""Conduct: how the simulated service treats each search, and which fault it has by now.

Every fault is one that remote services have, begins some time after the first search, and comes without notice. Each
treatment is drawn by itself, from seeded generators, so that another try of the same search may fare better.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog

from activities.task_types.corpus import Corpus
from activities.task_types.library import PLAIN, LocalLibrary
from schema.messages.simulation import ResearchService

log = structlog.get_logger()


class Treatment(NamedTuple):
    """What becomes of one search: the seconds until its response, counted from the request, or a refusal at once.

    `limited` refuses it where too many are under way. `wrong` and `poorer` are of the model that has the fault.
    """

    seconds: float
    unavailable: bool = False
    limited: bool = False
    wrong: bool = False
    poorer: bool = False


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
            # A fault is drawn for only from its beginning on, and in this order.
            unavailable = self._has_begun(declared.unavailable_after_s, elapsed_s)
            unavailable = unavailable and self._fault_random.random() < declared.unavailable_share
            wrong = self._has_begun(declared.wrong_after_s, elapsed_s)
            wrong = wrong and self._fault_random.random() < declared.wrong_share
            return Treatment(
                seconds=seconds * (declared.slower_by if slower else 1.0),
                unavailable=unavailable,
                limited=self._has_begun(declared.limited_after_s, elapsed_s),
                wrong=wrong,
                poorer=self._has_begun(declared.poorer_after_s, elapsed_s),
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


class Shelves:
    """The libraries that a search may be answered from: by its model, sound or with the model's fault."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def library(self, model: str, treatment: Treatment) -> LocalLibrary:
        """The library for one search."""
        if model == PLAIN and treatment.wrong:
            return Misplaced(self._corpus, model)
        if model == PLAIN and treatment.poorer:
            return Careless(self._corpus, model)
        return LocalLibrary(self._corpus, model)


class Misplaced(LocalLibrary):
    """An index whose entries point to other passages than those they were made from, as after half a migration."""

    def best(self, query: Sequence[str], most: int, without: set[int]) -> list[int]:
        passages = len(self._corpus)
        return [(passage_id + passages // 2) % passages for passage_id in super().best(query, most, without)]


class Careless(LocalLibrary):
    """A release that searches for the commonest term of each query alone: passages on the subject, and poorer ones."""

    def best(self, query: Sequence[str], most: int, without: set[int]) -> list[int]:
        return super().best(sorted(query, key=self.weight)[:1], most, without)


class Slots:
    """Counts the searches under way. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0

    def take(self, most: int | None) -> bool:
        """Take a slot, unless `most` are taken; None for no limit."""
        with self._lock:
            if most is not None and self._taken >= most:
                return False
            self._taken += 1
            return True

    def free(self) -> None:
        with self._lock:
            self._taken -= 1
