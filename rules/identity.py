"""Identity: whether a message is of the agent that it names, and meant for the run that received it.

An agent is an Ed25519 key (RFC 8032). It signs the canonical JSON (RFC 8785) of its message and where it is sent, so
that no signature is valid in another place: another workflow, kind of message, name, or an earlier run under the same
workflow id. docs/identity.md has the format with golden vectors. The caller supplies the key; one that is sent with the
message would prove nothing.
"""

import base64
from collections.abc import Iterable, Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from schema.canonical import canonical
from schema.messages.base import AgentMessage
from schema.messages.market import Agent
from schema.messages.proposals import Voter

# Keeps our signatures apart from whatever else a key signs, and the next format apart from this one.
PROTOCOL = "nautilus-message/1"
# In the place of a key: the agent had one and has none in force, which is not the same as never having had one.
REVOKED = ""

PRIME = 2**255 - 19
# With a public key of small order one signature fits every message, so its owner could deny having sent any. These are
# all the y coordinates of such points (libsodium, ge25519_has_small_order).
SMALL_ORDER = {
    0,
    1,
    PRIME - 1,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    PRIME - 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
}


def signed_bytes(message: AgentMessage, workflow_id: str, context: str, kind: str) -> bytes:
    """What is signed. `context` is the id of the workflow's first run; raises ValueError for what JSON cannot carry.

    A field that has its default is left out, so that a field which a later version adds breaks no signature.
    """
    content = message.model_dump(mode="json", exclude={"signature"}, exclude_defaults=True)
    return canonical(
        {
            "protocol": PROTOCOL,
            "workflow": workflow_id,
            "context": context,
            "kind": kind,
            "agent": message.agent_id,
            "content": content,
        }
    )


def key_of(agent_id: str, agents: Iterable[Agent | Voter], current_keys: Mapping[str, str] | None) -> str | None:
    """The key of one of `agents`: of `current_keys`, read after a change, or its own. None for an unknown one."""
    agent = next((agent for agent in agents if agent.agent_id == agent_id), None)
    if agent is None or current_keys is None:
        return agent.public_key if agent else None
    return current_keys.get(agent_id)


def refusal(
    message: AgentMessage, workflow_id: str, context: str, kind: str, public_key: str | None, unsigned_allowed: bool
) -> str | None:
    """Why a message cannot be accepted as from the agent that it names, or None.

    `public_key` is the agent's, REVOKED, or None for an agent that never had one: only such an agent may be allowed to
    go unsigned, or any sender could act as one that signs.
    """
    agent = message.agent_id
    if public_key == REVOKED:
        return f"expected an agent with a key in force, but the key of {agent} was revoked"
    if public_key is None:
        if unsigned_allowed and message.signature is None:
            return None
        return f"expected an agent with a registered key, but {agent} has none"
    if message.signature is None:
        return f"expected a message signed by {agent}, but this one is not signed"
    try:
        signature = decoded(message.signature, 64)
        content = signed_bytes(message, workflow_id, context, kind)
        Ed25519PublicKey.from_public_bytes(decoded(public_key, 32)).verify(signature, content)
    except InvalidSignature:
        where = f"{kind} to run {context} of {workflow_id}"
        return f"expected a signature by the key of {agent} over exactly this {where}, but it does not fit"
    except ValueError as error:
        return f"expected a message of {agent} that can be signed, but {error}"
    return None


def key_refusal(public_key: str) -> str | None:
    """Why this cannot be an agent's public key, or None."""
    try:
        # The highest bit is the sign of x.
        y = int.from_bytes(decoded(public_key, 32), "little") % 2**255
    except ValueError as error:
        return f"expected a public key, but {error}"
    if y >= PRIME or y in SMALL_ORDER:
        return f"expected a public key that only one secret fits, but {public_key} is of small order or not reduced"
    return None


def decoded(text: str, size: int) -> bytes:
    """`size` bytes from base64. Strict: one value has one text. Raises ValueError."""
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError:
        value = b""
    if len(value) != size or base64.b64encode(value).decode() != text:
        raise ValueError(f"{text[:100]!r} is not {size} bytes in base64")
    return value
