"""Identity: whether a message is of the agent or person that it names, and meant for the run that received it.

An agent, or a person where acts are signed, is an Ed25519 key (RFC 8032). It signs the canonical JSON (RFC 8785) of its
message and where it is sent, so that no signature is valid in another place: another workflow, kind of message, name,
or an earlier run under the same workflow id. docs/identity.md has the format with golden vectors. The caller supplies
the key; one that is sent with the message would prove nothing.
"""

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from schema.canonical import canonical
from schema.messages.base import AgentMessage
from schema.messages.market import Agent
from schema.messages.people import People
from schema.messages.proposals import Voter
from schema.messages.story import Act

# Keeps our signatures apart from whatever else a key signs, and the next format apart from this one.
PROTOCOL = "nautilus-message/1"
LEDGER_PROTOCOL = "nautilus-ledger/1"
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


def signed_bytes(message: AgentMessage | Act, workflow_id: str, context: str, kind: str) -> bytes:
    """What is signed. `context` is the id of the workflow's first run; raises ValueError for what JSON cannot carry.

    A field that has its default is left out, so that a field which a later version adds breaks no signature. A person
    is named as a person: an agent of the same name and key could not act as one.
    """
    signer = {"person": message.who} if isinstance(message, Act) else {"agent": message.agent_id}
    content = message.model_dump(mode="json", exclude={"signature"}, exclude_defaults=True)
    where = {"protocol": PROTOCOL, "workflow": workflow_id, "context": context, "kind": kind}
    return canonical(where | signer | {"content": content})


def signed_entry(fields: Mapping[str, Any], person: str) -> bytes:
    """What a person signs of an entry of the ledger: all of it, so that it counts at this place of this chain only.

    `fields` are those of `rules.chain.digest`, with the body as it is before the signature is put into it.
    """
    names = ("sequence", "key", "kind", "subject", "at", "body", "previous")
    return canonical({"protocol": LEDGER_PROTOCOL, "person": person} | {name: fields[name] for name in names})


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
    return _message_refusal(message, agent, message.signature, workflow_id, context, kind, public_key)


def act_refusal(act: Act, workflow_id: str, context: str, kind: str, people: People) -> str | None:
    """Why an act cannot be accepted as of the person that it names, or None; without `signed`, none is refused."""
    if not people.signed:
        return None
    names = ", ".join(person.name for person in people.people)
    if act.signature is None:
        how = "`nautilus cycle act` and `nautilus person sign` sign with the key file that NAUTILUS_PERSON_KEY names"
        return f"expected an act signed by a declared person ({names}), but this one of {act.who} is not signed; {how}"
    public_key = key_of_person(act.who, people)
    if public_key is None:
        return f"expected an act of a declared person ({names}), but {act.who} is none; see [[people]] in platform.toml"
    return _message_refusal(act, act.who, act.signature, workflow_id, context, kind, public_key)


def key_of_person(name: str, people: People) -> str | None:
    """The public key of a declared person, or None."""
    return next((person.public_key for person in people.people if person.name == name), None)


def _message_refusal(
    message: AgentMessage | Act, name: str, signature: str, workflow_id: str, context: str, kind: str, public_key: str
) -> str | None:
    try:
        fits = is_signed(signed_bytes(message, workflow_id, context, kind), signature, public_key)
    except ValueError as error:
        return f"expected a message of {name} that can be signed, but {error}"
    if fits:
        return None
    where = f"{kind} to run {context} of {workflow_id}"
    return f"expected a signature by the key of {name} over exactly this {where}, but it does not fit"


def is_signed(content: bytes, signature: str, public_key: str) -> bool:
    """Whether a signature in base64 is by this key over this content. Raises ValueError where either is none."""
    try:
        Ed25519PublicKey.from_public_bytes(decoded(public_key, 32)).verify(decoded(signature, 64), content)
    except InvalidSignature:
        return False
    return True


def key_refusal(public_key: str) -> str | None:
    """Why this cannot be a public key, or None."""
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
