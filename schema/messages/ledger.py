"""Ledger: the record that anyone can audit."""

from enum import StrEnum
from typing import Any

from .base import Instant, Message, Value

# The name, in an entry's body, of a person's signature over the entry.
SIGNED = "signed"


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
    PARAMETER_DECLARED = "parameter.declared"
    DOOR_KEY_CREATED = "door_key.created"
    DOOR_KEY_REVOKED = "door_key.revoked"
    PEOPLE_DECLARED = "people.declared"


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


class DeclaredParameter(Message):
    """The body of `parameter.declared`: a declaration that is new, or differs from the one before.

    `before` and `value` are what production ran on under the one before, and runs on under this one: they differ where
    a value in force is out of the new bounds, or within them again. `before` is None for a new parameter.
    """

    parameter: str
    declaration: dict[str, Any]
    before: Value | None
    value: Value
