"""Subscriptions: who hears what. The whole routing table, on one screen."""

from enum import StrEnum

from schema.messages.events import EventType


class Subscriber(StrEnum):
    """One cursor each. `cycles` starts an improvement cycle for an anomaly."""

    CYCLES = "cycles"


ROUTES: dict[Subscriber, frozenset[EventType]] = {
    Subscriber.CYCLES: frozenset({EventType.ANOMALY_DETECTED}),
}


def wanted(subscriber: Subscriber, type: EventType) -> bool:
    """Whether `subscriber` hears events of this type."""
    return type in ROUTES[subscriber]
