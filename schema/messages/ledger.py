"""Ledger: the record that anyone can audit."""

from enum import StrEnum
from typing import Any

from .base import Instant, Message


class EntryKind(StrEnum):
    EXPERIMENT_DESIGNED = "experiment.designed"
    PARAMETER_PROMOTED = "parameter.promoted"
    PARAMETER_ROLLED_BACK = "parameter.rolled_back"
    PARAMETER_FROZEN = "parameter.frozen"
    PARAMETER_THAWED = "parameter.thawed"
    ANOMALY_CLOSED = "anomaly.closed"
    PERSON_ACTED = "person.acted"
    CYCLE_ENDED = "cycle.ended"
    AGENT_KEY_REGISTERED = "agent.key_registered"
    AGENT_KEY_REVOKED = "agent.key_revoked"


class LedgerEntry(Message):
    """One link of the chain. `digest` covers every other field, `previous` the entry before it."""

    sequence: int
    key: str
    kind: EntryKind
    subject: str
    at: Instant
    body: dict[str, Any]
    previous: str
    digest: str
