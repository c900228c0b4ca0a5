"""The database as a store, for a platform whose process reaches it."""

from collections.abc import Sequence

from sqlalchemy.exc import InternalError, OperationalError, SQLAlchemyError

from activities.assignments import record_assignments
from activities.database import Database
from activities.parameters import configuration
from activities.recording import record_each
from schema.messages.experiment import Assignment, Configuration
from schema.messages.observatory import Fate, TaskOutcome
from schema.messages.platform import Platform
from starter.platform.store import StoreAway


class DatabaseStore:
    """Reads and writes the platform's own tables."""

    def __init__(self, database: Database, platform: Platform) -> None:
        self._database = database
        self._platform = platform

    def configuration(self) -> Configuration:
        """The values in force, and the experiments that expose tasks. Raises StoreAway."""
        try:
            return configuration(self._database, self._platform)
        except SQLAlchemyError as error:
            raise StoreAway(str(getattr(error, "orig", error))) from error

    def record(self, assignments: Sequence[Assignment], outcomes: Sequence[TaskOutcome]) -> list[Fate]:
        """One transaction for all. Raises StoreAway where the database is away or busy."""
        interval_s = self._platform.observatory.interval_s
        try:
            with self._database.transaction() as session:
                record_assignments(session, assignments, interval_s)
                return record_each(session, outcomes, interval_s)
        except (OperationalError, InternalError) as error:  # the latter from a server that has become a standby
            raise StoreAway(str(error.orig)) from error
