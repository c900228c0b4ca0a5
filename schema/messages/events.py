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


class Event(Message):
    """`key` is the natural key: the same change announces itself once. Order holds within `subject`."""

    key: str
    type: EventType
    subject: str
    at: Instant
    data: dict[str, Any] = Field(default_factory=dict)
    sequence: int = 0
