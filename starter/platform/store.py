"""Store: what the resolver and the recorder need of the place where configuration and outcomes are kept.

There are two: the database (`database_store`), and the door (`door_store`) for a process that has no database.
"""

from collections.abc import Sequence
from typing import Protocol

from schema.messages.experiment import Assignment, Configuration
from schema.messages.observatory import Fate, TaskOutcome


class StoreAway(Exception):
    """The store cannot be reached now. What was to be written may be written again: that changes nothing."""


class Store(Protocol):
    """Safe to share between threads."""

    def configuration(self) -> Configuration:
        """What resolving needs, as it is now. Raises StoreAway."""
        ...

    def record(self, assignments: Sequence[Assignment], outcomes: Sequence[TaskOutcome]) -> list[Fate]:
        """Commit all of it or nothing; the fate of each outcome, in their order. Raises StoreAway."""
        ...
