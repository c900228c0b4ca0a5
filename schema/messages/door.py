"""Door: who may come through it, and for what."""

from enum import StrEnum

from .base import Identifier, Instant, Message


class Scope(StrEnum):
    """What a key is good for. The keys of agents are good for `agents` alone, and no other key is."""

    PARAMETERS = "parameters"
    OUTCOMES = "outcomes"
    AGENTS = "agents"


PLATFORM_SCOPES = (Scope.PARAMETERS, Scope.OUTCOMES)


class DoorKey(Message):
    """A key as people may see it. `holder` is a platform, or the agent that the key speaks for."""

    key_id: Identifier
    holder: Identifier
    scopes: tuple[Scope, ...]
    created_at: Instant
    created_by: str
    revoked_at: Instant | None = None
