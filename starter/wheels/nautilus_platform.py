"""Nautilus for platforms: which value a task gets, and how it went. Over the door, or over the database with an extra.

`DatabaseStore`, `existing`, `declared_platform` and `Settings` need pip install 'nautilus-platform[database]',
`NautilusProvider` needs 'nautilus-platform[openfeature]'.
"""

from typing import TYPE_CHECKING

from schema.extras import DATABASE, OPENFEATURE, MissingExtra, needs
from schema.failure_kinds import FailureKind
from schema.messages.experiment import Assignment, Configuration, RunningExperiment, Variant
from schema.messages.observatory import Fate, TaskOutcome, detail_of, reason_of
from starter.platform.door_store import DoorStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import Evaluation, ParameterResolver, Resolution
from starter.platform.store import Store, StoreAway

if TYPE_CHECKING:
    from activities.database import existing as existing
    from schema.declaration import declared_platform as declared_platform
    from schema.settings import Settings as Settings
    from starter.platform.database_store import DatabaseStore as DatabaseStore
    from starter.platform.openfeature import NautilusProvider as NautilusProvider

__all__ = [
    "Assignment",
    "Configuration",
    "DoorStore",
    "Evaluation",
    "FailureKind",
    "Fate",
    "MissingExtra",
    "ParameterResolver",
    "Recorder",
    "Resolution",
    "RunningExperiment",
    "Store",
    "StoreAway",
    "TaskOutcome",
    "Variant",
    "detail_of",
    "reason_of",
]


def __getattr__(name: str) -> object:
    match name:
        case "DatabaseStore":
            with needs(DATABASE):
                from starter.platform.database_store import DatabaseStore
            return DatabaseStore
        case "existing":
            with needs(DATABASE):
                from activities.database import existing
            return existing
        case "NautilusProvider":
            with needs(OPENFEATURE):
                from starter.platform.openfeature import NautilusProvider
            return NautilusProvider
        case "declared_platform":
            from schema.declaration import declared_platform

            return declared_platform
        case "Settings":
            from schema.settings import Settings

            return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
