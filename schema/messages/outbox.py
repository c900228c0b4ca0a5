"""The outbox: an event in its envelope, and how far its delivery is. `schema.messages.events` has their data."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from ..wire import EventType
from .base import Instant, Message


class Event(Message):
    """`key` is the natural key: a change is announced once. Order is kept within `subject`."""

    key: str
    type: EventType
    subject: str
    at: Instant
    data: dict[str, Any] = Field(default_factory=dict)
    sequence: int = 0


class DeliveryState(StrEnum):
    """Why an event is not delivered: it is retried, a person must act, or it waits behind such an event."""

    RETRYING = "retrying"
    DEAD = "dead"
    PARKED = "parked"


class Undelivered(Message):
    """An event that was not delivered, although the subscriber's cursor has passed it."""

    subscriber: str
    sequence: int
    type: str
    subject: str
    state: DeliveryState
    attempts: int
    error: str
    due_at: Instant
    dead_at: Instant | None


class SubscriberStatus(Message):
    """How far a subscriber is: events after its cursor that it will get, and undelivered ones before it.

    `error` is why the latest of these failed.
    """

    subscriber: str
    behind: int
    retrying: int
    parked: int
    dead: int
    error: str = ""
