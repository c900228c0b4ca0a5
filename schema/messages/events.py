"""Events: what happened, in past tense, committed with the change that it announces."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from .base import Instant, Message


class EventType(StrEnum):
    ANOMALY_DETECTED = "anomaly.detected"
    ANOMALY_CLOSED = "anomaly.closed"
    META_TASK_OPENED = "meta_task.opened"
    META_TASK_AWARDED = "meta_task.awarded"
    AWARD_MISSED = "award.missed"
    PROPOSAL_SUBMITTED = "proposal.submitted"
    PROPOSAL_ACCEPTED = "proposal.accepted"
    PROPOSAL_REJECTED = "proposal.rejected"
    EXPERIMENT_STARTED = "experiment.started"
    EXPERIMENT_CONCLUDED = "experiment.concluded"
    PARAMETER_PROMOTED = "parameter.promoted"
    PARAMETER_ROLLED_BACK = "parameter.rolled_back"
    PARAMETER_FROZEN = "parameter.frozen"
    PARAMETER_THAWED = "parameter.thawed"
    PERSON_ACTED = "person.acted"
    CYCLE_ENDED = "cycle.ended"
    SCHEDULES_ELEVATED = "schedules.elevated"
    SCHEDULES_RESTORED = "schedules.restored"
    BUDGET_EXCEEDED = "budget.exceeded"
    REPORT_PUBLISHED = "report.published"
    TASK_SETTLED = "task.settled"
    MEMORY_CONSOLIDATED = "memory.consolidated"
    AGENT_KEY_REGISTERED = "agent.key_registered"
    AGENT_KEY_REVOKED = "agent.key_revoked"
    TASK_OPENED = "task.opened"
    TASK_AWARDED = "task.awarded"
    AGENT_SUSPENDED = "agent.suspended"
    AGENT_RESTORED = "agent.restored"


class Event(Message):
    """`key` is the natural key: the same change announces itself once. Order holds within `subject`."""

    key: str
    type: EventType
    subject: str
    at: Instant
    data: dict[str, Any] = Field(default_factory=dict)
    sequence: int = 0


class DeliveryState(StrEnum):
    """Why a subscriber has not had an event: it is tried again, a person must act, or it waits behind such a one."""

    RETRYING = "retrying"
    DEAD = "dead"
    PARKED = "parked"


class Undelivered(Message):
    """An event that a subscriber has not had, although its cursor has passed it."""

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
    """How far a subscriber is: events after its cursor that it will hear, and those that it has not had before it.

    `error` is why the latest of these failed.
    """

    subscriber: str
    behind: int
    retrying: int
    parked: int
    dead: int
    error: str = ""
