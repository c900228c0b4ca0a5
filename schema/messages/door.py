"""Door: who may come through it, for what, and how much."""

from enum import StrEnum

from pydantic import Field

from .base import Declaration, Identifier, Instant, Message


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


class DoorRules(Declaration):
    """What each key may send through the door (`nautilus door`): requests a second, and the size of one in kilobytes.

    An agent reads and writes a few times a minute; a platform asks for the parameters of each of its tasks. `hosts` are
    the names under which agents reach `/mcp` besides this machine's own, without a port; `*` is any.
    """

    platform_requests_per_s: int = Field(default=1_000, ge=1)
    agent_requests_per_s: int = Field(default=20, ge=1)
    largest_body_kb: int = Field(default=4_000, ge=1, le=64_000)
    hosts: tuple[str, ...] = ()
