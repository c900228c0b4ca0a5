"""Nautilus for agents: find work, bid, investigate, propose, vote, do tasks. Needs Temporal's address alone.

What signs (`AgentKey`, `read_key`, `make_key`) needs the extra: pip install 'nautilus-agent[signing]'.
"""

from typing import TYPE_CHECKING

from schema.extras import SIGNING, MissingExtra, needs
from schema.failure_kinds import FailureKind
from schema.messages.cycle import CycleRequest, CycleResult, CycleStatus, Ending, Phase
from schema.messages.diagnosis import Diagnosis, TaskTypeDiagnosis
from schema.messages.market import PLATFORM_META, Bid
from schema.messages.platform import Parameter, ParameterKind, ParameterState, Risk
from schema.messages.proposals import Ballot, Choice, Decline, Evidence, Proposal
from schema.messages.story import Receipt
from schema.messages.tasks import (
    Heartbeat,
    TaskPhase,
    TaskRequest,
    TaskStatus,
    TaskTypeListing,
    TypeRegistration,
    WorkResult,
)
from starter.client import Listed, NautilusClient, Refused

if TYPE_CHECKING:
    from starter import keys
    from starter.keys import AgentKey as AgentKey
    from starter.keys import KeyFileError as KeyFileError

    make_key, read_key = keys.make, keys.read

__all__ = [
    "PLATFORM_META",
    "Ballot",
    "Bid",
    "Choice",
    "CycleRequest",
    "CycleResult",
    "CycleStatus",
    "Decline",
    "Diagnosis",
    "Ending",
    "Evidence",
    "FailureKind",
    "Heartbeat",
    "Listed",
    "MissingExtra",
    "NautilusClient",
    "Parameter",
    "ParameterKind",
    "ParameterState",
    "Phase",
    "Proposal",
    "Receipt",
    "Refused",
    "Risk",
    "TaskPhase",
    "TaskRequest",
    "TaskStatus",
    "TaskTypeDiagnosis",
    "TaskTypeListing",
    "TypeRegistration",
    "WorkResult",
]

# What needs the extra is loaded when it is asked for: here by its name there.
SIGNERS = {"AgentKey": "AgentKey", "KeyFileError": "KeyFileError", "make_key": "make", "read_key": "read"}


def __getattr__(name: str) -> object:
    if name not in SIGNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs(SIGNING):
        from starter import keys
    return getattr(keys, SIGNERS[name])
